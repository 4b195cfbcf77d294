//! The disk of the data directory is full, or read-only: what serves goes on, the refusals are clear, and when there is
//! room again all goes on by itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shop::{HOST, LIMIT, Options, SECRET, Shop, assert_ended};
use crate::support::agent::Setup;
use crate::support::discord::Discord;
use crate::support::disk::SmallDisk;
use crate::support::engine::{self, Engine};
use crate::support::github;
use crate::support::http;
use crate::support::repo::{Pushed, Repo};
use crate::support::site::Behaviour;
use crate::support::wait::eventually;

/// A shop whose first version is live and whose data directory is on `disk`.
async fn shop_on(disk: &SmallDisk, engine: &Engine, min_free: &str) -> Shop {
    let (repo, _) = Repo::with_site(&Behaviour::version("v1"));
    let discord = Discord::start().await;
    let options = Options::default().watch("200ms");
    let setup = Setup::new(&Shop::config(&repo, &options))
        .agent_line("reconcile = \"0s\"")
        .agent_line(&format!("min_free = {min_free:?}"))
        .env("SHOP_SECRET", SECRET)
        .env("DISCORD_URL", discord.url())
        .data_on(&disk.directory());
    let shop = Shop { repo, agent: setup.start(engine).await, discord, engine: engine.clone() };
    shop.deploy_first().await;
    shop
}

fn commit(shop: &Shop, version: &str) -> Pushed {
    shop.repo.write_site(&Behaviour::version(version));
    shop.repo.commit(version);
    shop.repo.push("main")
}

async fn ready(shop: &Shop) -> String {
    match http::get(shop.agent.listen, "localhost", "/readyz").await {
        Ok(answer) => format!("{} {}", answer.status, answer.text()),
        Err(why) => why,
    }
}

