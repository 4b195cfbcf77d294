use super::*;
use crate::model::InstanceId;
use crate::notify::fixtures::{commit, facts};
use crate::store::ServiceServed;

fn headline_of(kind: News, change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = facts(kind);
    change(&mut facts);
    compose(&facts).headline
}

#[test]
fn operations_are_told_as_what_they_are() {
    let asked = |request: Request| {
        move |facts: &mut Facts| {
            facts.deployment.request = request;
            facts.deployment.trigger = Trigger::Cli;
        }
    };
    let rollback = || Request::Rollback { to: Some(ReleaseNumber(6)) };
    let scale = || Request::Scale { service: "web".parse().unwrap(), instances: 3 };
    let told = [
        headline_of(News::Started, asked(rollback())),
        headline_of(News::Succeeded, asked(rollback())),
        headline_of(News::Failed, asked(Request::Rollback { to: None })),
        headline_of(News::Started, asked(scale())),
        headline_of(News::Succeeded, asked(scale())),
        headline_of(News::RolledBack, asked(scale())),
        headline_of(News::Started, asked(Request::Restart)),
        headline_of(News::Cancelled, asked(Request::Restart)),
    ];
    insta::assert_snapshot!(told.join("\n"), @r"
    shop: rolling back to v6, by ada
    shop: rolled back, v7 is live again, by ada
    shop: the rollback to the last good release failed: the image could not be built: step 4 of 9 exited with code 1; v6 keeps serving
    shop: scaling web to 3, by ada
    shop: web runs 3 times now, by ada
    shop: scaling web to 3 was rolled back: web-2 exited with code 1 after 3 s; v6 keeps serving
    shop: restarting every instance, by ada
    shop: the restart was cancelled by Grace while it waited; v6 is live
    ");
}

#[test]
fn what_is_not_known_is_left_out() {
    let nothing = |facts: &mut Facts| {
        let record = &mut facts.deployment;
        (record.commit, record.author, record.subject, record.pusher, record.git_ref) = (None, None, None, None, None);
        record.reason = None;
        facts.serving = Serving::Unknown;
    };
    let told = News::ALL.map(|kind| headline_of(kind, nothing));
    insta::assert_snapshot!(told.join("\n"), @r"
    shop: deploying the branch's tip
    shop: v7 is live, the branch's tip
    shop: the branch's tip failed
    shop: the branch's tip was rolled back
    shop: the branch's tip was superseded by #13, bbbbbbb
    shop: the branch's tip was cancelled
    ");
    let mut empty = facts(News::Failed);
    nothing(&mut empty);
    empty.instances.clear();
    assert!(compose(&empty).fields.iter().all(|field| !field.text.is_empty()));
}

#[test]
fn a_release_is_only_said_to_serve_as_far_as_it_did() {
    let told = |services: &[(&str, u32, u32)], stand_ins: &[&str], why: Option<&str>| {
        let services = services.iter().map(|(service, serving, wanted)| ServiceServed {
            service: service.parse().unwrap(),
            wanted: *wanted,
            serving: *serving,
        });
        let stand_ins = stand_ins.iter().map(|id| InstanceId::parse(id).unwrap());
        let served =
            Served { services: services.collect(), stand_ins: stand_ins.collect(), why: why.map(str::to_owned) };
        let mut facts = facts(News::RolledBack);
        facts.deployment.reason = None;
        facts.serving = Serving::Release(ReleaseNumber(6), Some(served));
        compose(&facts).headline.split_once("; ").unwrap().1.to_owned()
    };
    let said = [
        told(&[("web", 2, 2), ("worker", 1, 1)], &[], None),
        told(&[("web", 0, 2), ("worker", 1, 1)], &[], Some("a secret\nis absent")),
        told(&[("web", 1, 2), ("worker", 2, 3)], &["d7-web-2"], None),
        told(&[("web", 0, 2)], &["d7-web-1", "d7-web-2"], Some("GREETING cannot be read")),
    ];
    insta::assert_snapshot!(said.join("\n"), @r"
    v6 keeps serving
    v6 is live, but no instance of web serves: a secret is absent
    v6 is live, but 1 of 2 instances of web serves, 2 of 3 instances of worker serve, and d7-web-2 stands in
    v6 is live, but no instance of web serves, and d7-web-1, d7-web-2 stand in: GREETING cannot be read
    ");
}

#[test]
fn a_headline_stays_one_readable_line() {
    let long = headline_of(News::Failed, |facts| {
        facts.deployment.author = Some("A".repeat(5000));
        facts.deployment.reason = Some(format!("\n\n{}\r\nmore", "x ".repeat(5000)));
    });
    assert!(long.chars().count() < 450 && !long.contains('\n'), "{long}");
    assert!(long.ends_with("…; v6 keeps serving"), "{long}");
}

#[test]
fn commits_link_to_where_their_page_is() {
    let http = |url: &str| RepoUrl::Http { url: url.into(), authority: String::new() };
    let ssh =
        |host: &str, path: &str| RepoUrl::Ssh { user: "git".into(), host: host.into(), port: 22, path: path.into() };
    let link = |repo: &RepoUrl, provider| commit_url(repo, provider, &commit('a'));
    let page = |base: &str| Some(format!("{base}/commit/{}", "a".repeat(40)));
    let github = Some(Provider::GitHub);

    assert_eq!(link(&http("https://github.com/example/shop.git"), None), page("https://github.com/example/shop"));
    assert_eq!(link(&http("https://github.com/example/shop/"), None), page("https://github.com/example/shop"));
    assert_eq!(link(&ssh("github.com", "example/shop.git"), None), page("https://github.com/example/shop"));
    assert_eq!(link(&ssh("ssh.github.com", "/example/shop"), None), page("https://github.com/example/shop"));
    assert_eq!(link(&http("https://git.corp.test:8443/a/b"), github), page("https://git.corp.test:8443/a/b"));

    for (repo, provider) in [
        (http("https://git.corp.test/a/b"), None),
        (http("https://github.com.evil.test/a/b"), None),
        (http("https://github.com/only"), github),
        (http("https://github.com/a/b/c"), github),
        (http("https://github.com/a/b)[x](javascript:1"), github),
        (ssh("github.com", "a/b c"), github),
        (RepoUrl::Local("/srv/git/shop.git".into()), github),
    ] {
        assert_eq!(link(&repo, provider), None, "{repo}");
    }
}
