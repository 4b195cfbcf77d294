//! A [`Message`] as the JSON of a Discord webhook. Pure.
//!
//! Limits are those of "Execute Webhook" and "Embed Limits" in Discord's API reference. Discord counts Unicode code
//! points; lengths here are UTF-16 code units, which are never fewer.

use jiff::Timestamp;
use serde::Serialize;

use super::message::{Field, Message, Tone};

/// Of `content`.
pub const CONTENT: usize = 2000;
/// Of an embed's title.
pub const TITLE: usize = 256;
/// Of an embed's description.
pub const DESCRIPTION: usize = 4096;
/// Fields of an embed.
pub const FIELDS: usize = 25;
/// Of a field's name.
pub const FIELD_NAME: usize = 256;
/// Of a field's value.
pub const FIELD_VALUE: usize = 1024;
/// Of an embed's footer.
pub const FOOTER: usize = 2048;
/// Of all texts of a message's embeds together.
pub const EMBED_TOTAL: usize = 6000;

/// Of one field's value as we write it, so that a few long ones leave room for the others and for the log.
const OUR_FIELD_VALUE: usize = 400;
/// Of a reason as we write it.
const OUR_REASON: usize = 1500;
/// Shorter than this, an excerpt of a log helps nobody.
const SHORTEST_LOG: usize = 40;

/// What is sent; also the body of an edit, then without `username`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Stands alone: what a phone shows, and what remains where embeds are switched off.
    pub content: String,
    /// The name the message appears under; an edit cannot change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<&'static str>,
    /// At most one.
    pub embeds: Vec<Embed>,
    /// Nobody is ever mentioned. Sent with edits too: without it Discord falls back to mentioning all.
    pub allowed_mentions: AllowedMentions,
}

/// `{"parse": []}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct AllowedMentions {
    parse: [&'static str; 0],
}

