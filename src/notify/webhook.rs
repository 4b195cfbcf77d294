//! Requests to a Discord webhook, and what their answers mean. The address is a secret: it is in no error and no log.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::Target;
use super::discord::Payload;
use crate::model::shorten;
use crate::text::with_causes;

/// Discord's hosts that serve webhooks.
const HOSTS: [&str; 6] = [
    "discord.com",
    "canary.discord.com",
    "ptb.discord.com",
    "discordapp.com",
    "canary.discordapp.com",
    "ptb.discordapp.com",
];

/// Of an answer's body; a message comes back whole and is a few KiB.
const MAX_BODY: usize = 256 * 1024;
/// No server may silence a receiver for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// "Unknown message" in Discord's table of JSON error codes.
const UNKNOWN_MESSAGE: i64 = 10008;

/// A webhook that can be posted to.
pub(super) struct Webhook {
    client: Client,
    address: Url,
}

/// What a request led to.
#[derive(Debug, PartialEq)]
#[must_use]
pub(super) enum Answer {
    /// It is shown.
    Told {
        /// The message's id, for editing it.
        message: Option<String>,
        /// How long to wait before the next request, when this one used up the allowance.
        rest: Option<Duration>,
    },
    /// Too many requests: again after this long.
    Limited(Duration),
    /// The message to edit is not there any more.
    MessageGone,
    /// The webhook was deleted, or its address is wrong: asking again would not help.
    WebhookGone(String),
    /// This message is not acceptable; another may be.
    Refused(String),
    /// No answer, or the server's own trouble: again later.
    Unavailable(String),
}

impl Webhook {
    /// Checks the address and prepares a client. The error is a whole sentence without the address.
    pub(super) fn new(target: &Target, timeout: Duration) -> Result<Self, String> {
        let (address, local) = check_address(target.url.expose_secret(), target.allow_local)?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err("no TLS provider is installed in this process".to_owned());
        }
        let mut builder = Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(timeout);
        builder = match local {
            // Neither an HTTP proxy nor a name server decides where a local address leads.
            true => builder.no_proxy().resolve_to_addrs(
                "localhost",
                &[([127, 0, 0, 1], 0).into(), (std::net::Ipv6Addr::LOCALHOST, 0).into()],
            ),
            false => builder.https_only(true),
        };
        let client = builder.build().map_err(|err| {
            format!(
                "no HTTPS client can be made ({}): install the system's CA certificates, or point SSL_CERT_FILE to them",
                describe(err)
            )
        })?;
        Ok(Self { client, address })
    }

    /// Posts a new message.
    pub(super) async fn post(&self, payload: &Payload) -> Answer {
        let mut address = self.address.clone();
        // Without it Discord answers before the message is stored, and without its id.
        address.query_pairs_mut().append_pair("wait", "true");
        self.send(Method::POST, address, payload).await
    }

    /// Replaces the content of a message posted before.
    pub(super) async fn edit(&self, message: &str, payload: &Payload) -> Answer {
        if !is_snowflake(message) {
            return Answer::MessageGone;
        }
        let mut address = self.address.clone();
        address.set_path(&format!("{}/messages/{message}", self.address.path()));
        self.send(Method::PATCH, address, &payload.for_edit()).await
    }

    async fn send(&self, method: Method, address: Url, payload: &Payload) -> Answer {
        let edit = method == Method::PATCH;
        let response = match self.client.request(method, address).json(payload).send().await {
            Ok(response) => response,
            Err(err) => return Answer::Unavailable(describe(err)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        match read_body(response).await {
            Ok(body) => interpret(edit, status, &headers, &body),
            // The status alone tells that a message is shown; without a body it cannot be edited later.
            Err(_) if status.is_success() => interpret(edit, status, &headers, b""),
            Err(err) => Answer::Unavailable(describe(err)),
        }
    }
}

/// The webhook's address with the query it needs in a thread, and whether it is local.
fn check_address(text: &str, allow_local: bool) -> Result<(Url, bool), String> {
    let wrong = |what: &str| {
        format!(
            "the Discord webhook's address {what}: copy it from the channel's settings (https://discord.com/api/webhooks/ID/TOKEN)"
        )
    };
    let mut address = Url::parse(text.trim()).map_err(|err| wrong(&format!("is no URL ({err})")))?;
    if !address.username().is_empty() || address.password().is_some() {
        return Err(wrong("holds a user name or password"));
    }
    let local = match address.host_str() {
        Some("localhost") => true,
        // Url has brought every spelling of an address into its one normal form.
        Some(host) => host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        None => return Err(wrong("names no host")),
    };
    if local && !allow_local {
        return Err(wrong("leads to this machine, which needs allow_local = true"));
    }
    if !local {
        if address.scheme() != "https" || address.port().is_some() {
            return Err(wrong("is not https on its usual port"));
        }
        if !address.host_str().is_some_and(|host| HOSTS.contains(&host)) {
            return Err(wrong("is not on one of Discord's hosts"));
        }
        if !is_webhook_path(address.path()) {
            return Err(wrong("has another path than /api/webhooks/ID/TOKEN"));
        }
    }
    let thread = address.query_pairs().find(|(key, _)| key == "thread_id").map(|(_, id)| id.into_owned());
    address.set_fragment(None);
    address.set_query(None);
    if let Some(thread) = thread {
        address.query_pairs_mut().append_pair("thread_id", &thread);
    }
    let path = address.path().trim_end_matches('/').to_owned();
    address.set_path(&path);
    Ok((address, local))
}

/// `/api/webhooks/ID/TOKEN` or `/api/vN/webhooks/ID/TOKEN`
fn is_webhook_path(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').skip(1).collect();
    let is_version = |part: &str| part.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.parse::<u8>().is_ok());
    let is_token =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    match parts.as_slice() {
        ["api", "webhooks", id, token] => is_snowflake(id) && is_token(token),
        ["api", version, "webhooks", id, token] => is_version(version) && is_snowflake(id) && is_token(token),
        _ => false,
    }
}

