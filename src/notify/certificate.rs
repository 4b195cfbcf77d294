//! What to say about a certificate that cannot be had, and when it can. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::message::{Field, Message, Tone};
use super::text::duration;
use crate::model::shorten;
use crate::store::{CertificateAlert, CertificateTrouble};
use crate::text::{one_line, thousands};

/// Characters of what is wrong.
const WHY: usize = 300;

/// That it cannot be ordered or renewed, or the authority not be used.
pub(super) fn failed(alert: &CertificateAlert, link: Option<String>) -> Message {
    let CertificateTrouble { host, directory, since, good_until, .. } = &alert.trouble;
    let (since, ends) = (clock(*since), good_until.map(clock));
    let why = shorten(&one_line(&alert.trouble.why), WHY);
    let (headline, title) = match (host, &ends) {
        (Some(host), Some(ends)) => (
            format!("The certificate of {host} could not be renewed: it ends {ends}, and then clients refuse it"),
            format!("{host}: the certificate is not renewed"),
        ),
        (Some(host), None) => (
            format!(
                "{host} has no certificate: none could be ordered since {since}, and clients cannot reach it by https"
            ),
            format!("{host}: no certificate"),
        ),
        (None, _) => (
            format!(
                "The certificate authority {directory} could not be used since {since}: no certificate is ordered or renewed"
            ),
            "Certificate authority: cannot be used".to_owned(),
        ),
    };
    let look = match host {
        Some(host) => format!(
            "longshore status, which says when it is tried again; whether {host} leads to this server, and the authority can \
             reach it"
        ),
        None => {
            "longshore status, which says when it is tried again; whether this server reaches the authority".to_owned()
        }
    };
    let mut fields = vec![field("Since", since), field("Tries", thousands(alert.trouble.times.into()))];
    let meanwhile = match (host, ends) {
        (Some(_), None) => None,
        (Some(_), Some(ends)) => Some(format!("clients are shown the one that ends {ends}")),
        (None, Some(ends)) => Some(format!("those that there are go on being served; the first one ends {ends}")),
        (None, None) => Some("no host has one".to_owned()),
    };
    fields.extend(meanwhile.map(|meanwhile| field("Meanwhile", meanwhile)));
    fields.push(field("Next", "it is tried again by itself, at growing pauses of up to half a day".to_owned()));
    fields.push(field("Look", look));
    Message {
        headline,
        title,
        link,
        reason: Some(why).filter(|why| !why.is_empty()),
        log: Vec::new(),
        fields,
        footer: footer(alert),
        tone: Tone::Bad,
        at: alert.trouble.since,
    }
}

/// That it is in order again.
pub(super) fn issued(alert: &CertificateAlert, link: Option<String>) -> Message {
    let CertificateTrouble { host, directory, since, .. } = &alert.trouble;
    let ended = alert.ended_at.unwrap_or(*since);
    let lasted = duration(Duration::try_from(ended.duration_since(*since)).unwrap_or_default());
    let (headline, title) = match host {
        Some(host) => {
            let until = alert.issued_until.map(|until| format!(", good until {}", clock(until))).unwrap_or_default();
            (format!("{host} has a new certificate{until}"), format!("{host}: has a certificate"))
        }
        None => (
            format!("The certificate authority {directory} can be used again; what is due is ordered"),
            "Certificate authority: can be used again".to_owned(),
        ),
    };
    Message {
        headline,
        title,
        link,
        reason: None,
        log: Vec::new(),
        fields: vec![field("Lasted", lasted)],
        footer: footer(alert),
        tone: Tone::Good,
        at: ended,
    }
}

fn footer(alert: &CertificateAlert) -> String {
    format!("certificate alert {}", alert.id)
}

fn field(name: &'static str, text: String) -> Field {
    Field { name, text, link: None, short: matches!(name, "Since" | "Tries" | "Lasted") }
}

