//! GitHub's deliveries (and those of GitHub Enterprise Server): what a verified body says for one app.
//!
//! <https://docs.github.com/en/webhooks/webhook-events-and-payloads>

use std::borrow::Cow;
use std::net::IpAddr;

use super::payload::{Fact, Facts};
use super::{Heard, Push, Refusal, one_line};
use crate::config::{App, RepoUrl};
use crate::model::{CommitSha, GitRef};

/// Characters kept of names and subjects.
const SHOWN: usize = 200;
/// GitHub's delivery ids are GUIDs; others may be a little longer.
const LONGEST_DELIVERY: usize = 128;

/// How the payload is packed into the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/x-www-form-urlencoded`, the JSON in the field `payload`.
    Form,
}

impl Format {
    /// What a Content-Type stands for; `None` for any that GitHub does not send.
    pub fn of_content_type(value: &str) -> Option<Self> {
        let essence = value.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Some(Self::Form)
        } else {
            None
        }
    }
}

/// A delivery whose signature is right.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// `X-GitHub-Event`
    pub event: Option<&'a str>,
    /// `X-GitHub-Delivery`
    pub id: Option<&'a str>,
    /// From the Content-Type.
    pub format: Format,
    /// As it came.
    pub body: &'a [u8],
}

/// What `delivery` says for `app`.
pub fn hear(app: &App, delivery: Delivery<'_>) -> Result<Heard, Refusal> {
    let event = delivery.event.ok_or_else(|| Refusal::Unreadable("X-GitHub-Event is missing".into()))?;
    if let Some(id) = delivery.id
        && !(1..=LONGEST_DELIVERY).contains(&id.len())
    {
        return Err(Refusal::Unreadable(format!("X-GitHub-Delivery must have 1 to {LONGEST_DELIVERY} characters")));
    }
    match event {
        "push" => {
            let json = unpack(delivery.format, delivery.body)?;
            push(app, &Facts::read(&json)?, delivery.id)
        }
        "ping" => {
            let json = unpack(delivery.format, delivery.body)?;
            ping(app, &Facts::read(&json)?)
        }
        other => Ok(Heard::Ignored(format!("event {:?}: only push leads to a deployment", one_line(other, 60)))),
    }
}

fn unpack(format: Format, body: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if format == Format::Json {
        return Ok(Cow::Borrowed(body));
    }
    let mut payloads = form_urlencoded::parse(body).filter(|(name, _)| name == "payload").map(|(_, value)| value);
    match (payloads.next(), payloads.next()) {
        (Some(Cow::Borrowed(json)), None) => Ok(Cow::Borrowed(json.as_bytes())),
        (Some(Cow::Owned(json)), None) => Ok(Cow::Owned(json.into_bytes())),
        (None, _) => Err(Refusal::Unreadable("the form has no field `payload`".into())),
        (Some(_), Some(_)) => Err(Refusal::Unreadable("the form has the field `payload` more than once".into())),
    }
}

fn push(app: &App, facts: &Facts<'_>, delivery: Option<&str>) -> Result<Heard, Refusal> {
    check_repository(app, facts.full_name.required("repository.full_name")?)?;
    let git_ref: GitRef =
        facts.git_ref.required("ref")?.parse().map_err(|err| Refusal::invalid("ref", format!("ref: {err}")))?;
    let after = commit("after", facts.after.required("after")?)?;
    let before = match facts.before {
        Fact::Absent => None,
        ref before => Some(commit("before", before.required("before")?)?),
    };
    let deleted = facts.deleted.flag("deleted")? || after.is_zero();
    let forced = facts.forced.flag("forced")?;

    if let Some(why) = not_ours(&app.branch, &git_ref) {
        return Ok(Heard::Ignored(why));
    }
    if deleted {
        return Ok(Heard::Ignored(branch_deleted(&app.branch)));
    }
    Ok(Heard::Push(Push {
        git_ref,
        before: before.filter(|before| !before.is_zero()),
        after,
        forced,
        pusher: shown(&facts.pusher),
        author: shown(&facts.author),
        subject: shown(&facts.message),
        delivery: delivery.map(str::to_owned),
    }))
}

fn ping(app: &App, facts: &Facts<'_>) -> Result<Heard, Refusal> {
    // A hook of an organisation is no repository's.
    if let Some(full_name) = facts.full_name.text() {
        check_repository(app, full_name)?;
    }
    let mut reason = String::from("ping: the hook works");
    if facts.content_type.text() == Some("form") {
        reason.push_str("; the content type application/json is the better choice");
    }
    if facts.insecure_ssl.text() == Some("1") {
        reason.push_str("; warning: SSL verification is disabled on GitHub's side, enable it");
    }
    Ok(Heard::Ignored(reason))
}

