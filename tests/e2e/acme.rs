//! Certificates by ACME, from a real authority that validates for real.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::agent::{Setup, TestAgent};
use crate::support::engine::{self, Engine};
use crate::support::pebble::{Pebble, REFUSED};
use crate::support::ports::free_port;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// Longer than any test takes.
const LONG: u64 = 24 * 3600;

/// What a client that trusts the authority alone gets.
struct Page {
    status: String,
    body: String,
    /// The chain, as PEM.
    certificate: String,
}

/// Asks by https; an error where the certificate is not to be trusted, or there is none.
async fn visit(https: u16, host: &str, root: &Path) -> Result<Page, String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-m", "10", "--resolve", &format!("{host}:{https}:127.0.0.1"), "--cacert"]).arg(root);
    curl.args(["-w", "\n|%{http_code}|%{certs}", &format!("https://{host}:{https}/")]);
    let output = curl.output().await.expect("curl is installed: ./dev setup");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = text.splitn(3, '|').map(|part| part.trim().to_owned());
    match (output.status.success(), parts.next(), parts.next(), parts.next()) {
        (true, Some(body), Some(status), Some(certificate)) => Ok(Page { status, body, certificate }),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Waits until a host is served with a certificate of the authority's.
async fn trusted(agent: &TestAgent, https: u16, host: &str, root: &Path) -> Page {
    eventually(&format!("{host} has a certificate"), LIMIT, async || {
        visit(https, host, root).await.map_err(|why| format!("{why}\n{}", agent.log()))
    })
    .await
}

fn apps(domains: &[&str]) -> String {
    format!("[apps.shop]\nrepo = \"/nowhere/shop.git\"\nallow_local = true\nport = 8000\ndomains = {domains:?}\n")
}

/// An agent whose app is never deployed, and an authority for it; neither runs yet.
fn prepared(engine: &Engine, domains: &[&str], challenge: &str) -> (TestAgent, Pebble, u16) {
    let setup = Setup::new(&apps(domains)).agent_line("reconcile = \"0s\"").env("LONGSHORE_HURRY", "1");
    let (mut agent, https) = (setup.prepare(engine), free_port());
    let pebble = Pebble::prepare(agent.proxy, https, LONG);
    agent.set_proxy_lines(&format!("https = \"127.0.0.1:{https}\"\n{}", pebble.line(challenge)));
    (agent, pebble, https)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_is_served_by_https_and_its_certificate_renewed_while_it_is_visited() {
    let Some(engine) = engine::or_skip("a_site_is_served_by_https").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let https = free_port();
    let mut pebble = Pebble::prepare(shop.agent.proxy, https, 30);
    let root = pebble.start().await;
    let lines = format!("https = \"127.0.0.1:{https}\"\nredirect_http = false\n{}", pebble.line("http-01"));
    shop.agent.set_proxy_lines(&lines);
    // The authority refuses some good requests on purpose; what fails for that is tried again before the certificate ends.
    shop.agent.set_env("LONGSHORE_HURRY", "1");
    let load = shop.load();
    shop.agent.restart().await;

    let first = trusted(&shop.agent, https, HOST, &root).await;
    assert_eq!((first.status.as_str(), first.body.as_str()), ("200", "v1"));
    // With two thirds of its time gone there is another one.
    let proxy = shop.agent.proxy_pid();
    eventually("the certificate is renewed", Duration::from_secs(60), async || {
        match visit(https, HOST, &root).await {
            Ok(page) if page.certificate != first.certificate => Ok(()),
            Ok(_) => Err("it is the same".to_owned()),
            // It has not expired meanwhile.
            Err(why) => panic!("{why}\n{}", shop.agent.log()),
        }
    })
    .await;
    // A new domain has one at once; for a wildcard there is none, and that is said.
    let config = Shop::config(&shop.repo, &Options::default());
    let config = config.replace(&format!("{HOST:?}"), &format!("{HOST:?}, \"new.test\", \"*.wild.test\""));
    shop.agent.set_config(&config);
    shop.agent.signal(Signal::SIGHUP);
    trusted(&shop.agent, https, "new.test", &root).await;
    let log = shop.agent.log();
    assert!(log.contains("no certificate is ordered: a wildcard takes the challenge dns-01"), "{log}");
    // They are served without an agent, and by a proxy that was started anew.
    shop.agent.kill().await;
    trusted(&shop.agent, https, "new.test", &root).await;
    assert_eq!(shop.agent.proxy_pid(), proxy, "all that without a restart");
    shop.agent.start().await;
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn a_host_is_proven_inside_a_handshake_as_well() {
    let Some(engine) = engine::or_skip("a_host_is_proven_inside_a_handshake").await else { return };
    let (mut agent, mut pebble, https) = prepared(&engine, &["a.test", "b.test"], "tls-alpn-01");
    let root = pebble.start().await;
    agent.start().await;
    for host in ["a.test", "b.test"] {
        let page = trusted(&agent, https, host, &root).await;
        assert!(page.status == "503" && page.body.contains("nothing runs"), "{} {}", page.status, page.body);
        let plain = agent.visit(host, "/").await.unwrap();
        assert_eq!(
            (plain.status.as_u16(), plain.header("location")),
            (308, format!("https://{host}:{https}/").as_str())
        );
    }
    assert!(!pebble.log().contains("http-01 challenge"), "{}", pebble.log());
    // A proxy that is started anew has them from disk.
    agent.stop().await;
    agent.stop_proxy();
    agent.start().await;
    trusted(&agent, https, "a.test", &root).await;
    agent.finish().await;
}

#[tokio::test]
async fn an_authority_that_is_away_disturbs_nobody_and_is_asked_again() {
    let Some(engine) = engine::or_skip("an_authority_that_is_away").await else { return };
    let (mut agent, mut pebble, https) = prepared(&engine, &["a.test"], "http-01");
    agent.start().await;
    let status = async |agent: &TestAgent| String::from_utf8(agent.cli(&["status"]).await.stdout).unwrap();
    eventually("its absence is said", LIMIT, async || match status(&agent).await {
        said if said.contains("warning: the certificate authority https://127.0.0.1")
            && said.contains("tried again at") =>
        {
            Ok(())
        }
        said => Err(format!("{said}\n{}", agent.log())),
    })
    .await;
    assert_eq!(agent.get("/readyz").await["status"], "ready");
    let plain = agent.visit("a.test", "/").await.unwrap();
    assert_eq!(plain.status, 503, "it stays where there is no certificate, and nothing runs there");
    let root = pebble.start().await;
    trusted(&agent, https, "a.test", &root).await;
    eventually("all is well", LIMIT, async || match status(&agent).await {
        said if !said.contains("warning") => Ok(()),
        said => Err(said),
    })
    .await;

    // One that has lost everything gets another account, and what it refuses is told in its own words.
    pebble.stop().await;
    let root = pebble.start().await;
    agent.set_config(&apps(&["a.test", "b.test"]));
    agent.signal(Signal::SIGHUP);
    trusted(&agent, https, "b.test", &root).await;
    assert!(agent.log().contains("does not know our account any more"), "{}", agent.log());
    let moved = pebble.line("http-01").replace("ops@example.com", "web@example.com");
    agent.set_proxy_lines(&format!("https = \"127.0.0.1:{https}\"\n{moved}"));
    agent.set_config(&apps(&["a.test", "b.test", REFUSED]));
    agent.signal(Signal::SIGHUP);
    eventually("the refusal is told", LIMIT, async || match status(&agent).await {
        said if said.contains("refused.test: there is no certificate: ") => Ok(()),
        said => Err(format!("{said}\n{}", agent.log())),
    })
    .await;
    let account = agent.data_dir().join("acme/account.json");
    let mode = std::fs::metadata(&account).unwrap().permissions().mode() & 0o777;
    let told = std::fs::read_to_string(&account).unwrap().contains("web@example.com");
    assert!(told && mode == 0o600, "{mode:o}\n{}", agent.log());
    agent.finish().await;
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn an_agent_that_dies_in_the_middle_of_an_order_waits_before_the_next_one() {
    let Some(engine) = engine::or_skip("an_agent_that_dies_in_the_middle_of_an_order").await else { return };
    let (mut agent, mut pebble, https) = prepared(&engine, &[], "http-01");
    let root = pebble.start().await;
    let steps = ["one.test", "two.test", "three.test"];
    for (step, host) in (1..).zip(steps) {
        agent.set_config(&apps(&[host]));
        agent.set_env("LONGSHORE_FAIL_POINT", &format!("order:{step}=crash"));
        agent.spawn();
        assert!(!agent.wait(LIMIT).await.success());
        agent.set_env("LONGSHORE_FAIL_POINT", "");
        agent.start().await;
        let status = String::from_utf8(agent.cli(&["status"]).await.stdout).unwrap();
        assert!(status.contains("the agent ended while the order was under way; tried again at"), "{step}: {status}");
        trusted(&agent, https, host, &root).await;
        agent.stop().await;
    }
    agent.start().await;
    agent.finish().await;
}