/// Discord's ids: 64-bit numbers in decimal.
fn is_snowflake(text: &str) -> bool {
    !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit())
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() < MAX_BODY
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What we read of Discord's answers: of a message, of an error, of "You are being rate limited".
#[derive(Default, Deserialize)]
struct Body {
    id: Option<String>,
    code: Option<i64>,
    retry_after: Option<f64>,
}

fn interpret(edit: bool, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let said = || format!("{status}: {:?}", shorten(&String::from_utf8_lossy(body), 500));
    let parsed: Body = serde_json::from_slice(body).unwrap_or_default();
    match status.as_u16() {
        200..=299 => Answer::Told { message: parsed.id.filter(|id| is_snowflake(id)), rest: rest(headers) },
        429 => Answer::Limited(limited(parsed.retry_after, headers)),
        // An edit of a message that is gone has its own code; a 404 without one is asked again as a new message.
        404 if edit && parsed.code.is_none_or(|code| code == UNKNOWN_MESSAGE) => Answer::MessageGone,
        300..=399 => Answer::WebhookGone(format!("{status}: it has moved, and redirects are not followed")),
        401 | 403 | 404 => Answer::WebhookGone(format!("the webhook was deleted or its url is wrong, {}", said())),
        408 | 425 | 500.. => Answer::Unavailable(status.to_string()),
        _ => Answer::Refused(said()),
    }
}

/// Discord's body is more precise than its header; a proxy in front of it sends the header alone.
fn limited(retry_after: Option<f64>, headers: &HeaderMap) -> Duration {
    let seconds = [retry_after, seconds(headers, "retry-after"), rest(headers).map(|rest| rest.as_secs_f64())];
    seconds.into_iter().flatten().find_map(wait).unwrap_or(Duration::from_secs(1))
}

/// How long until the allowance is renewed, when none of it is left.
fn rest(headers: &HeaderMap) -> Option<Duration> {
    let none_left = seconds(headers, "x-ratelimit-remaining").is_some_and(|left| left < 1.0);
    seconds(headers, "x-ratelimit-reset-after").filter(|_| none_left).and_then(wait)
}

fn seconds(headers: &HeaderMap, name: &str) -> Option<f64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn wait(seconds: f64) -> Option<Duration> {
    // Rounded up: a request that comes too early counts against us.
    Duration::try_from_secs_f64(seconds).ok().map(|wait| (wait + Duration::from_millis(1)).min(LONGEST_WAIT))
}