/// A Discord embed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Embed {
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    color: u32,
    fields: Vec<EmbedField>,
    footer: Footer,
    timestamp: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct EmbedField {
    name: String,
    value: String,
    inline: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Footer {
    text: String,
}

impl Payload {
    /// The whole message.
    pub fn new(message: &Message) -> Self {
        Self { embeds: vec![embed(message)], ..Self::minimal(message) }
    }

    /// The line that stands alone: for when Discord refuses the rest.
    pub fn minimal(message: &Message) -> Self {
        Self {
            content: escape(&message.headline, CONTENT),
            username: Some("longshore"),
            embeds: Vec::new(),
            allowed_mentions: AllowedMentions::default(),
        }
    }

    /// The same as the body of an edit.
    pub fn for_edit(&self) -> Self {
        Self { username: None, ..self.clone() }
    }
}

fn embed(message: &Message) -> Embed {
    let title = escape(&message.title, TITLE);
    let fields: Vec<EmbedField> = message.fields.iter().take(FIELDS).map(embed_field).collect();
    // The footer is shown as it is, without markdown.
    let footer = cut(&message.footer, 100);
    let used = length(&title)
        + length(&footer)
        + fields.iter().map(|field| length(&field.name) + length(&field.value)).sum::<usize>();
    Embed {
        url: message.link.as_deref().and_then(web_link),
        description: description(message, DESCRIPTION.min(EMBED_TOTAL.saturating_sub(used))),
        color: match message.tone {
            Tone::Busy => 0x003b_82f6,
            Tone::Good => 0x0022_c55e,
            Tone::Bad => 0x00ef_4444,
            Tone::Undone => 0x00f9_7316,
            Tone::Neutral => 0x006b_7280,
        },
        fields,
        title,
        footer: Footer { text: footer },
        timestamp: message.at,
    }
}

fn embed_field(field: &Field) -> EmbedField {
    let text = escape(&field.text, OUR_FIELD_VALUE);
    let linked = field.link.as_deref().and_then(web_link).map(|link| format!("[{text}]({link})"));
    EmbedField {
        name: escape(field.name, FIELD_NAME),
        value: linked.filter(|linked| length(linked) <= OUR_FIELD_VALUE).unwrap_or(text),
        inline: field.short,
    }
}

/// The reason, then as much of the end of the log as fits in `max`.
fn description(message: &Message, max: usize) -> Option<String> {
    let mut text = message.reason.as_deref().map(|reason| escape(reason, OUR_REASON.min(max))).unwrap_or_default();
    let separator = if text.is_empty() { "" } else { "\n" };
    let room = max.saturating_sub(length(&text) + separator.len());
    if let Some(block) = code_block(&message.log, room) {
        text.push_str(separator);
        text.push_str(&block);
    }
    Some(text).filter(|text| !text.is_empty())
}

/// The last of `lines` that fit in `max` with their fences; the cut is at the top.
fn code_block(lines: &[String], max: usize) -> Option<String> {
    const OPEN: &str = "```\n";
    const CLOSE: &str = "\n```";
    let room = max.saturating_sub(OPEN.len() + CLOSE.len());
    let mut kept: Vec<String> = Vec::new();
    let mut used = 0;
    for line in lines.iter().rev() {
        let line = inert_in_code(line);
        // A line end, and an ellipsis for what may be left out above it.
        let left = room.saturating_sub(used + 3);
        if length(&line) > left {
            if left >= SHORTEST_LOG && kept.is_empty() {
                kept.push(cut(&line, left));
            } else if !kept.is_empty() {
                kept.push("…".to_owned());
            }
            break;
        }
        used += length(&line) + 1;
        kept.push(line);
    }
    kept.reverse();
    let all = kept.join("\n");
    (!all.trim().is_empty()).then(|| format!("{OPEN}{all}{CLOSE}"))
}

/// Nothing in a code block is markdown but its end. What looks like a mention is inert there; it is changed all the
/// same, for readers of the raw text.
fn inert_in_code(line: &str) -> String {
    line.replace("```", "ˋˋˋ")
        .replace("@everyone", "＠everyone")
        .replace("@here", "＠here")
        .replace("<@", "<＠")
        .replace("<#", "<＃")
}

/// `text` without any meaning to Discord's markdown, at most `max` long, with an ellipsis where it was cut. Never
/// ends in the middle of an escape. Links in it are not made clickable.
fn escape(text: &str, max: usize) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    // Where the text ends if an ellipsis has to follow.
    let (mut used, mut end_before_ellipsis) = (0, 0);
    let mut line_start = true;
    for (at, c) in text.char_indices() {
        let special = match c {
            '`' | '*' | '_' | '~' | '\\' | '|' | '>' | '[' | ']' | '(' | ')' | '<' | '@' | '#' => true,
            // Lists and small print, at the start of a line.
            '-' | '+' => line_start,
            ':' => text[at..].starts_with("://"),
            _ => false,
        };
        line_start = c == '\n' || (line_start && c.is_whitespace());
        used += c.len_utf16() + usize::from(special);
        if used > max {
            escaped.truncate(end_before_ellipsis);
            if max > 0 {
                escaped.push('…');
            }
            return escaped;
        }
        if special {
            escaped.push('\\');
        }
        escaped.push(c);
        if used < max {
            end_before_ellipsis = escaped.len();
        }
    }
    escaped
}

/// At most `max` of `text`, with an ellipsis where it was cut.
fn cut(text: &str, max: usize) -> String {
    if length(text) <= max {
        return text.to_owned();
    }
    let mut used = 1;
    let mut kept: String = text
        .chars()
        .take_while(|c| {
            used += c.len_utf16();
            used <= max
        })
        .collect();
    kept.push('…');
    kept
}

/// The address with what would end a markdown link encoded; `None` unless it is http or https.
fn web_link(link: &str) -> Option<String> {
    let web = link.starts_with("https://") || link.starts_with("http://");
    let fits = length(link) <= OUR_FIELD_VALUE && !link.chars().any(|c| c.is_control() || c.is_whitespace());
    let encode = |c: char| match c {
        '(' => "%28".to_owned(),
        ')' => "%29".to_owned(),
        '<' => "%3C".to_owned(),
        '>' => "%3E".to_owned(),
        c => c.to_string(),
    };
    (web && fits).then(|| link.chars().map(encode).collect())
}

/// As Discord counts, or more.
fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

#[cfg(test)]
mod tests;
