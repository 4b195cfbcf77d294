//! What to say about a permanent canary that gets no requests, and about its return. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::message::{Field, Message, Tone};
use super::text::duration;
use crate::model::shorten;
use crate::store::CanaryAlert;
use crate::text::one_line;

/// Characters of what is wrong with it.
const WHY: usize = 300;

/// That it fails or is down.
pub(super) fn down(alert: &CanaryAlert, link: Option<String>) -> Message {
    let CanaryAlert { app, production, share, .. } = alert;
    let why = shorten(&one_line(&alert.why), WHY);
    let (what, title, next) = match alert.times {
        0 => ("is down", "is down", "it gets its share again by itself as soon as it is ready".to_owned()),
        _ => (
            "compares badly with production",
            "suspended",
            format!("it is tried again after a while, and at once when a new deployment of {app} is live"),
        ),
    };
    Message {
        headline: format!("{app}, the canary of {production}, {what}: all requests go to {production}"),
        title: format!("{app}: {title}"),
        link,
        reason: Some(why).filter(|why| !why.is_empty()),
        log: Vec::new(),
        fields: vec![
            field("Share", format!("{share} of {production}'s requests, now none")),
            field("Since", clock(alert.since)),
            field("Next", next),
            field("Look", format!("longshore status {app}")),
        ],
        footer: format!("canary alert {}", alert.id),
        tone: Tone::Bad,
        at: alert.since,
    }
}

/// That it gets its share again.
pub(super) fn up(alert: &CanaryAlert, link: Option<String>) -> Message {
    let CanaryAlert { app, production, share, .. } = alert;
    let ended = alert.ended_at.unwrap_or(alert.since);
    let lasted = duration(Duration::try_from(ended.duration_since(alert.since)).unwrap_or_default());
    Message {
        headline: format!("{app} is back: it gets {share} of {production}'s requests again"),
        title: format!("{app}: is back"),
        link,
        reason: None,
        log: Vec::new(),
        fields: vec![field("Share", format!("{share} of {production}'s requests")), field("Lasted", lasted)],
        footer: format!("canary alert {}", alert.id),
        tone: Tone::Good,
        at: ended,
    }
}

fn field(name: &'static str, text: String) -> Field {
    Field { name, text, link: None, short: name == "Since" || name == "Lasted" }
}

/// `2026-09-22 14:03:22 UTC`: the reader may sit elsewhere.
fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fraction;

    fn alert(times: u32) -> CanaryAlert {
        let at = |second: i64| Timestamp::from_second(1_790_000_000 + second).unwrap();
        CanaryAlert {
            id: 3,
            app: "shop-next".parse().unwrap(),
            production: "shop".parse().unwrap(),
            share: Fraction { part: 1, of: 3 },
            times,
            why: "5.0 % of 400 requests\nfailed".into(),
            deployment: None,
            since: at(0),
            last_at: at(0),
            ended_at: Some(at(723)),
        }
    }

    #[test]
    fn it_is_said_what_is_wrong_and_who_answers_instead() {
        let said = down(&alert(0), None);
        assert_eq!(said.headline, "shop-next, the canary of shop, is down: all requests go to shop");
        assert_eq!(said.reason.as_deref(), Some("5.0 % of 400 requests failed"));
        let said = down(&alert(2), None);
        assert!(said.headline.contains("compares badly with production: all requests go to shop"));
    }

    #[test]
    fn its_return_says_what_it_gets() {
        let said = up(&alert(0), None);
        assert_eq!(said.headline, "shop-next is back: it gets 1/3 of shop's requests again");
        assert!(said.fields.iter().any(|field| field.name == "Lasted" && field.text == "12 m 3 s"));
    }
}