fn commit(field: &'static str, text: &str) -> Result<CommitSha, Refusal> {
    text.parse().map_err(|err| Refusal::invalid(field, format!("{field}: {err}")))
}

fn shown(fact: &Fact<'_>) -> Option<String> {
    let first_line = fact.text()?.trim_start().lines().next()?;
    Some(one_line(first_line, SHOWN)).filter(|line| !line.is_empty())
}

/// Why a ref is not the app's branch; `None` when it is.
pub(super) fn not_ours(branch: &str, git_ref: &GitRef) -> Option<String> {
    let shown = |name: &str| one_line(name, 80);
    match git_ref.branch() {
        Some(pushed) if pushed == branch => None,
        Some(pushed) => Some(format!("branch {}: only branch {branch} is deployed", shown(pushed))),
        None => Some(match git_ref.as_str().strip_prefix("refs/tags/") {
            Some(tag) => format!("tag {}: only branch {branch} is deployed", shown(tag)),
            None => format!("{}: only branch {branch} is deployed", shown(git_ref.as_str())),
        }),
    }
}

/// What is said of a deletion.
pub(super) fn branch_deleted(branch: &str) -> String {
    format!("branch {branch} was deleted: nothing is deployed, and what runs stays as it is")
}

fn check_repository(app: &App, full_name: &str) -> Result<(), Refusal> {
    match full_name_of(&app.repo) {
        Some(ours) if !ours.eq_ignore_ascii_case(full_name) => Err(Refusal::invalid(
            "repository.full_name",
            format!(
                "this hook belongs to {ours}, the delivery is from {}: move the hook, or correct the app's repo",
                one_line(full_name, 140)
            ),
        )),
        _ => Ok(()),
    }
}

