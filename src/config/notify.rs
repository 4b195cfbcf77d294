//! `[[notify]]`: who is told, and of what.

use super::field::Field;
use super::problem::Fault;
use super::reader::Section;
use super::source_url::is_loopback;
use super::{Channel, NoticeKind, NotifyTarget};

/// Hosts that serve Discord's webhooks.
const DISCORD_HOSTS: [&str; 4] = ["discord.com", "discordapp.com", "canary.discord.com", "ptb.discord.com"];

const EVENTS: [(&str, NoticeKind); 12] = [
    ("started", NoticeKind::Started),
    ("succeeded", NoticeKind::Succeeded),
    ("failed", NoticeKind::Failed),
    ("rolled_back", NoticeKind::RolledBack),
    ("superseded", NoticeKind::Superseded),
    ("cancelled", NoticeKind::Cancelled),
    ("engine_down", NoticeKind::EngineDown),
    ("engine_up", NoticeKind::EngineUp),
    ("canary_down", NoticeKind::CanaryDown),
    ("canary_up", NoticeKind::CanaryUp),
    ("certificate_failed", NoticeKind::CertificateFailed),
    ("certificate_issued", NoticeKind::CertificateIssued),
];

pub(super) fn targets(field: Option<Field<'_>>) -> Vec<NotifyTarget> {
    let Some(field) = field else { return Vec::new() };
    if field.is_table() {
        field.problem(" must be a list of tables", "write [[notify]] with two brackets on each side");
        return Vec::new();
    }
    let entries = field.list("write [[notify]] on a line of its own").unwrap_or_default();
    let sections = entries.into_iter().filter_map(|entry| entry.section("write [[notify]] on a line of its own"));
    sections.filter_map(target).collect()
}

fn target(section: Section<'_>) -> Option<NotifyTarget> {
    let kind = section.require("kind", "write kind = \"discord\"");
    let supported = kind.as_ref().is_none_or(is_discord);
    let allow_local = section.take("allow_local").and_then(|field| field.boolean()).unwrap_or(false);
    let url = section.require("url", "write url = { env = \"DISCORD_WEBHOOK_URL\" }");
    let url = url.and_then(|field| {
        field.secret(|url| match discord_url(url, allow_local) {
            Err(why) if supported => Err(Fault::new(format!("{} (its value is not shown here)", why.what), why.hint)),
            _ => Ok(()),
        })
    });
    let events = events(section.take("events"));
    section.finish();
    let url = url?;
    Some(NotifyTarget { channel: Channel::Discord { url, allow_local }, events })
}

/// Whether the kind is the one there is; says so when it is not.
fn is_discord(field: &Field<'_>) -> bool {
    const OTHER_KINDS: [&str; 8] = ["slack", "webhook", "email", "teams", "telegram", "mattermost", "ntfy", "matrix"];
    match field.as_text() {
        Some(kind) if OTHER_KINDS.contains(&kind) => {
            let what = format!(" = {kind:?} is not supported by this version");
            field.problem(what, "write kind = \"discord\" or remove this [[notify]]");
            false
        }
        _ => field.word(&[("discord", ())]).is_some(),
    }
}

fn events(field: Option<Field<'_>>) -> Vec<NoticeKind> {
    let Some(field) = field else { return NoticeKind::ALL.to_vec() };
    let hint = "write events = [\"succeeded\", \"failed\", \"rolled_back\"], or leave it out for all";
    let elements = field.list(hint).unwrap_or_default();
    if elements.is_empty() {
        field.problem(" names no event: nothing would ever be told", hint);
    }
    let mut events = Vec::new();
    for element in elements {
        if let Some(event @ ("instance_down" | "instance_up")) = element.as_text() {
            element.problem(format!(" = {event:?} is not supported by this version"), "remove it from the list");
            continue;
        }
        match element.word(&EVENTS) {
            Some(event) if events.contains(&event) => element.problem(" is in the list twice", "remove one of them"),
            Some(event) => events.push(event),
            None => {}
        }
    }
    events
}

/// Why an address is none to send notices to. Neither text holds any part of the address.
#[derive(Debug, PartialEq, Eq)]
struct BadUrl {
    what: &'static str,
    hint: &'static str,
}

/// Discord's own hosts over https; another address only on this machine and where that is allowed.
fn discord_url(url: &str, allow_local: bool) -> Result<(), BadUrl> {
    const FORM: &str = "it must be https://discord.com/api/webhooks/ID/TOKEN, as Discord's channel settings show it";
    const LOCAL: &str = "set allow_local = true if a stand-in on this machine is meant";
    let bad = |what, hint| Err(BadUrl { what, hint });
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return bad("holds a space or a line end", FORM);
    }
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("https" | "http"), rest)) => (scheme, rest),
        _ => return bad("holds no https address", FORM),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') || path.contains('#') {
        return bad("holds an address with credentials or a fragment", FORM);
    }
    if is_loopback(host_of(authority)) {
        return if allow_local { Ok(()) } else { bad("holds an address on this machine", LOCAL) };
    }
    if scheme != "https" {
        return bad("holds an address without encryption", FORM);
    }
    if !DISCORD_HOSTS.contains(&authority.to_ascii_lowercase().as_str()) {
        return bad("does not lead to one of Discord's hosts", FORM);
    }
    if path.contains('?') {
        return bad("holds an address with a query", FORM);
    }
    let parts: Vec<&str> = path.split('/').collect();
    let version = |part: &str| part.strip_prefix('v').is_some_and(|n| !n.is_empty() && all_digits(n));
    let parts = match parts.as_slice() {
        ["api", number, rest @ ..] if version(number) => rest,
        ["api", rest @ ..] => rest,
        _ => &[],
    };
    let token = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    match parts {
        ["webhooks", id, secret] if !id.is_empty() && all_digits(id) && token(secret) => Ok(()),
        _ => bad("is no Discord webhook address", FORM),
    }
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(authority: &str) -> &str {
    match authority.find(']') {
        Some(end) => &authority[..=end],
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_discords_own_addresses_pass() {
        for good in [
            "https://discord.com/api/webhooks/123456789/aB-c_d",
            "https://canary.discord.com/api/v10/webhooks/1/x",
            "https://discordapp.com/api/webhooks/1/x",
        ] {
            assert_eq!(discord_url(good, false), Ok(()), "{good}");
        }
        for bad in [
            "http://discord.com/api/webhooks/1/x",
            "https://discord.com.evil.example/api/webhooks/1/x",
            "https://evil.example/discord.com/api/webhooks/1/x",
            "https://discord.com@evil.example/api/webhooks/1/x",
            "https://discord.com:444/api/webhooks/1/x",
            "https://discord.com/api/webhooks/x/1",
            "https://discord.com/api/webhooks/1",
            "https://discord.com/api/webhooks/1/../x",
            "https://discord.com/api/webhooks/1/x\n",
            "https://127.0.0.1.nip.io/x",
            "discord.com/api/webhooks/1/x",
            "",
        ] {
            assert!(discord_url(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn this_machine_is_reached_only_where_allowed() {
        for local in ["http://127.0.0.1:4000/x", "http://localhost/x", "https://[::1]:4000/api/webhooks/1/x"] {
            assert_eq!(discord_url(local, true), Ok(()), "{local}");
            assert!(discord_url(local, false).is_err(), "{local}");
        }
    }
}
