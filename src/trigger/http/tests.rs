use std::time::Duration;

use axum::http::Method;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::config::{self, RepoUrl};
use crate::model::ReleaseNumber;
use crate::store::Finish;
use crate::trigger::testing::{SECRET, Server, app, push_body, shop, sign};

fn json_of(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|err| panic!("{err}: {:?}", response.body()))
}

fn finish(status: Status, reason: Option<&str>) -> Finish {
    Finish { status, reason: reason.map(str::to_owned), superseded_by: None, hold: false }
}

type Response<T> = axum::http::Response<T>;

#[tokio::test]
async fn a_push_is_on_disk_before_it_is_answered() {
    let server = Server::start([shop()]).await;
    let answer = server.deliver("push", "guid-1", &push_body('a', 'b')).await;
    assert_eq!(
        (answer.status(), json_of(&answer)),
        (StatusCode::ACCEPTED, json!({"decision": "queued", "deployment": 1}))
    );
    assert_eq!(answer.headers()["content-type"], "application/json");

    let record = server.store.deployment(DeploymentId(1)).await.unwrap().unwrap();
    assert_eq!((record.trigger, record.status), (Trigger::Push, Status::Queued));
    assert_eq!(record.commit.unwrap().as_str(), "b".repeat(40));
    assert_eq!(record.git_ref.unwrap().as_str(), "refs/heads/main");
    assert_eq!(
        (record.pusher.as_deref(), record.author.as_deref(), record.subject.as_deref()),
        (Some("ada"), Some("Ada Lovelace"), Some("Sell tea"))
    );

    let again = server.deliver("push", "guid-1", &push_body('a', 'b')).await;
    assert_eq!((again.status(), json_of(&again)), (StatusCode::OK, json!({"decision": "duplicate", "deployment": 1})));
    let next = server.deliver("push", "guid-2", &push_body('b', 'c')).await;
    assert_eq!(json_of(&next), json!({"decision": "queued", "deployment": 2}));
}

#[tokio::test]
async fn what_leads_to_nothing_is_answered_with_the_reason() {
    let server = Server::start([shop()]).await;
    let other = push_body('a', 'b').replace("refs/heads/main", "refs/heads/next");
    for (event, body, reason) in [
        ("push", other.as_str(), "branch next: only branch main is deployed"),
        ("ping", "{\"zen\":\"x\"}", "ping: the hook works"),
        ("issues", "{}", "event \"issues\": only push leads to a deployment"),
    ] {
        let answer = server.deliver(event, &format!("guid-{event}"), body).await;
        assert_eq!(
            (answer.status(), json_of(&answer)),
            (StatusCode::OK, json!({"decision": "ignored", "reason": reason}))
        );
    }
    assert_eq!(server.deployments().await, 0);
}

#[tokio::test]
async fn a_commit_that_failed_is_held() {
    let server = Server::start([shop()]).await;
    let _ = server.deliver("push", "guid-1", &push_body('a', 'b')).await;
    let failed = Finish { hold: true, ..finish(Status::Failed, Some("no Dockerfile")) };
    server.journal.finish(&"shop".parse().unwrap(), DeploymentId(1), failed).await.unwrap();
    let answer = server.deliver("push", "guid-2", &push_body('a', 'b')).await;
    assert_eq!(
        (answer.status(), json_of(&answer)),
        (StatusCode::OK, json!({"decision": "held", "reason": "no Dockerfile"}))
    );
}

