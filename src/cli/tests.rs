//! The command line as it is typed, and what is shown for it.

use clap::CommandFactory;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::progress::{Progress, summary};
use super::term::Paint;
use super::*;
use crate::api::views::{AppView, DeploymentView, HeldView};
use crate::model::Health;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split(' ')).map_err(|err| {
        assert_eq!(err.exit_code(), 2, "{line}");
        err.to_string()
    })
}

#[test]
fn the_command_line_is_sound_and_every_command_has_examples() {
    let mut command = Cli::command();
    command.clone().debug_assert();
    command.build();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let own = sub.get_after_help().map(ToString::to_string);
        let below = sub.get_subcommands().filter_map(|sub| sub.get_after_help()).map(ToString::to_string).next();
        let examples = own.or(below).unwrap_or_default();
        let shown = examples.lines().filter(|line| line.starts_with("  longshore ")).count();
        // The hook's are written with the hook.
        assert!(shown >= 1 || sub.get_name() == "hook", "{} has no examples", sub.get_name());
    }
}

#[test]
fn examples_in_help_can_be_typed() {
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands() {
        let examples = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in examples.lines().filter_map(|line| line.strip_prefix("  ")) {
            let typed = line.split(" > ").next().unwrap_or_default().replace('\'', "");
            assert!(Cli::try_parse_from(typed.split(' ')).is_ok(), "{line}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_say_what_is_allowed() {
    for line in [
        "longshore rollback shop --to ;rm",
        "longshore deploy shop --commit abc123",
        "longshore deploy shop --commit 0 --ref main",
        "longshore scale shop web",
        "longshore scale shop web=65",
        "longshore scale shop ../x=1",
        "longshore status ../../etc",
        "longshore logs",
        "longshore logs shop --deployment 12",
        "longshore cancel -1",
        "longshore token create ci",
        "longshore token create ci --scope root",
        "longshore depoly shop",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    let both = parse("longshore logs shop --deployment 12").unwrap_err();
    assert!(both.contains("longshore logs [--follow] --deployment ID"), "{both}");
    let token = parse("longshore token revoke nope").unwrap_err();
    assert!(token.contains("\"nope\" is not a token's number; longshore token list shows them"), "{token}");
    let site = parse("longshore demo-sit").unwrap_err();
    assert!(site.contains("'demo'") && !site.contains("demo-site"), "{site}");
    assert!(parse("longshore rollback shop --to ;rm").unwrap_err().contains("is not a release (write v7 or 7)"));
    assert!(parse("longshore status My_App").unwrap_err().contains("lower-case letters, digits or hyphens"));
}

fn deployment(change: Value) -> DeploymentView {
    let mut json = json!({
        "id": 12, "app": "shop", "kind": "deploy", "status": "rolling_out", "trigger": "push",
        "commit": "1a2b3c4d5e6f708192a3b4c5d6e7f80912345678", "ref": "refs/heads/main", "release": 8, "reason": null,
        "author": "Ada", "subject": "Fix the \u{1b}[31mcart\u{202e}", "pusher": "ada",
        "queued_at": "2026-11-21T04:00:00Z", "started_at": "2026-11-21T04:00:00.1Z", "finished_at": null,
        "phases": [
            { "name": "preparing", "started_at": "2026-11-21T04:00:00.1Z", "finished_at": "2026-11-21T04:00:01.3Z", "seconds": 1.2 },
            { "name": "rolling_out", "started_at": "2026-11-21T04:00:01.3Z", "finished_at": null, "seconds": 1.0 },
        ],
        "requests": { "served": 0, "failed": 0 }, "superseded_by": null, "cancel_asked": false, "url": "",
    });
    for (key, value) in change.as_object().unwrap() {
        json[key] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

fn app() -> AppView {
    let instance = |service: &str, slot: u32, release: u32, health: &str, duty: &str| {
        json!({
            "id": format!("d{release}-{service}-{slot}"), "service": service, "slot": slot, "health": health,
            "duty": duty, "weight": 1, "release": release, "commit": "1a2b3c4d5e6f708192a3b4c5d6e7f80912345678",
            "started_at": "2026-11-21T03:57:00Z", "restarts": 0, "address": "172.18.0.4:8000", "last_check": "200 in 3 ms",
        })
    };
    let service = |name: &str, desired: u32| {
        let instances = json!({ "desired": desired, "ready": 0, "serving": 0 });
        json!({ "name": name, "port": 8000, "instances": instances, "image": null, "command": null })
    };
    serde_json::from_value(json!({
        "name": "shop", "repo": "https://github.com/example/shop.git", "branch": "main", "domains": ["shop.example.com"],
        "live": { "release": 7, "commit": "0a0b0c0d0e0f000102030405060708090a0b0c0d", "author": "Bo", "subject": "Before", "deployment": 11, "since": "2026-11-21T03:57:00Z" },
        "held": null, "drift": [], "services": [service("web", 3), service("worker", 1)],
        "instances": [
            instance("web", 1, 8, "ready", "serving"), instance("web", 1, 7, "ready", "draining"),
            instance("web", 2, 8, "starting", "idle"), instance("web", 2, 7, "ready", "serving"),
            instance("web", 3, 7, "unready", "serving"), instance("worker", 1, 7, "ready", "serving"),
        ],
        "deployment": null, "canary": null, "queued": 1, "waits": null,
    }))
    .unwrap()
}

fn now() -> Timestamp {
    "2026-11-21T04:00:10Z".parse().unwrap()
}

#[test]
fn a_running_deployment_shows_its_phases_and_instances() {
    let mut progress = Progress::new(deployment(json!({})));
    progress.app = Some(app());
    for n in 1..=7 {
        progress.line(&format!("line {n}\u{7}\u{1b}]0;title\u{7}"));
    }
    insta::assert_snapshot!(progress.block(now(), Paint(false)).join("\n"), @r"
    shop #12  deploy 1a2b3c4 Fix the cart (Ada)
      ✓ preparing 1.2 s  ▸ rolling out 8.7 s
      web     3/3  ◇v7 draining ■v8 ■v7 □v8 starting ■v7 unready
      worker  1/1  ■v7
      | line 3
      | line 4
      | line 5
      | line 6
      | line 7
    ");
}

#[test]
fn a_canary_says_its_step_share_and_comparison() {
    let mut app = app();
    let mut canary = json!({
        "deployment": 12, "release": 8, "step": 1, "steps": 3, "share": 10, "since": "2026-11-21T03:59:28Z",
        "next_at": "2026-11-21T04:00:28Z", "paused": false, "comparison": "canary 412 requests, 5.0 % errors",
    });
    let mut said = |change: Value| {
        for (key, value) in change.as_object().unwrap() {
            canary[key] = value.clone();
        }
        app.canary = serde_json::from_value(canary.clone()).unwrap();
        super::progress::canary(&app, now()).join("\n")
    };
    insta::assert_snapshot!(said(json!({})), @r"
    canary  step 1 of 3: 10 % of the requests to v8 for 42.0 s, next step in 18.0 s
            canary 412 requests, 5.0 % errors
    ");
    insta::assert_snapshot!(said(json!({ "paused": true, "next_at": null, "comparison": null })), @"  canary  step 1 of 3: 10 % of the requests to v8 for 42.0 s, paused; go on with: longshore canary shop resume");
    insta::assert_snapshot!(said(json!({ "paused": false, "share": 0 })), @"  canary  step 1 of 3: no requests to the new instances yet");
}

#[test]
fn a_tip_that_is_not_live_is_told_with_the_reason() {
    let mut app = app();
    let tip = json!({ "commit": "1a2b3c4d5e6f708192a3b4c5d6e7f80912345678", "why": "#41 failed" });
    app.tip = serde_json::from_value(tip).unwrap();
    let lines = status::detail(&app, None, now(), Paint(false));
    assert_eq!(lines[2], "  tip      1a2b3c4 is not live: #41 failed");
}

#[test]
fn how_an_instance_last_ended_is_told_below_the_instances() {
    let mut app = app();
    app.instances[3].restarts = 3;
    let end = json!({ "at": "2026-11-21T03:58:10Z", "why": "ran out of its memory limit of 256 MiB after 40 s and was killed" });
    app.instances[3].last_end = serde_json::from_value(end).unwrap();
    let lines = status::detail(&app, None, now(), Paint(false));
    insta::assert_snapshot!(lines.last().unwrap(), @"d7-web-2: restarted 3 times; 2 min ago it ran out of its memory limit of 256 MiB after 40 s and was killed");
}

#[test]
fn a_tip_that_was_not_found_is_told_with_what_to_do() {
    let said = |why: &str, awaited: bool| {
        let mut app = app();
        let unknown = json!({ "why": why, "awaited": awaited, "since": now() - jiff::SignedDuration::from_mins(3) });
        app.tip_unknown = serde_json::from_value(unknown).unwrap();
        status::detail(&app, None, now(), Paint(false))[2].clone()
    };
    assert_eq!(said("branch main is not there yet", true), "  tip      branch main is not there yet");
    assert_eq!(
        said("cannot reach h: refused", false),
        "  tip      not known, first missed 3 min ago: cannot reach h: refused"
    );
}

#[test]
fn a_permanent_canary_is_told_by_both_apps() {
    let said = |key: &str, change: Value| {
        let mut shares = json!({
            "app": "other", "share": "1/3", "standing": "serving", "since": "2026-11-21T03:57:10Z", "why": null,
        });
        for (key, value) in change.as_object().unwrap() {
            shares[key] = value.clone();
        }
        let mut app = serde_json::to_value(app()).unwrap();
        app[key] = shares;
        let lines = status::detail(&serde_json::from_value(app).unwrap(), None, now(), Paint(false));
        lines.into_iter().find(|line| line.starts_with("  share")).unwrap()
    };
    insta::assert_snapshot!(said("canary_of", json!({})), @"  shares   1/3 of other's requests");
    insta::assert_snapshot!(said("canary_of", json!({ "standing": "down", "why": "none of its instances is ready" })), @"  shares   1/3 of other's requests: none, down for 3 min; none of its instances is ready");
    insta::assert_snapshot!(said("permanent_canary", json!({})), @"  shared   1/3 of the requests with other");
    insta::assert_snapshot!(said("permanent_canary", json!({ "standing": "suspended", "since": null })), @"  shared   1/3 of the requests with other: none, suspended");
}

/// The app with what the proxy counts: `web` gets requests, `worker` gets none.
fn busy(change: Value) -> AppView {
    let mut app = serde_json::to_value(app()).unwrap();
    app["traffic"] = json!({
        "served": 12345, "failed": 3, "server_errors": 0, "retried": 1, "client_aborted": 2, "files": 120,
        "latency": { "p50_ms": 1.24, "p99_ms": 48.9 },
    });
    (app["services"][0]["in_flight"], app["services"][0]["waiting"]) = (json!(4), json!(0));
    for instance in app["instances"].as_array_mut().unwrap().iter_mut().take(2) {
        (instance["in_flight"], instance["answered"], instance["server_errors"]) = (json!(2), json!(99), json!(0));
    }
    for (key, value) in change.as_object().unwrap() {
        app[key] = value.clone();
    }
    serde_json::from_value(app).unwrap()
}

#[test]
fn a_status_tells_the_requests_of_an_app() {
    let lines = |change: Value| status::detail(&busy(change), None, now(), Paint(false));
    let said = |change: Value| lines(change).into_iter().find(|line| line.starts_with("  traffic")).unwrap();
    let quiet = json!({
        "served": 0, "failed": 0, "server_errors": 0, "retried": 0, "client_aborted": 0, "files": 0, "latency": null,
    });
    let failing = json!({
        "served": 9, "failed": 0, "server_errors": 2, "retried": 0, "client_aborted": 0, "files": 0, "latency": null,
    });
    let canary_of = json!({ "app": "other", "share": "1/3", "standing": "serving", "since": null, "why": null });
    insta::assert_snapshot!(said(json!({})), @"  traffic  12,345 served, 3 failed, 120 files; 4 under way, 0 waiting; p50 1.2 ms, p99 49 ms");
    insta::assert_snapshot!(said(json!({ "traffic": quiet })), @"  traffic  0 served, 0 failed; 4 under way, 0 waiting");
    insta::assert_snapshot!(said(json!({ "traffic": failing })), @"  traffic  9 served, 2 answered with 5xx, 0 failed; 4 under way, 0 waiting");
    let mut unknown = busy(json!({}));
    unknown.services[0].traffic.in_flight = None;
    assert!(
        super::traffic::traffic(&unknown).unwrap().contains("; ? under way, 0 waiting;"),
        "before what runs is known"
    );
    insta::assert_snapshot!(said(json!({ "traffic": null, "canary_of": canary_of })), @"  traffic  4 under way; counted as other's");

    let table = lines(json!({}));
    let from = table.iter().position(|line| line.starts_with("INSTANCE")).unwrap();
    insta::assert_snapshot!([&table[from], &table[from + 1], &table[from + 6]].map(String::as_str).join("\n"), @r"
    INSTANCE     RELEASE  HEALTH    DUTY      IN FLIGHT  UP     RESTARTS  ADDRESS          LAST CHECK
    d8-web-1     v8       ready     serving   2          3 min  0         172.18.0.4:8000  200 in 3 ms
    d7-worker-1  v7       ready     serving   -          3 min  0         172.18.0.4:8000  200 in 3 ms
    ");
    let overview = |app: AppView| status::overview(&[app], now());
    assert_eq!(overview(busy(json!({}))), overview(app()), "all apps' status is as narrow as ever");
}

#[test]
fn a_status_does_not_say_that_anything_serves_while_the_proxy_is_silent() {
    let with = |proxy: Value| {
        let mut app = busy(json!({ "proxy": proxy, "traffic": null }));
        app.services[1].port = None;
        app
    };
    let since = "2026-11-21T03:59:58Z";
    let shown = |proxy: Value| {
        let lines = status::detail(&with(proxy), None, now(), Paint(false));
        let told = |line: &&String| ["  proxy", "  web", "  worker"].iter().any(|start| line.starts_with(start));
        lines.iter().filter(told).cloned().collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(shown(json!({ "answers": true, "pid": 812, "since": null })), @r"
    web     3/3  ◇v7 draining ■v8 ■v7 □v8 starting ■v7 unready
    worker  1/1  ■v7
    ");
    insta::assert_snapshot!(shown(json!({ "answers": false, "pid": 812, "since": since })), @r"
    proxy    does not answer (since 12 s ago): whether anybody is served is not known; if its process is stopped: kill -CONT 812
    web     ?/3  ◇v7 draining ■v8 ■v7 □v8 starting ■v7 unready
    worker  1/1  ■v7
    ");
    insta::assert_snapshot!(shown(json!({ "answers": false, "pid": null, "since": since })), @r"
    proxy    does not run (since 12 s ago): nobody is served until the agent has started it
    web     ?/3  ◇v7 draining ■v8 ■v7 □v8 starting ■v7 unready
    worker  1/1  ■v7
    ");
    let overview = |proxy: Value| status::overview(&[with(proxy)], now());
    insta::assert_snapshot!(overview(json!({ "answers": false, "pid": 812, "since": since })), @r"
    APP   LIVE  COMMIT   SINCE      SERVING  NOW       DOMAINS
    shop  v7    0a0b0c0  3 min ago  ?/4      1 queued  shop.example.com
    ");
    assert_eq!(overview(json!({ "answers": true, "pid": 812, "since": null })), status::overview(&[app()], now()));
}

#[test]
fn what_does_not_run_is_not_counted_among_those_that_serve() {
    let mut app = app();
    for index in [3, 5] {
        let down = &mut app.instances[index];
        (down.health, down.running, down.address, down.last_check) = (Health::Starting, false, None, None);
    }
    // There is no container of this one; that of the other one ended.
    app.instances[3].started_at = None;
    let lines = status::detail(&app, None, now(), Paint(false));
    let told =
        |line: &&String| ["  web", "  worker", "d7-web-2", "d7-worker"].iter().any(|name| line.starts_with(name));
    insta::assert_snapshot!(lines.iter().filter(told).cloned().collect::<Vec<_>>().join("\n"), @r"
      web     2/3  ◇v7 draining ■v8 ✗v7 not running □v8 starting ■v7 unready
      worker  0/1  ✗v7 not running
    d7-web-2     v7       not running  serving   -      0         -                -
    d7-worker-1  v7       not running  serving   -      0         -                -
    ");
}

#[test]
fn a_status_tells_static_files() {
    let mut app = app();
    let files = |files: Value| serde_json::from_value(files).unwrap();
    app.services[0].static_files = files(json!([
        { "prefix": "/media", "volume": "media", "directory": "public" },
        { "prefix": "/static", "volume": null, "directory": "staticfiles" },
    ]));
    app.services[1].static_files = files(json!([{ "prefix": "/all", "volume": "all", "directory": "" }]));
    let lines = status::detail(&app, None, now(), Paint(false));
    insta::assert_snapshot!(lines.iter().find(|line| line.starts_with("  static")).unwrap(), @"  static   /media from public in volume media, /static from staticfiles of the image, /all from volume all");
}

#[test]
fn the_end_is_one_line() {
    let say = |change: Value| summary(&deployment(change), Some(&app()), Paint(false));
    let end = "2026-11-21T04:00:12.4Z";
    insta::assert_snapshot!(say(json!({ "status": "succeeded", "finished_at": end, "requests": { "served": 1234, "failed": 0 } })),
        @"succeeded v8 in 12.3 s (6 instances, 1,234 requests, 0 failed)");
    let cut = json!({ "served": 1234, "failed": 2, "cut_requests": 2, "cut_streams": 1 });
    insta::assert_snapshot!(say(json!({ "status": "succeeded", "finished_at": end, "requests": cut })),
        @"succeeded v8 in 12.3 s (6 instances, 1,236 requests, 2 failed, 2 cut, 1 stream cut)");
    insta::assert_snapshot!(say(json!({ "status": "rolled_back", "finished_at": end, "reason": "web 2 did not \u{1b}[2Jbecome ready" })),
        @"rolled back in 12.3 s: web 2 did not become ready; v7 is live");
    insta::assert_snapshot!(say(json!({ "status": "failed", "finished_at": end, "reason": "the build failed\n  no such file\n" })), @r"
    failed in 12.3 s: the build failed; v7 is live
        no such file
    ");
    let mut alone = app();
    alone.instances.retain(|instance| instance.service == "worker");
    let undone = deployment(json!({ "status": "cancelled", "finished_at": end, "reason": "cancelled by ada" }));
    insta::assert_snapshot!(summary(&undone, Some(&alone), Paint(false)),
        @"cancelled in 12.3 s: cancelled by ada; v7 is live, but no instance of web serves");
    insta::assert_snapshot!(say(json!({ "status": "superseded", "finished_at": end, "reason": "replaced by #13", "superseded_by": 13 })),
        @"superseded by #13");
}

#[test]
fn a_status_shows_what_is_live_and_each_instance() {
    let last =
        deployment(json!({ "status": "failed", "finished_at": "2026-11-21T04:00:05Z", "reason": "no Dockerfile" }));
    insta::assert_snapshot!(status::detail(&app(), Some(&last), now(), Paint(false)).join("\n"), @r"
    shop  main of https://github.com/example/shop.git
      live     v7 0a0b0c0 Before (Bo), 3 min ago
      last     #12 failed in 4.9 s: no Dockerfile, 5 s ago
      queued   1
      domains  shop.example.com
      web     3/3  ◇v7 draining ■v8 ■v7 □v8 starting ■v7 unready
      worker  1/1  ■v7

    INSTANCE     RELEASE  HEALTH    DUTY      UP     RESTARTS  ADDRESS          LAST CHECK
    d8-web-1     v8       ready     serving   3 min  0         172.18.0.4:8000  200 in 3 ms
    d7-web-1     v7       ready     draining  3 min  0         172.18.0.4:8000  200 in 3 ms
    d8-web-2     v8       starting  idle      3 min  0         172.18.0.4:8000  200 in 3 ms
    d7-web-2     v7       ready     serving   3 min  0         172.18.0.4:8000  200 in 3 ms
    d7-web-3     v7       unready   serving   3 min  0         172.18.0.4:8000  200 in 3 ms
    d7-worker-1  v7       ready     serving   3 min  0         172.18.0.4:8000  200 in 3 ms
    ");
    let reason = "web 1 (d12-web-1) exited with code 1\n  Traceback:\n  KeyError: \u{1b}[31m'DB'\n";
    let bad = deployment(json!({ "status": "rolled_back", "finished_at": "2026-11-21T04:00:05Z", "reason": reason }));
    let mut held = app();
    held.held = Some(HeldView { commit: "1a".repeat(20).parse().unwrap(), reason: reason.into() });
    let shown = |last| {
        let lines = status::detail(&held, Some(last), now(), Paint(false));
        lines.into_iter().skip(2).take_while(|line| !line.contains("queued")).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(shown(&bad), @r"
    held     1a1a1a1 failed and is not tried again by itself: web 1 (d12-web-1) exited with code 1
    last     #12 rolled back in 4.9 s: web 1 (d12-web-1) exited with code 1, 5 s ago
               Traceback:
               KeyError: 'DB'
    ");
    insta::assert_snapshot!(shown(&last), @r"
    held     1a1a1a1 failed and is not tried again by itself: web 1 (d12-web-1) exited with code 1
               Traceback:
               KeyError: 'DB'
    last     #12 failed in 4.9 s: no Dockerfile, 5 s ago
    ");
    let mut held = app();
    held.queued = 0;
    held.held = Some(HeldView { commit: "f".repeat(40).parse().unwrap(), reason: "web 1 exited".into() });
    insta::assert_snapshot!(status::overview(&[app(), held], now()), @r"
    APP   LIVE  COMMIT   SINCE      SERVING  NOW              DOMAINS
    shop  v7    0a0b0c0  3 min ago  0/4      1 queued         shop.example.com
    shop  v7    0a0b0c0  3 min ago  0/4      fffffff is held  shop.example.com
    ");
}

#[test]
fn colours_are_only_there_when_wanted() {
    let plain = summary(&deployment(json!({ "status": "succeeded" })), None, Paint(false));
    let painted = summary(&deployment(json!({ "status": "succeeded" })), None, Paint(true));
    assert!(!plain.contains('\u{1b}') && painted.contains("\u{1b}[32msucceeded\u{1b}[0m"));
}

#[test]
fn an_app_in_maintenance_does_not_look_healthy() {
    let mut app = app();
    assert!(!status::detail(&app, None, now(), Paint(false)).join("\n").contains("maintenance"));
    app.maintenance = true;
    let lines = status::detail(&app, None, now(), Paint(false));
    insta::assert_snapshot!(lines[2], @"  closed   in maintenance: every request gets a page with 503");
}