/// The `owner/name` that GitHub must report for a repository.
///
/// On a remote host that is the whole path, so that no longer path and no other owner passes. On a loopback
/// address, where only stand-ins live, it is the last two segments of the path. A local path, and a loopback address
/// with fewer than two segments, has no owner that could be compared: then the secret alone binds the hook to the
/// app, and what is fetched is the configured repository in any case.
fn full_name_of(repo: &RepoUrl) -> Option<String> {
    let (host, path) = match repo {
        RepoUrl::Local(_) => return None,
        RepoUrl::Ssh { host, path, .. } => (host.as_str(), path.as_str()),
        RepoUrl::Http { url, authority } => {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            (host_of(authority), rest.split_once('/').map_or("", |(_, path)| path))
        }
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    if !is_loopback(host) {
        return Some(path.to_owned());
    }
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let (name, owner) = (segments.next()?, segments.next()?);
    Some(format!("{owner}/{name}"))
}

/// The host of `host`, `host:port` or `[address]:port`.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::trigger::testing::app;
    use serde_json::{Value, json};

    fn https(url: &str) -> RepoUrl {
        let authority = url.split('/').nth(2).unwrap().to_owned();
        RepoUrl::Http { url: url.into(), authority }
    }

    fn shop() -> App {
        app("shop", https("https://github.com/example/shop.git"))
    }

    fn sha(digit: char) -> String {
        digit.to_string().repeat(40)
    }

    /// A plain update of `main` with two commits, as GitHub sends it, cut to the fields that differ between kinds.
    fn update() -> Value {
        json!({
            "ref": "refs/heads/main", "before": sha('a'), "after": sha('b'),
            "created": false, "deleted": false, "forced": false, "base_ref": null,
            "compare": "https://github.com/example/shop/compare/aaaaaaaaaaaa...bbbbbbbbbbbb",
            "repository": {"id": 1, "full_name": "example/shop", "owner": {"name": "example"}, "created_at": 1_700_000_000},
            "pusher": {"name": "ada", "email": "ada@example.com"},
            "sender": {"login": "ada"},
            "commits": [{"id": sha('c'), "message": "One"}, {"id": sha('b'), "message": "Two"}],
            "head_commit": {
                "id": sha('b'), "message": "Sell “tea”\n\nAt last.\n",
                "author": {"name": "Ada Lovelace", "email": "ada@example.com"},
                "committer": {"name": "GitHub"},
            },
            "a_field_of_next_year": {"nested": [[[]]]},
        })
    }

    fn with(changes: Value) -> Value {
        let mut body = update();
        for (key, value) in changes.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    }

    fn without(key: &str) -> Value {
        let mut body = update();
        body.as_object_mut().unwrap().remove(key);
        body
    }

    fn hear_event(app: &App, event: &str, body: &Value) -> Result<Heard, Refusal> {
        let body = body.to_string();
        hear(app, Delivery { event: Some(event), id: Some("guid-1"), format: Format::Json, body: body.as_bytes() })
    }

    fn pushed(body: &Value) -> Push {
        match hear_event(&shop(), "push", body).unwrap() {
            Heard::Push(push) => push,
            Heard::Ignored(why) => panic!("ignored: {why}"),
        }
    }

    fn ignored(event: &str, body: &Value) -> String {
        match hear_event(&shop(), event, body).unwrap() {
            Heard::Ignored(why) => why,
            Heard::Push(push) => panic!("{push:?}"),
        }
    }

    fn refused_field(body: &Value) -> (&'static str, String) {
        match hear_event(&shop(), "push", body).unwrap_err() {
            Refusal::Invalid { field, detail } => (field, detail),
            Refusal::Unreadable(why) => panic!("{why}"),
        }
    }

    #[test]
    fn an_update_of_the_branch_is_a_push() {
        let expected = Push {
            git_ref: "refs/heads/main".parse().unwrap(),
            before: Some(sha('a').parse().unwrap()),
            after: sha('b').parse().unwrap(),
            forced: false,
            pusher: Some("ada".into()),
            author: Some("Ada Lovelace".into()),
            subject: Some("Sell “tea”".into()),
            delivery: Some("guid-1".into()),
        };
        assert_eq!(pushed(&update()), expected);
        assert!(pushed(&with(json!({"forced": true}))).forced);
        let created = pushed(&with(json!({"created": true, "before": sha('0')})));
        assert_eq!(created.before, None);
        let bare = pushed(&with(json!({"head_commit": null, "pusher": null, "commits": [], "before": null})));
        assert_eq!((bare.author, bare.subject, bare.pusher, bare.before), (None, None, None, None));
        let long = pushed(&with(json!({"after": "b".repeat(64), "before": "0".repeat(64)})));
        assert_eq!((long.after.as_str().len(), long.before), (64, None));
    }

    #[test]
    fn the_form_packing_says_the_same() {
        let body: String = form_urlencoded::Serializer::new("first=1&".to_owned())
            .append_pair("payload", &update().to_string())
            .finish();
        let packed = |body: &str| {
            hear(
                &shop(),
                Delivery { event: Some("push"), id: Some("guid-1"), format: Format::Form, body: body.as_bytes() },
            )
        };
        assert_eq!(packed(&body).unwrap(), Heard::Push(pushed(&update())));
        assert_eq!(packed("a=b").unwrap_err().to_string(), "the form has no field `payload`");
        assert!(packed(&format!("{body}&payload=%7B%7D")).is_err(), "two payloads");
        assert!(packed("payload=%7B%22ref%22").unwrap_err().to_string().contains("at byte 6"));
    }

    #[test]
    fn other_refs_are_ignored_with_a_reason() {
        let refs = [
            ("refs/heads/next", "branch next: only branch main is deployed"),
            ("refs/heads/größe", "branch größe: only branch main is deployed"),
            ("refs/heads/refs/heads/main", "branch refs/heads/main: only branch main is deployed"),
            ("refs/heads/main2", "branch main2: only branch main is deployed"),
            ("refs/tags/main", "tag main: only branch main is deployed"),
            ("refs/notes/commits", "refs/notes/commits: only branch main is deployed"),
        ];
        for (git_ref, reason) in refs {
            assert_eq!(ignored("push", &with(json!({"ref": git_ref}))), reason);
        }
        let annotated = with(json!({"ref": "refs/tags/v1", "created": true, "base_ref": "refs/heads/main"}));
        assert!(ignored("push", &annotated).starts_with("tag v1"));
        let gone = with(json!({"deleted": true, "after": sha('0'), "head_commit": null, "commits": []}));
        assert!(ignored("push", &gone).starts_with("branch main was deleted"));
        assert!(ignored("push", &with(json!({"after": sha('0')}))).contains("deleted"), "all zeros mean deleted");
    }

    #[test]
    fn a_branch_outside_ascii_is_deployed() {
        let mut app = shop();
        app.branch = "größe/☃".into();
        let body = with(json!({"ref": "refs/heads/größe/☃"}));
        assert!(matches!(hear_event(&app, "push", &body), Ok(Heard::Push(_))));
    }

    #[test]
    fn other_events_are_ignored_unread() {
        for event in ["issues", "pull_request", "create", "delete", "workflow_run"] {
            assert!(ignored(event, &json!(null)).starts_with(&format!("event {event:?}")));
        }
        let ping = |config: Value| ignored("ping", &json!({"zen": "x", "hook_id": 1, "hook": {"config": config}}));
        assert_eq!(ping(json!({"content_type": "json", "insecure_ssl": "0"})), "ping: the hook works");
        let warned = ping(json!({"content_type": "form", "insecure_ssl": "1"}));
        assert!(warned.contains("application/json") && warned.contains("SSL verification is disabled"), "{warned}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(refused_field(&without("ref")), ("ref", "ref is missing".into()));
        assert_eq!(refused_field(&without("after")).0, "after");
        assert_eq!(
            refused_field(&without("repository")),
            ("repository.full_name", "repository.full_name is missing".into())
        );
        for bad in
            [json!("b".repeat(39)), json!("g".repeat(40)), json!("B".repeat(40)), json!(7), json!(null), json!([])]
        {
            assert_eq!(refused_field(&with(json!({"after": bad}))).0, "after");
        }
        let (field, detail) = refused_field(&with(json!({"ref": format!("refs/heads/{}", "x".repeat(5000))})));
        assert!(field == "ref" && detail.len() < 300, "{detail}");
        for bad in ["main", "refs/heads/", "refs/heads/a b", "refs/heads/../x", "refs/heads/a\u{0}"] {
            assert_eq!(refused_field(&with(json!({"ref": bad}))).0, "ref");
        }
        assert_eq!(refused_field(&with(json!({"before": "x"}))).0, "before");
        assert_eq!(refused_field(&with(json!({"forced": "yes"}))).0, "forced");
        let delivery = Delivery { event: None, id: None, format: Format::Json, body: b"{}" };
        assert_eq!(hear(&shop(), delivery).unwrap_err().to_string(), "X-GitHub-Event is missing");
        let delivery = Delivery { event: Some("push"), id: Some(&"x".repeat(129)), ..delivery };
        assert!(hear(&shop(), delivery).unwrap_err().to_string().contains("X-GitHub-Delivery"));
    }

    #[test]
    fn a_hook_is_bound_to_its_repository() {
        let named = |repo: RepoUrl, full_name: &str| {
            let body = with(json!({"repository": {"full_name": full_name}}));
            hear_event(&app("shop", repo), "push", &body).is_ok()
        };
        let ssh = |host: &str, path: &str| RepoUrl::Ssh {
            user: "git".into(),
            host: host.into(),
            port: 22,
            path: path.into(),
        };
        let github = || https("https://github.com/example/shop.git");
        assert!(named(github(), "Example/Shop"));
        for stranger in
            ["evil/shop", "example/shop-prod", "example/shop.git", "shop", "x/example/shop", "example/shop/", ""]
        {
            assert!(!named(github(), stranger), "{stranger}");
        }
        assert!(named(https("https://github.com/example/shop"), "example/shop"));
        assert!(named(https("https://ghe.example.com:8443/example/shop.git/"), "example/shop"));
        assert!(
            !named(https("https://example.com/git/example/shop.git"), "example/shop"),
            "another path is another repository"
        );
        assert!(named(ssh("github.com", "example/shop.git"), "example/shop"));
        assert!(named(ssh("github.com", "/example/shop.git"), "example/shop"));
        assert!(!named(ssh("github.com", "evil/shop.git"), "example/shop"));

        let message = refused_field(&with(json!({"repository": {"full_name": "evil/\u{1b}[31mshop"}}))).1;
        assert!(message.starts_with("this hook belongs to example/shop, the delivery is from evil/shop"), "{message}");

        assert!(named(https("http://127.0.0.1:3000/git/example/shop.git"), "example/shop"));
        assert!(named(https("http://[::1]:3000/example/shop"), "example/shop"));
        assert!(!named(https("http://localhost:3000/example/shop.git"), "evil/shop"));
        assert!(named(https("http://127.0.0.1:3000/shop.git"), "anybody/shop"));
        assert!(named(RepoUrl::Local(PathBuf::from("/srv/git/shop.git")), "anybody/shop"));
        assert!(!named(https("http://127.0.0.1.evil.example/shop.git"), "anybody/shop"), "only an address is loopback");
    }
}
