//! Secrets reach the instances and nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::shop::{HOST, Options, Shop, assert_ended};
use crate::support::engine;
use crate::support::site::Behaviour;

const FROM_ENV: &str = "canary-of-the-environment-4711";
const FROM_FILE: &str = "canary-of-the-file-0815";

#[tokio::test]
async fn secrets_reach_the_instances_and_nothing_else() {
    let Some(engine) = engine::or_skip("secrets_reach_the_instances").await else { return };
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("secret");
    std::fs::write(&file, format!("{FROM_FILE}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    // The site prints its version when it starts and what it migrates: a program that prints its secrets.
    let options = Options::default().watch("200ms").table(&format!(
        "[apps.shop.env]\nSITE_VERSION = {{ env = \"CANARY\" }}\nSITE_MIGRATE_SAYS = {{ file = {file:?} }}\n\
         PLAIN = \"plain\"\n[apps.shop.release]\ncommand = [\"migrate\"]"
    ));
    let env = [("CANARY", FROM_ENV)];
    let shop = Shop::start_with(&engine, &Behaviour::version("v1"), options, &env).await;
    shop.deploy_first().await;
    let page = async |path: &str| shop.agent.visit(HOST, path).await.unwrap().expect(200).text();
    assert_eq!(page("/env?SITE_VERSION").await.trim(), FROM_ENV);
    assert_eq!(page("/env?SITE_MIGRATE_SAYS").await.trim(), FROM_FILE);
    assert_eq!(page("/env?PLAIN").await.trim(), "plain");
    assert!(shop.log(1).await.contains("migrating for [secret] [secret]"), "{}", shop.log(1).await);

    // A version that fails: its last output, secrets and all, goes into the reason.
    let deployment = shop.push(&Behaviour::version("v2").exit_at_once(3)).await;
    assert_ended(&deployment, "rolled_back", &["exited with code 3", "[secret] starts as"]);
    shop.told(2, &["was rolled back"]).await;

    let mut seen = vec![("the agent's log".to_owned(), shop.agent.log().into_bytes())];
    for path in [
        "/api/v1/apps",
        "/api/v1/apps/shop",
        "/api/v1/apps/shop/deployments",
        "/api/v1/apps/shop/releases",
        "/api/v1/deployments/1/log",
        "/api/v1/deployments/2/log",
        "/metrics",
    ] {
        seen.push((path.to_owned(), shop.agent.api("GET", path, None).await.body.to_vec()));
    }
    for command in [["status", "shop"], ["releases", "shop"], ["plan", "shop"]] {
        let output = shop.agent.cli(&command).await;
        seen.push((format!("{command:?}"), [output.stdout, output.stderr].concat()));
    }
    let check = shop.agent.cli(&["check"]).await;
    seen.push(("check".to_owned(), [check.stdout, check.stderr].concat()));
    for message in shop.discord.messages() {
        seen.push(("Discord".to_owned(), format!("{:?}", message.versions).into_bytes()));
    }
    let objects = engine.objects(&shop.agent.id()).await;
    let labels = (objects.containers.iter().map(|c| (&c.name, &c.labels)).collect::<Vec<_>>(), &objects.images);
    seen.push(("labels".to_owned(), format!("{labels:?}").into_bytes()));
    for image in &objects.images {
        let inspected = engine.docker.inspect_image(&image.id).await.unwrap();
        seen.push(("an image".to_owned(), format!("{inspected:?}").into_bytes()));
    }
    let files_read = read_all(&shop.agent.data_dir(), &mut seen);
    assert!(files_read > 5, "only {files_read} files in the data directory");

    let token = shop.discord.token();
    for (place, bytes) in &seen {
        for canary in [FROM_ENV, FROM_FILE, crate::shop::SECRET, token] {
            let found = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
            assert!(!found, "{canary} stands in {place}:\n{}", String::from_utf8_lossy(bytes));
        }
    }
    shop.finish().await;
}

/// Every file below a directory; how many there are.
fn read_all(directory: &Path, seen: &mut Vec<(String, Vec<u8>)>) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            count += read_all(&path, seen);
        } else if let Ok(bytes) = std::fs::read(&path) {
            seen.push((path.display().to_string(), bytes));
            count += 1;
        }
    }
    count
}
