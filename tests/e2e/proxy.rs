//! Agent and proxy apart: each is replaced, stopped or refuses, and requests are answered all the same.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::shop::{LIMIT, Options, Shop, assert_ended};
use crate::support::agent::{Setup, TestAgent, rebuilt};
use crate::support::engine;
use crate::support::http;
use crate::support::ports::free_port;
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn ends(pid: i32) {
    eventually("the old proxy has ended", LIMIT, async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Not even a zombie, or one that nobody waits for in a container without an init.
        if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    })
    .await;
}

/// `/readyz`: the status, and the text.
async fn readiness(shop: &Shop) -> Result<(u16, String), String> {
    let answer = http::get(shop.agent.listen, "localhost", "/readyz").await?;
    Ok((answer.status.as_u16(), answer.text()))
}

#[tokio::test]
async fn an_upgrade_replaces_the_proxy_and_cuts_nothing() {
    let Some(engine) = engine::or_skip("an_upgrade_replaces_the_proxy").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let old = shop.agent.proxy_pid();
    shop.agent.restart().await;
    assert_eq!(shop.agent.proxy_pid(), old, "the same binary is adopted");

    let load = shop.load();
    // A request whose second half comes after the upgrade.
    let mut half = TcpStream::connect(shop.agent.proxy).await.unwrap();
    half.write_all(b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    shop.agent.set_binary(rebuilt(dir.path(), 1));
    shop.agent.restart().await;
    let new = shop.agent.proxy_pid();
    assert_ne!(new, old, "{}", shop.agent.log());
    assert!(Path::new(&format!("/proc/{old}")).exists(), "it still has a request");
    assert!(shop.agent.log().contains("another binary of this version"), "it is said why");
    half.write_all(b"cd").await.unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 ") && answer.to_lowercase().contains("connection: close"), "{answer}");
    ends(old).await;
    // The new one takes tables.
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    assert_eq!((shop.version().await.as_str(), shop.agent.proxy_pid()), ("v2", new));
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn another_address_is_served_after_a_restart_of_the_agent() {
    let Some(engine) = engine::or_skip("another_address_is_served").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let (old, before) = (shop.agent.proxy_pid(), shop.agent.proxy);
    shop.agent.proxy = ([127, 0, 0, 1], free_port()).into();
    shop.reconfigure(&Options::default()).await;
    assert_eq!(shop.agent.proxy_pid(), old, "a reload leaves it alone");
    shop.agent.restart().await;
    assert_eq!(shop.version().await, "v1");
    assert!(shop.agent.log().contains(&format!("it listens on {before}, not on {}", shop.agent.proxy)));
    ends(old).await;
    assert!(TcpStream::connect(before).await.is_err(), "the old address is closed");

    // One that cannot be had changes nothing.
    let (serving, pid) = (shop.agent.proxy, shop.agent.proxy_pid());
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    shop.agent.proxy = taken.local_addr().unwrap();
    shop.reconfigure(&Options::default()).await;
    shop.agent.restart().await;
    assert!(shop.agent.log().contains("the running proxy serves on"), "{}", shop.agent.log());
    assert!(shop.agent.log().contains("is used by"), "{}", shop.agent.log());
    shop.agent.proxy = serving;
    assert_eq!((shop.version().await.as_str(), shop.agent.proxy_pid()), ("v1", pid));
    shop.finish().await;
}

#[tokio::test]
async fn tls_begins_with_a_restart_and_its_settings_change_with_a_reload() {
    let Some(engine) = engine::or_skip("tls_begins_with_a_restart").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    let (old, https) = (shop.agent.proxy_pid(), free_port());
    let lines = format!("https = \"127.0.0.1:{https}\"\nself_signed = true");
    shop.agent.set_proxy_lines(&lines);
    shop.agent.restart().await;
    let pid = shop.agent.proxy_pid();
    assert_ne!(pid, old, "{}", shop.agent.log());
    let asked = async || {
        let to = format!("shop.test:{https}:127.0.0.1");
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-ksS", "-m", "10", "-i", "--http2", "--resolve", &to, &format!("https://shop.test:{https}/")]);
        let output = curl.output().await.expect("curl is installed: ./dev setup");
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    let answer = asked().await;
    assert!(answer.starts_with("http/2 200") && !answer.contains("strict-transport"), "{answer}");
    shop.agent.set_proxy_lines(&format!("{lines}\nhsts = \"1d\""));
    shop.agent.signal(Signal::SIGHUP);
    eventually("the proxy has read it", LIMIT, async || match asked().await {
        answer if answer.contains("strict-transport-security: max-age=86400") => Ok(()),
        answer => Err(answer),
    })
    .await;
    // The proxy alone, as a service manager has it done.
    shop.agent.set_proxy_lines(&format!("{lines}\nhsts = \"2d\""));
    signal(pid, Signal::SIGHUP);
    eventually("the proxy has read it again", LIMIT, async || match asked().await {
        answer if answer.contains("max-age=172800") => Ok(()),
        answer => Err(answer),
    })
    .await;
    assert_eq!(shop.agent.proxy_pid(), pid);
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

/// Waits for a line of the agent's that names the proxy's process.
async fn logged(shop: &Shop, part: &str, pid: i32) {
    eventually(&format!("{part:?} is logged with pid {pid}"), LIMIT, async || {
        let log = shop.agent.log();
        let named = |line: &str| line.contains(&format!("{part} pid={pid}"));
        if log.lines().any(named) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_is_stopped_is_waited_for_and_told_of() {
    let Some(engine) = engine::or_skip("a_proxy_that_is_stopped").await else { return };
    let mut shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let pid = shop.agent.proxy_pid();
    signal(pid, Signal::SIGSTOP);
    eventually("it is told", LIMIT, async || match readiness(&shop).await? {
        (503, text) if text.contains(&format!("the proxy does not answer (pid {pid}); since 20")) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let app = shop.app().await;
    assert_eq!((&app["proxy"]["answers"], &app["proxy"]["pid"]), (&false.into(), &pid.into()), "{app:#}");
    assert!(app["proxy"]["since"].is_string(), "{app:#}");
    for line in [&["status"] as &[_], &["status", "shop"]] {
        let said = String::from_utf8(shop.agent.cli(line).await.stdout).unwrap();
        assert!(said.contains("?/2") && !said.contains("2/2"), "{said}");
        assert_eq!(said.matches("does not answer (since ").count(), 1, "{said}");
        assert!(!said.contains("not ready"), "told once: {said}");
        assert!(said.contains(&format!("kill -CONT {pid}")), "{said}");
    }
    for part in ["lost the proxy", "the proxy runs and does not answer; waiting for it, it may be stopped"] {
        logged(&shop, part, pid).await;
    }
    // The switch of a deployment is given up; the way back waits for the proxy.
    let id = shop.push_without_waiting(&Behaviour::version("v2")).await;
    shop.says(id, "undoing").await;
    signal(pid, Signal::SIGCONT);
    eventually("it is ready again", LIMIT, async || match readiness(&shop).await? {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    logged(&shop, "the proxy answers again", pid).await;
    let app = shop.app().await;
    assert_eq!((&app["proxy"]["answers"], &app["proxy"]["since"]), (&true.into(), &serde_json::Value::Null));
    let why =
        format!("did not acknowledge the route table within 5 s: its process (pid {pid}) runs and does not answer");
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "rolled_back", &[&why]);
    assert_eq!((shop.agent.proxy_pid(), shop.version().await.as_str()), (pid, "v1"));
    assert_ended(&shop.push(&Behaviour::version("v3")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");

    // An agent that finds it so knows it by its lock. The kernel wakes what is stopped when its parent ends, so that comes first.
    shop.agent.kill().await;
    signal(pid, Signal::SIGSTOP);
    shop.agent.spawn();
    logged(&shop, "the proxy runs and does not answer; it may be stopped", pid).await;
    signal(pid, Signal::SIGCONT);
    shop.agent.ready().await;
    logged(&shop, "adopted the running proxy", pid).await;
    signal(pid, Signal::SIGKILL);
    logged(&shop, "the proxy is gone", pid).await;
    eventually("another one serves", LIMIT, async || shop.agent.visit("shop.test", "/").await.map(drop)).await;
    logged(&shop, "started the proxy", shop.agent.proxy_pid()).await;
    shop.finish().await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_holds_nobody_up() {
    let Some(engine) = engine::or_skip("an_agent_that_is_stopped").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    shop.agent.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(shop.version().await, "v1");
    shop.agent.signal(Signal::SIGCONT);
    // The silence was its own.
    for _ in 0..20 {
        let (status, text) = readiness(&shop).await.unwrap();
        assert!(status == 200 && !text.contains("does not answer"), "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!shop.agent.log().contains("lost the proxy"), "{}", shop.agent.log());
    assert_ended(&shop.push(&Behaviour::version("v2")).await, "succeeded", &[]);
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn a_table_that_cannot_be_kept_blocks_the_switch_and_not_the_traffic() {
    let Some(engine) = engine::or_skip("a_table_that_cannot_be_kept").await else { return };
    let shop = Shop::live(&engine, &Behaviour::version("v1"), Options::default()).await;
    let load = shop.load();
    // Root may write anywhere, but nobody writes to a directory.
    let in_the_way = shop.agent.data_dir().join("routes.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let undone = shop.push(&Behaviour::version("v2")).await;
    assert_ended(&undone, "rolled_back", &["the table cannot be kept on disk", "routes.json"]);
    assert_eq!(shop.version().await, "v1");
    shop.assert_live(1, &[("web", 2)]).await;
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_ended(&shop.push(&Behaviour::version("v3")).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");
    load.stop().await.assert_flawless(100);
    shop.finish().await;
}

#[tokio::test]
async fn a_proxy_serves_on_the_socket_of_a_service_manager() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("deploy.toml");
    let text = format!("[agent]\ndata_dir = {:?}\n[proxy]\nhttp = \"127.0.0.1:1\"\n", dir.path().join("data"));
    std::fs::write(&config, text).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = || {
        let socket = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.arg("proxy").arg("--config").arg(&config).kill_on_drop(true);
        command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", "0").env("LISTEN_FDNAMES", "proxy").stdin(socket);
        command.spawn().unwrap()
    };
    for _ in 0..2 {
        let mut proxy = start();
        // Without a table no host is known; asked before it is up, the request waits at the socket.
        let answer = http::get(address, "nobody.test", "/").await.unwrap();
        assert_eq!(answer.status, 404);
        signal(proxy.id().unwrap().cast_signed(), Signal::SIGTERM);
        assert!(proxy.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn a_certificate_file_that_became_unusable_is_told_until_it_is_good_again() {
    let Some(engine) = engine::or_skip("a_certificate_file").await else { return };
    let app = "[apps.shop]\nrepo = \"/nowhere/shop.git\"\nallow_local = true\nport = 8000\ndomains = [\"shop.test\"]\n";
    let mut agent = Setup::new(app).agent_line("reconcile = \"0s\"").prepare(&engine);
    let (cert, key) = (agent.scratch().join("shop.pem"), agent.scratch().join("shop.key"));
    let made = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let https = free_port();
    agent.set_proxy_lines(&format!(
        "https = \"127.0.0.1:{https}\"\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n"
    ));
    agent.start().await;
    let status = async |agent: &TestAgent| String::from_utf8(agent.cli(&["status"]).await.stdout).expect("text");
    assert!(!status(&agent).await.contains("warning: "));

    std::fs::write(&cert, "junk").expect("written");
    agent.signal(Signal::SIGHUP);
    let warning = format!("warning: proxy.certificates[0].cert: {} holds no certificate", cert.display());
    eventually("status names the file and what is wrong with it", LIMIT, async || match status(&agent).await {
        said if said.contains(&warning) => Ok(()),
        said => Err(said),
    })
    .await;
    assert_eq!(agent.get("/readyz").await["status"], "ready", "it is a warning");

    // Nobody has to say that it is good again.
    std::fs::write(&cert, made.cert.pem()).expect("written");
    eventually("the warning is gone", LIMIT, async || match status(&agent).await {
        said if said.contains("warning: ") => Err(said),
        _ => Ok(()),
    })
    .await;
    agent.finish().await;
}