async fn says(shop: &Shop, part: &str) {
    eventually(&format!("/readyz says {part:?}"), LIMIT, async || {
        let said = ready(shop).await;
        if said.contains(part) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Delivers a push again and again, as if it were many, until the agent says that it cannot write it down.
async fn deliver_until_refused(shop: &Shop, pushed: &Pushed) -> String {
    for _ in 0..3000 {
        let delivery = github::Push::of("main", pushed).delivery();
        let answer = delivery.send(shop.agent.listen, "shop", SECRET).await;
        match answer.status.as_u16() {
            202 => {}
            503 => return answer.text(),
            other => panic!("{other} {}", answer.text()),
        }
    }
    panic!("the journal found room for everything");
}

/// Asks SQLite, when nobody else has the journal.
fn assert_intact(data_dir: &Path) {
    let journal = rusqlite::Connection::open(data_dir.join("journal.db")).unwrap();
    let said: String = journal.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

#[tokio::test]
async fn on_a_full_disk_apps_serve_pushes_are_refused_and_all_goes_on_with_room() {
    let Some(engine) = engine::or_skip("on_a_full_disk").await else { return };
    let Some(disk) = SmallDisk::or_skip("on_a_full_disk", 64) else { return };
    let mut shop = shop_on(&disk, &engine, "4MiB").await;
    let ballast = shop.agent.data_dir().join("journal.ballast");
    assert!(ballast.exists());
    let load = shop.load();
    disk.fill_but(2 << 20);
    says(&shop, "too little space").await;
    let status = shop.agent.cli(&["status"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("not ready: deployments that build fail: too little space"), "{status}");

    // The journal still has room: the push is taken and told why it cannot be built.
    let pushed = commit(&shop, "v2");
    let id = shop.deliver(&pushed).await;
    let refused = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&refused, "failed", &["too little space", "data_dir", "at least 4 MiB is wanted ([agent] min_free)"]);
    assert_eq!(shop.app().await["held"], serde_json::Value::Null);

    // No room at all: the sender is told.
    disk.fill();
    let said = deliver_until_refused(&shop, &pushed).await;
    assert!(said.contains("cannot write its journal now; deliver again later"), "{said}");
    eventually("what was set aside is given to the journal", LIMIT, async || {
        if ballast.exists() { Err(shop.agent.log()) } else { Ok(()) }
    })
    .await;
    says(&shop, "nothing new is taken: the journal cannot be written: its disk is full").await;
    disk.fill();
    shop.agent.kill().await;
    shop.agent.spawn();
    says(&shop, "too little space").await;
    assert_eq!(shop.version().await, "v1");

    disk.empty();
    says(&shop, "200 ").await;
    let pushed = commit(&shop, "v3");
    let id = shop.deliver(&pushed).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v3");
    assert!(ballast.exists());
    load.stop().await.assert_flawless(100);
    shop.all_ready().await;
    shop.agent.stop().await;
    assert_intact(&shop.agent.data_dir());
    shop.finish().await;
}

#[tokio::test]
async fn a_deployment_that_meets_the_full_disk_leaves_what_serves_alone() {
    let Some(engine) = engine::or_skip("a_deployment_that_meets").await else { return };
    let Some(disk) = SmallDisk::or_skip("a_deployment_that_meets", 64) else { return };
    let mut shop = shop_on(&disk, &engine, "0B").await;
    let before = shop.running_commits().await;
    let load = shop.load();

    // The commit does not fit into the mirror.
    disk.fill_but(1 << 20);
    shop.repo.write("noise", incompressible(8 << 20));
    let pushed = commit(&shop, "v2");
    let id = shop.deliver(&pushed).await;
    let failed = shop.agent.deployment_ended(id, LIMIT).await;
    assert_ended(&failed, "failed", &["No space left on device"]);
    assert_eq!(shop.app().await["held"], serde_json::Value::Null);

    // The disk becomes full while an instance starts: neither the journal nor the proxy's table has room for a switch.
    disk.empty();
    shop.repo.write_site(&Behaviour::version("v2").ready_after_ms(3000));
    shop.repo.commit("slow");
    let id = shop.deliver(&shop.repo.push("main")).await;
    shop.says(id, "starting").await;
    disk.fill();
    let ended = eventually("the deployment has ended", LIMIT, async || {
        // Whoever reads is answered, also at the very moment in which the disk is found full.
        let deployment = shop.deployment(id).await;
        if deployment["finished_at"].is_null() { Err(deployment.to_string()) } else { Ok(deployment) }
    })
    .await;
    // It ends, while the disk is still full: on what was set aside, or undone when the table could not be kept before.
    match ended["status"].as_str() {
        Some("succeeded") => assert_eq!(shop.version().await, "v2"),
        Some("rolled_back") => {
            assert_eq!(shop.version().await, "v1");
            assert_eq!(shop.running_commits().await, before);
        }
        _ => panic!("{ended:#}"),
    }

    disk.empty();
    let id = shop.ask("POST", "/api/v1/apps/shop/deployments", serde_json::json!({})).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");
    assert_ne!(shop.running_commits().await, before);
    load.stop().await.assert_flawless(100);
    shop.agent.stop().await;
    assert_intact(&shop.agent.data_dir());
    shop.finish().await;
}

/// Bytes that no packing makes smaller.
fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// Files that not even root may change, until this is dropped.
struct Immutable([PathBuf; 2]);

impl Immutable {
    fn journal(data_dir: &Path) -> Self {
        let files = ["journal.db", "journal.db-wal"].map(|name| data_dir.join(name));
        files.iter().for_each(|file| chattr("+i", file));
        Self(files)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| chattr("-i", file));
    }
}

fn chattr(change: &str, file: &Path) {
    let done = Command::new("chattr").arg(change).arg(file).status().expect("chattr can be run");
    assert!(done.success(), "chattr {change} {}: {done}", file.display());
}

#[tokio::test]
async fn a_journal_that_was_made_immutable_takes_nothing_new_and_says_so_until_it_can_be_written() {
    let Some(engine) = engine::or_skip("a_journal_that_was_made_immutable").await else { return };
    let Some(disk) = SmallDisk::or_skip("a_journal_that_was_made_immutable", 64) else { return };
    let shop = shop_on(&disk, &engine, "0B").await;
    says(&shop, "200 ").await;
    let immutable = Immutable::journal(&shop.agent.data_dir());
    says(&shop, "nothing new is taken").await;
    let helps = "it is marked as immutable; allow it to be changed with: chattr -i";
    let said = ready(&shop).await;
    assert!(said.starts_with("503") && said.contains(helps), "{said}");
    let status = shop.agent.cli(&["status"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("not ready: nothing new is taken") && status.contains(helps), "{status}");

    let pushed = commit(&shop, "v2");
    let delivery = github::Push::of("main", &pushed).delivery();
    let refused = delivery.send(shop.agent.listen, "shop", SECRET).await.expect(503).text();
    assert!(refused.contains("cannot be written on the server (it is read-only or immutable there)"), "{refused}");
    assert!(!refused.contains("journal.db"), "{refused}");
    assert_eq!(shop.version().await, "v1");

    drop(immutable);
    says(&shop, "200 ").await;
    let id = shop.deliver(&pushed).await;
    assert_ended(&shop.agent.deployment_ended(id, LIMIT).await, "succeeded", &[]);
    assert_eq!(shop.version().await, "v2");
    shop.finish().await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let Some(engine) = engine::or_skip("a_data_directory_that_cannot_be_written").await else { return };
    let Some(disk) = SmallDisk::or_skip("a_data_directory_that_cannot_be_written", 64) else { return };
    let mut shop = shop_on(&disk, &engine, "0B").await;
    shop.agent.stop().await;
    shop.agent.stop_proxy();
    disk.read_only(true);
    let refused = shop.agent.cli(&["serve"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let data_dir = shop.agent.data_dir();
    assert!(said.contains("Read-only file system") && said.contains(data_dir.to_str().unwrap()), "{said}");
    // Its content can still be told.
    disk.read_only(false);
    shop.agent.start().await;
    shop.all_ready().await;
    assert_eq!(shop.agent.visit(HOST, "/").await.unwrap().expect(200).text().trim(), "v1");
    shop.finish().await;
}