/// `2026-09-22 14:03:22 UTC`: the reader may sit elsewhere.
fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::notify::discord::Payload;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn alert(host: Option<&str>, good_until: Option<i64>) -> CertificateAlert {
        CertificateAlert {
            id: 3,
            trouble: CertificateTrouble {
                host: host.map(str::to_owned),
                directory: "https://ca.example/dir".into(),
                why: "no valid A records\nfound @everyone (dns)".into(),
                times: 4,
                since: at(0),
                good_until: good_until.map(at),
            },
            ended_at: Some(at(723)),
            issued_until: Some(at(90 * 24 * 3600)),
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_ordered_is_told_with_the_authoritys_words() {
        let told = Payload::new(&failed(&alert(Some("shop.test"), None), Some("https://deploy.example.com".into())));
        assert_snapshot!(serde_json::to_string_pretty(&told).unwrap(), @r##"
        {
          "content": "shop.test has no certificate: none could be ordered since 2026-09-21 14:13:20 UTC, and clients cannot reach it by https",
          "username": "longshore",
          "embeds": [
            {
              "title": "shop.test: no certificate",
              "url": "https://deploy.example.com",
              "description": "no valid A records found \\@everyone \\(dns\\)",
              "color": 15680580,
              "fields": [
                {
                  "name": "Since",
                  "value": "2026-09-21 14:13:20 UTC",
                  "inline": true
                },
                {
                  "name": "Tries",
                  "value": "4",
                  "inline": true
                },
                {
                  "name": "Next",
                  "value": "it is tried again by itself, at growing pauses of up to half a day",
                  "inline": false
                },
                {
                  "name": "Look",
                  "value": "longshore status, which says when it is tried again; whether shop.test leads to this server, and the authority can reach it",
                  "inline": false
                }
              ],
              "footer": {
                "text": "certificate alert 3"
              },
              "timestamp": "2026-09-21T14:13:20Z"
            }
          ],
          "allowed_mentions": {
            "parse": []
          }
        }
        "##);
    }

    fn shown(message: &Message) -> String {
        let fields: Vec<String> =
            message.fields.iter().map(|field| format!("{}: {}", field.name, field.text)).collect();
        format!("{}\n{}\n{}", message.headline, message.title, fields.join("\n"))
    }

    #[test]
    fn a_renewal_and_an_authority_that_fail_say_what_is_served_meanwhile() {
        assert_snapshot!(shown(&failed(&alert(Some("shop.test"), Some(9 * 24 * 3600)), None)), @"
        The certificate of shop.test could not be renewed: it ends 2026-09-30 14:13:20 UTC, and then clients refuse it
        shop.test: the certificate is not renewed
        Since: 2026-09-21 14:13:20 UTC
        Tries: 4
        Meanwhile: clients are shown the one that ends 2026-09-30 14:13:20 UTC
        Next: it is tried again by itself, at growing pauses of up to half a day
        Look: longshore status, which says when it is tried again; whether shop.test leads to this server, and the authority can reach it
        ");
        assert_snapshot!(shown(&failed(&alert(None, Some(9 * 24 * 3600)), None)), @"
        The certificate authority https://ca.example/dir could not be used since 2026-09-21 14:13:20 UTC: no certificate is ordered or renewed
        Certificate authority: cannot be used
        Since: 2026-09-21 14:13:20 UTC
        Tries: 4
        Meanwhile: those that there are go on being served; the first one ends 2026-09-30 14:13:20 UTC
        Next: it is tried again by itself, at growing pauses of up to half a day
        Look: longshore status, which says when it is tried again; whether this server reaches the authority
        ");
    }

    #[test]
    fn the_all_clear_says_until_when_it_is_good() {
        assert_snapshot!(shown(&issued(&alert(Some("shop.test"), None), None)), @"
        shop.test has a new certificate, good until 2026-12-20 14:13:20 UTC
        shop.test: has a certificate
        Lasted: 12 m 3 s
        ");
        assert_snapshot!(shown(&issued(&alert(None, None), None)), @"
        The certificate authority https://ca.example/dir can be used again; what is due is ordered
        Certificate authority: can be used again
        Lasted: 12 m 3 s
        ");
    }
}