#[tokio::test]
async fn each_refusal_says_what_to_mend() {
    let server = Server::start([shop()]).await;
    let push = push_body('a', 'b');
    let rows = [
        // content type, encoding, event, body, status, field, words of the detail
        (
            "text/plain",
            "",
            "push",
            push.as_str(),
            415,
            "Content-Type",
            "application/json or application/x-www-form-urlencoded",
        ),
        ("", "", "push", push.as_str(), 415, "Content-Type", "application/json or"),
        ("application/json", "gzip", "push", push.as_str(), 415, "Content-Encoding", "must not be compressed"),
        ("application/json", "", "", push.as_str(), 400, "", "X-GitHub-Event is missing"),
        ("application/json", "", "push", "{\"ref\": nope}", 400, "", "expected ident at byte 10"),
        ("application/x-www-form-urlencoded", "", "push", "a=b", 400, "", "no field `payload`"),
        (
            "application/json; charset=utf-8",
            "",
            "push",
            "{\"repository\":{\"full_name\":\"evil/shop\"}}",
            422,
            "repository.full_name",
            "this hook belongs to example/shop, the delivery is from evil/shop",
        ),
        (
            "application/json",
            "",
            "push",
            "{\"repository\":{\"full_name\":\"example/shop\"}}",
            422,
            "ref",
            "ref is missing",
        ),
    ];
    for (content_type, encoding, event, body, status, field, words) in rows {
        let signature = sign(SECRET, body.as_bytes());
        let mut headers = vec![("x-hub-signature-256", signature.as_str())];
        for (name, value) in [("content-type", content_type), ("content-encoding", encoding), ("x-github-event", event)]
        {
            if !value.is_empty() {
                headers.push((name, value));
            }
        }
        let answer = server.post("/hooks/shop", &headers, body.to_owned()).await;
        let problem = json_of(&answer);
        assert_eq!(answer.status(), status, "{problem}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(problem["field"], if field.is_empty() { Value::Null } else { field.into() });
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
        assert_eq!(problem["request_id"].as_str().unwrap(), answer.headers()["x-request-id"]);
    }
    let got = server.open(Method::GET, "/hooks/shop", &[], Body::empty()).await;
    assert_eq!((got.status().as_u16(), got.headers()["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(server.deployments().await, 0);
}

#[tokio::test]
async fn the_signature_is_over_the_bytes_as_they_came() {
    let server = Server::start([shop()]).await;
    let odd = push_body('a', 'b').replacen('{', "{ \"ref\":1, \"x\":1e2,\t\"y\":\"\\u0041\",", 1) + "  \n";
    let answer = server.deliver("push", "guid-1", &odd).await;
    assert_eq!(answer.status(), 202, "{:?}", answer.body());

    let signature = sign(SECRET, odd.as_bytes());
    let headers =
        [("content-type", "application/json"), ("x-github-event", "push"), ("x-hub-signature-256", &signature)];
    let again = serde_json::from_str::<Value>(&odd).unwrap().to_string();
    assert_eq!(server.post("/hooks/shop", &headers, again).await.status(), 401);
}

#[tokio::test]
async fn an_unknown_app_answers_byte_for_byte_like_a_wrong_signature() {
    let mut hookless = app("hookless", RepoUrl::Local("/srv/git/x".into()));
    hookless.webhook = None;
    let server = Server::start([shop(), hookless]).await;
    let right = sign(SECRET, b"{}");
    let sets: [&[(&str, &str)]; 5] = [
        &[],
        &[("x-hub-signature-256", "sha256=1234"), ("x-longshore-signature-256", "sha256=1234")],
        &[("x-hub-signature-256", &sign("other", b"{}")), ("x-longshore-signature-256", &sign("other", b"{}"))],
        &[("x-hub-signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")],
        &[("x-hub-signature-256", &right), ("x-hub-signature-256", &right)],
    ];
    for suffix in ["", "/post-receive"] {
        for headers in sets {
            let mut answers = Vec::new();
            for name in ["shop", "unknown", "hookless", "Bad_Name", "..%2fetc", "%ff"] {
                let answer = server.post(&format!("/hooks/{name}{suffix}"), headers, "{}").await;
                assert_eq!(answer.status(), 401, "{name}");
                let mut seen: Vec<_> = answer.headers().iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
                seen.retain(|(name, _)| name != "date" && name != "x-request-id");
                answers.push((seen, answer.into_body()));
            }
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        }
    }
    // The right secret of another app opens nothing either.
    let headers = [("x-hub-signature-256", right.as_str()), ("content-type", "application/json")];
    assert_eq!(server.post("/hooks/hookless", &headers, "{}").await.status(), 401);
    assert_eq!(
        server.post("/hooks/shop", &headers, "{}").await.status(),
        400,
        "known and signed, but without an event"
    );
}

#[tokio::test]
async fn without_its_secret_an_app_takes_no_delivery_however_it_is_signed() {
    let what = "apps.shop.webhook.secret: the secret file /run/hook cannot be read".into();
    let problem = config::Problem { line: 1, column: 1, what, hint: None };
    let mut locked = shop();
    locked.webhook.as_mut().unwrap().secret =
        Err(Absent { key: "apps.shop.webhook.secret".into(), problem, in_use: false });
    let server = Server::start([locked]).await;
    let body = push_body('a', 'b');
    for (suffix, header) in [("", "x-hub-signature-256"), ("/post-receive", "x-longshore-signature-256")] {
        let (right, empty) = (sign(SECRET, body.as_bytes()), sign("", body.as_bytes()));
        let signed: [&[(&str, &str)]; 3] = [&[], &[(header, &right)], &[(header, &empty)]];
        for signature in signed {
            let headers = [signature, &[("content-type", "application/json"), ("x-github-event", "push")]].concat();
            let answer = server.post(&format!("/hooks/shop{suffix}"), &headers, body.clone()).await;
            assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"30".parse().unwrap()));
            let said = String::from_utf8_lossy(answer.body()).into_owned();
            assert!(said.contains("cannot be read on the server") && !said.contains("/run/hook"), "{said}");
        }
    }
    assert_eq!(server.deployments().await, 0);
}

#[tokio::test]
async fn a_hundred_copies_of_a_delivery_are_one_deployment() {
    let server = Server::start([shop()]).await;
    let body = push_body('a', 'b');
    let answers = join_all((0..100).map(|_| server.deliver("push", "guid-1", &body))).await;
    let queued = answers.iter().filter(|answer| answer.status() == 202).count();
    let duplicate = json!({"decision": "duplicate", "deployment": 1});
    let named = answers.iter().filter(|answer| json_of(answer) == duplicate).count();
    assert_eq!((queued, named, server.deployments().await), (1, 99, 1));
}

/// Sends raw bytes as a careless client does: everything first, then the answer is read.
async fn raw(server: &Server, head: &str, chunk: &[u8], count: usize) -> String {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..count {
        stream.write_all(chunk).await.expect("the sender gets to the end of what it has to say");
    }
    let mut answer = vec![0; 64 << 10];
    let read = timeout(Duration::from_secs(20), stream.read(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_body_over_25_mib_is_refused_and_the_sender_hears_it() {
    let server = Server::start([shop()]).await;
    let mib = vec![b'x'; 1 << 20];
    let head = format!("POST /hooks/shop HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 26 << 20);
    let answer = raw(&server, &head, &mib, 26).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("larger than 25 MiB"), "{answer}");

    let head = "POST /hooks/shop/post-receive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"100000\r\n".as_slice(), &mib, b"\r\n"].concat();
    let endless = raw(&server, head, &chunk, 40).await;
    assert!(endless.starts_with("HTTP/1.1 413"), "{endless}");
    // curl asks with `Expect: 100-continue` first.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("body");
    std::fs::write(&file, mib.repeat(26)).unwrap();
    let asked = tokio::process::Command::new("curl")
        .args(["-q", "-sS", "-w", " %{http_code}", "-H", "Expect: 100-continue", "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("http://{}/hooks/shop", server.addr))
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stdout);
    assert!(asked.status.success() && said.ends_with(" 413"), "{asked:?}");
    // The ordinary goes on.
    assert_eq!(server.deliver("push", "guid-1", &push_body('a', 'b')).await.status(), 202);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_asks_for_another_delivery() {
    let full = |_| -> Submit { Box::new(|_| Box::pin(async { Err(StoreError::Sqlite("disk is full".into())) })) };
    let server = Server::with_submit([shop()], full).await;
    let answer = server.deliver("push", "guid-1", &push_body('a', 'b')).await;
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "30"));
    assert!(json_of(&answer)["detail"].as_str().unwrap().contains("deliver again later"));
}

#[test]
fn the_lines_of_a_reason_are_told_apart_in_the_pushers_last_line() {
    let reason = "web-1 was ended by signal 9\n  web-1 could not be restored\n\n  web-2 could not be restored";
    assert_eq!(joined(reason), "web-1 was ended by signal 9; web-1 could not be restored; web-2 could not be restored");
}

async fn post_receive(server: &Server, lines: &str) -> Response<hyper::body::Incoming> {
    let signature = sign(SECRET, lines.as_bytes());
    let headers = [("x-longshore-signature-256", signature.as_str())];
    server.open(Method::POST, "/hooks/shop/post-receive", &headers, lines.to_owned()).await
}

fn main_moved() -> String {
    format!("{} {} refs/heads/main\n", "a".repeat(40), "b".repeat(40))
}

async fn next_text(response: &mut Response<hyper::body::Incoming>) -> String {
    let frame = timeout(Duration::from_secs(10), response.body_mut().frame()).await.unwrap().unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

async fn rest(response: Response<hyper::body::Incoming>) -> String {
    let body = timeout(Duration::from_secs(10), response.into_body().collect()).await.unwrap().unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn the_pusher_sees_the_log_as_it_grows_and_how_it_ended() {
    let server = Server::start([shop()]).await;
    let name: AppName = "shop".parse().unwrap();
    let lines = format!("{} {} refs/tags/v1\n{}", "a".repeat(40), "b".repeat(40), main_moved());
    let mut response = post_receive(&server, &lines).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(
        next_text(&mut response).await,
        "longshore: ignored: tag v1: only branch main is deployed\nlongshore: queued main at bbbbbbb as deployment #1\n"
    );
    let record = server.store.deployment(DeploymentId(1)).await.unwrap().unwrap();
    assert_eq!((record.trigger, record.status), (Trigger::PostReceive, Status::Queued));

    let log = server.journal.log(&name, DeploymentId(1)).await.unwrap();
    server.journal.advance(&name, DeploymentId(1), Status::Building).await.unwrap();
    log.line("Step 1/2");
    assert_eq!(next_text(&mut response).await, "Step 1/2\n", "while it is going on");
    log.line("Step 2/2");
    server.store.set_release(DeploymentId(1), ReleaseNumber(7)).await.unwrap();
    server.journal.finish(&name, DeploymentId(1), finish(Status::Succeeded, None)).await.unwrap();
    assert_eq!(rest(response).await, "Step 2/2\nlongshore: succeeded v7\n");
}

#[tokio::test]
async fn every_end_has_its_last_line() {
    let server = Server::start([shop()]).await;
    let name: AppName = "shop".parse().unwrap();
    let ends = [
        (Status::RolledBack, Some("web 2 did not become ready:\n500"), "rolled_back: web 2 did not become ready: 500"),
        (Status::Failed, Some("no Dockerfile"), "failed: no Dockerfile"),
        (Status::Cancelled, Some("cancelled by ada"), "cancelled: cancelled by ada"),
    ];
    for (index, (status, reason, last)) in ends.into_iter().enumerate() {
        let id = DeploymentId(index as i64 + 1);
        let response = post_receive(&server, &main_moved()).await;
        server.journal.finish(&name, id, finish(status, reason)).await.unwrap();
        let text = rest(response).await;
        assert_eq!(text.lines().last(), Some(format!("longshore: {last}").as_str()), "{text}");
    }
}

#[tokio::test]
async fn an_agent_that_ends_lets_the_pusher_go_and_does_not_say_that_nothing_was_deployed() {
    let server = Server::start([shop()]).await;
    let mut following = post_receive(&server, &main_moved()).await;
    assert!(next_text(&mut following).await.starts_with("longshore: queued "));
    server.ending.cancel();
    let told = "the agent ends; deployment #1 goes on when it is back: see `longshore status shop`\n";
    assert_eq!(rest(following).await, format!("longshore: {told}"));
    // One that comes as it ends is told that it is taken.
    let newer = format!("{} {} refs/heads/main\n", "b".repeat(40), "c".repeat(40));
    let text = rest(post_receive(&server, &newer).await).await;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("longshore: queued main at ccccccc as deployment #2"), "{text}");
    assert!(lines[1].starts_with("longshore: the agent ends; deployment #2 goes on"), "{text}");
}

#[tokio::test]
async fn a_newer_push_ends_the_older_ones_stream() {
    let server = Server::start([shop()]).await;
    let first = post_receive(&server, &main_moved()).await;
    let newer = format!("{} {} refs/heads/main\n", "b".repeat(40), "c".repeat(40));
    let mut second = post_receive(&server, &newer).await;
    assert_eq!(next_text(&mut second).await, "longshore: queued main at ccccccc as deployment #2, in place of #1\n");
    // Ended with the second one's arrival; here nobody but the test tells the bus.
    server.journal.publish_end(&"shop".parse().unwrap(), DeploymentId(1)).await.unwrap();
    let text = rest(first).await;
    assert_eq!(text.lines().last(), Some("longshore: superseded: replaced by #2"), "{text}");
}

#[tokio::test]
async fn a_pusher_who_leaves_does_not_stop_the_deployment() {
    let server = Server::start([shop()]).await;
    let mut response = post_receive(&server, &main_moved()).await;
    let _ = next_text(&mut response).await;
    drop(response);
    let name: AppName = "shop".parse().unwrap();
    server.journal.advance(&name, DeploymentId(1), Status::Building).await.unwrap();
    let record = server.store.deployment(DeploymentId(1)).await.unwrap().unwrap();
    assert_eq!((record.status, record.cancel_asked), (Status::Building, false));
}

#[tokio::test]
async fn ref_lines_that_are_none_are_refused_with_one_line() {
    let server = Server::start([shop()]).await;
    for (lines, words) in [("", "no ref lines"), ("a b\n", "line 1: expected `OLD NEW REF`, got 2 fields")] {
        let response = post_receive(&server, lines).await;
        assert_eq!(response.status(), 400);
        assert!(rest(response).await.contains(words));
    }
    let other = main_moved().replace("/main", "/next");
    assert_eq!(
        rest(post_receive(&server, &other).await).await,
        "longshore: ignored: branch next: only branch main is deployed\n"
    );
}
