//! What Discord accepts in a message: <https://docs.discord.com/developers/resources/message#embed-object-embed-limits>.
//! Lengths are in characters.

use serde_json::{Value, json};

/// A refusal in Discord's terms.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// Discord's error code.
    pub code: u32,
    /// Its fixed text.
    pub message: &'static str,
    /// What is wrong, and where.
    pub detail: String,
}

fn invalid(detail: String) -> Refused {
    Refused { status: 400, code: 50035, message: "Invalid Form Body", detail }
}

const KNOWN_KEYS: [&str; 8] =
    ["content", "username", "avatar_url", "tts", "embeds", "allowed_mentions", "flags", "attachments"];
const KNOWN_EMBED_KEYS: [&str; 11] =
    ["title", "type", "description", "url", "timestamp", "color", "footer", "image", "thumbnail", "author", "fields"];

/// Checks a message as a whole: its shape, and that it is not empty.
pub fn check_new(message: &Value) -> Result<(), Refused> {
    check_shape(message)?;
    let has_content = message["content"].as_str().is_some_and(|content| !content.trim().is_empty());
    let has_embed = message["embeds"].as_array().is_some_and(|embeds| !embeds.is_empty());
    if has_content || has_embed {
        return Ok(());
    }
    let detail = "neither content nor embeds".to_owned();
    Err(Refused { status: 400, code: 50006, message: "Cannot send an empty message", detail })
}

/// Checks every field that is there. Two rules are ours, not Discord's: unknown keys are refused, because they are
/// misspelt; and mentions must be switched off in every call, because a commit message may say `@everyone`.
pub fn check_shape(message: &Value) -> Result<(), Refused> {
    known_keys(message, &KNOWN_KEYS, "message")?;
    if message["allowed_mentions"] != json!({ "parse": [] }) {
        return Err(invalid(format!("allowed_mentions is {}, not {{\"parse\":[]}}", message["allowed_mentions"])));
    }
    text(message, "content", 0, 2000, "message")?;
    text(message, "username", 1, 80, "message")?;
    web_address(message, "avatar_url", "message")?;
    let embeds = match &message["embeds"] {
        Value::Null => return Ok(()),
        Value::Array(embeds) if embeds.len() <= 10 => embeds,
        Value::Array(embeds) => return Err(invalid(format!("{} embeds, at most 10", embeds.len()))),
        other => return Err(invalid(format!("embeds is {other}, not a list"))),
    };
    let mut total = 0;
    for (index, embed) in embeds.iter().enumerate() {
        total += check_embed(embed, &format!("embeds[{index}]"))?;
    }
    if total > 6000 {
        return Err(invalid(format!("all embeds together have {total} characters, at most 6000")));
    }
    Ok(())
}

/// The characters that count towards the total.
fn check_embed(embed: &Value, at: &str) -> Result<usize, Refused> {
    known_keys(embed, &KNOWN_EMBED_KEYS, at)?;
    let mut total = text(embed, "title", 0, 256, at)? + text(embed, "description", 0, 4096, at)?;
    web_address(embed, "url", at)?;
    if !embed["footer"].is_null() {
        total += text(&embed["footer"], "text", 1, 2048, &format!("{at}.footer"))?;
    }
    if !embed["author"].is_null() {
        total += text(&embed["author"], "name", 1, 256, &format!("{at}.author"))?;
        web_address(&embed["author"], "url", &format!("{at}.author"))?;
    }
    let color = &embed["color"];
    if !color.is_null() && color.as_u64().is_none_or(|color| color > 0xFF_FFFF) {
        return Err(invalid(format!("{at}.color is {color}, not an integer from 0 to 16777215")));
    }
    let timestamp = &embed["timestamp"];
    if !timestamp.is_null() && timestamp.as_str().is_none_or(|text| text.parse::<jiff::Timestamp>().is_err()) {
        return Err(invalid(format!("{at}.timestamp is {timestamp}, not an ISO 8601 time")));
    }
    match &embed["fields"] {
        Value::Null => {}
        Value::Array(fields) if fields.len() <= 25 => {
            for (index, field) in fields.iter().enumerate() {
                let at = format!("{at}.fields[{index}]");
                known_keys(field, &["name", "value", "inline"], &at)?;
                for (key, most) in [("name", 256), ("value", 1024)] {
                    if field[key].is_null() {
                        return Err(invalid(format!("{at}.{key} is required")));
                    }
                    total += text(field, key, 1, most, &at)?;
                }
            }
        }
        Value::Array(fields) => return Err(invalid(format!("{at} has {} fields, at most 25", fields.len()))),
        other => return Err(invalid(format!("{at}.fields is {other}, not a list"))),
    }
    if total == 0 && embed["image"].is_null() && embed["thumbnail"].is_null() {
        return Err(invalid(format!("{at} is empty")));
    }
    Ok(total)
}

/// The length of an optional text; surrounding blanks do not count, as Discord trims them.
fn text(object: &Value, key: &str, least: usize, most: usize, at: &str) -> Result<usize, Refused> {
    let value = match &object[key] {
        Value::Null => return Ok(0),
        Value::String(value) => value.trim(),
        other => return Err(invalid(format!("{at}.{key} is {other}, not a text"))),
    };
    let length = value.chars().count();
    if (least..=most).contains(&length) {
        return Ok(length);
    }
    Err(invalid(format!("{at}.{key} has {length} characters, {least} to {most} are allowed")))
}

fn web_address(object: &Value, key: &str, at: &str) -> Result<(), Refused> {
    let value = &object[key];
    let scheme_ok = |url: &str| url.starts_with("https://") || url.starts_with("http://");
    if value.is_null() || value.as_str().is_some_and(|url| scheme_ok(url) && !url.contains(char::is_whitespace)) {
        return Ok(());
    }
    Err(invalid(format!("{at}.{key} is {value}, not an http or https address")))
}

fn known_keys(object: &Value, known: &[&str], at: &str) -> Result<(), Refused> {
    let Value::Object(map) = object else { return Err(invalid(format!("{at} is not an object"))) };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(invalid(format!("{at}.{key} is not a field of Discord's"))),
        None => Ok(()),
    }
}
