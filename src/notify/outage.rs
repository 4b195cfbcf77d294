//! What to say about an engine that does not answer, and about its return. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::message::{Field, Message, Tone};
use super::text::duration;
use crate::model::shorten;
use crate::store::Outage;
use crate::text::one_line;

/// Characters of what asking the engine led to.
const WHY: usize = 300;

/// That it does not answer.
pub(super) fn down(outage: &Outage, link: Option<String>) -> Message {
    let (address, since) = (&outage.address, clock(outage.since));
    let why = shorten(&one_line(&outage.why), WHY);
    let headline = format!(
        "The Docker engine at {address} has not answered since {since}; what runs goes on being served, and pushes wait"
    );
    let look = match address.starts_with("unix:") {
        true => "systemctl status docker, journalctl -u docker and longshore status, on the agent's machine",
        false => "longshore status on the agent's machine, and the engine's own log",
    };
    Message {
        headline,
        title: "Docker engine: does not answer".into(),
        link,
        reason: Some(why).filter(|why| !why.is_empty()),
        log: Vec::new(),
        fields: vec![
            field("Address", address.clone()),
            field("Since", since),
            field(
                "Meanwhile",
                "instances that run are served; pushes are taken and wait, and go on by themselves".into(),
            ),
            field("Look", look.into()),
        ],
        footer: format!("engine outage {}", outage.id),
        tone: Tone::Bad,
        at: outage.since,
    }
}

/// That it answers again.
pub(super) fn up(outage: &Outage, link: Option<String>) -> Message {
    let address = &outage.address;
    let ended = outage.ended_at.unwrap_or(outage.since);
    let away = duration(Duration::try_from(ended.duration_since(outage.since)).unwrap_or_default());
    Message {
        headline: format!("The Docker engine at {address} answers again after {away}; what waited goes on"),
        title: "Docker engine: answers again".into(),
        link,
        reason: None,
        log: Vec::new(),
        fields: vec![field("Address", address.clone()), field("Away for", away)],
        footer: format!("engine outage {}", outage.id),
        tone: Tone::Good,
        at: ended,
    }
}

fn field(name: &'static str, text: String) -> Field {
    Field { name, text, link: None, short: name == "Since" || name == "Away for" }
}

/// `2026-09-22 14:03:22 UTC`: the reader may sit elsewhere.
fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage() -> Outage {
        let at = |second: i64| Timestamp::from_second(1_790_000_000 + second).unwrap();
        Outage {
            id: 3,
            address: "unix:///var/run/docker.sock".into(),
            why: "connection\nrefused".into(),
            since: at(0),
            ended_at: Some(at(723)),
        }
    }

    #[test]
    fn it_is_said_where_since_when_and_what_goes_on() {
        let said = down(&outage(), None);
        assert_eq!(
            said.headline,
            "The Docker engine at unix:///var/run/docker.sock has not answered since 2026-09-21 14:13:20 UTC; what \
             runs goes on being served, and pushes wait"
        );
        assert_eq!(said.reason.as_deref(), Some("connection refused"));
        assert!(said.fields.iter().any(|field| field.name == "Look" && field.text.contains("systemctl status docker")));
        let remote = Outage { address: "tcp://10.0.0.7:2375".into(), ..outage() };
        assert!(!down(&remote, None).fields.iter().any(|field| field.text.contains("systemctl")));
    }

    #[test]
    fn its_return_says_how_long_it_was_away() {
        let said = up(&outage(), None);
        assert_eq!(
            said.headline,
            "The Docker engine at unix:///var/run/docker.sock answers again after 12 m 3 s; what waited goes on"
        );
    }
}