/// An error with its causes, without the address.
fn describe(err: reqwest::Error) -> String {
    if err.is_timeout() {
        return "no answer in time".to_owned();
    }
    with_causes(&err.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_discord_or_where_allowed_this_machine_is_addressed() {
        let good = [
            "https://discord.com/api/webhooks/12/a-b_c.D",
            "https://canary.discord.com/api/v10/webhooks/12/tok",
            " https://discordapp.com:443/api/webhooks/12/tok/\n",
            "https://DISCORD.com/api/webhooks/12/tok?thread_id=5",
        ];
        for address in good {
            assert!(check_address(address, false).is_ok(), "{address}");
        }
        let bad = [
            "http://discord.com/api/webhooks/12/tok",
            "https://discord.com:8443/api/webhooks/12/tok",
            "https://discord.com.evil.test/api/webhooks/12/tok",
            "https://evil.test/discord.com/api/webhooks/12/tok",
            "https://discord.com@evil.test/api/webhooks/12/tok",
            "https://x:y@discord.com/api/webhooks/12/tok",
            "https://discord.com/api/webhooks/12/tok/slack",
            "https://discord.com/api/webhooks/x/tok",
            "https://discord.com/api/users/@me",
            "https://discord.com/api/webhooks/12/..%2f..",
            "https://169.254.169.254/api/webhooks/12/tok",
            "https://169.254.169.254.nip.io/api/webhooks/12/tok",
            "https://[::ffff:7f00:1]/api/webhooks/12/tok",
            "https://100.64.0.1/api/webhooks/12/tok",
            "https://localhost./api/webhooks/12/tok",
            "file:///etc/passwd",
            "discord",
            "",
        ];
        for address in bad {
            assert!(check_address(address, true).is_err(), "{address}");
        }
        for local in
            ["http://127.0.0.1:9/x", "http://localhost:9/x", "http://[::1]/x", "http://2130706433/x", "http://127.1/x"]
        {
            assert!(check_address(local, true).is_ok_and(|(_, local)| local), "{local}");
            assert!(check_address(local, false).is_err_and(|err| err.contains("allow_local")), "{local}");
        }
    }

    #[test]
    fn errors_do_not_tell_the_address() {
        for address in ["https://evil.test/secret", "not a url: secret", "http://secret@127.0.0.1/"] {
            let err = check_address(address, false).unwrap_err();
            assert!(!err.contains("secret") && !err.contains("evil"), "{err}");
        }
    }

    #[test]
    fn a_thread_is_kept_and_other_queries_are_not() {
        let (address, _) =
            check_address("https://discord.com/api/webhooks/1/t/?wait=false&thread_id=7#x", false).unwrap();
        assert_eq!(address.as_str(), "https://discord.com/api/webhooks/1/t?thread_id=7");
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn answers_mean_what_discord_documents() {
        let answer = |edit, status: u16, pairs: &[_], body: &str| {
            interpret(edit, StatusCode::from_u16(status).unwrap(), &headers(pairs), body.as_bytes())
        };
        let ms = |n: u64| Duration::from_millis(n + 1);
        let told = |message: Option<&str>, rest| Answer::Told { message: message.map(str::to_owned), rest };

        assert_eq!(answer(false, 200, &[], r#"{"id":"12"}"#), told(Some("12"), None));
        assert_eq!(answer(false, 204, &[], ""), told(None, None));
        assert_eq!(answer(false, 200, &[], "<html>"), told(None, None));
        assert_eq!(answer(false, 200, &[], r#"{"id":"../../x"}"#), told(None, None));
        let empty = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "0.25")];
        assert_eq!(answer(false, 200, &empty, r#"{"id":"1"}"#), told(Some("1"), Some(ms(250))));
        let left = [("x-ratelimit-remaining", "4"), ("x-ratelimit-reset-after", "2")];
        assert_eq!(answer(false, 200, &left, r#"{"id":"1"}"#), told(Some("1"), None));

        assert_eq!(
            answer(false, 429, &[("retry-after", "65")], r#"{"retry_after":64.5}"#),
            Answer::Limited(ms(64_500))
        );
        assert_eq!(answer(false, 429, &[("retry-after", "65")], "<html>"), Answer::Limited(ms(65_000)));
        assert_eq!(answer(false, 429, &empty, ""), Answer::Limited(ms(251)));
        assert_eq!(answer(false, 429, &[], r#"{"retry_after":-1}"#), Answer::Limited(Duration::from_secs(1)));
        assert_eq!(answer(false, 429, &[], r#"{"retry_after":1e300}"#), Answer::Limited(Duration::from_secs(1)));
        assert_eq!(answer(false, 429, &[("retry-after", "999999999")], ""), Answer::Limited(LONGEST_WAIT));

        assert_eq!(answer(true, 404, &[], r#"{"code":10008}"#), Answer::MessageGone);
        assert_eq!(answer(true, 404, &[], ""), Answer::MessageGone);
        assert!(matches!(answer(true, 404, &[], r#"{"code":10015}"#), Answer::WebhookGone(_)));
        for status in [301, 401, 403, 404] {
            assert!(matches!(answer(false, status, &[], ""), Answer::WebhookGone(_)), "{status}");
        }
        for status in [400, 405, 413] {
            assert!(
                matches!(answer(true, status, &[], "why"), Answer::Refused(why) if why.contains("why")),
                "{status}"
            );
        }
        for status in [408, 500, 502, 503, 504, 520] {
            assert!(matches!(answer(false, status, &[], ""), Answer::Unavailable(_)), "{status}");
        }
    }
}
