//! Static files out of images and volumes, answered by the proxy.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bollard::query_parameters::InspectContainerOptions;
use serde_json::json;

use crate::shop::{HOST, LIMIT, Options, Shop};
use crate::support::http;
use crate::support::repo::Repo;
use crate::support::site::Behaviour;
use crate::support::{engine, wait::eventually};

const DOCKERFILE: &str = "FROM scratch\nWORKDIR /app\nCOPY site /site\nCOPY behaviour /behaviour\nCOPY assets assets\n\
                          ENTRYPOINT [\"/site\"]\n";

fn options(directory: &str) -> Options {
    Options::default().keys(&format!(
        "keep_releases = 1\nvolumes = [\"media:/media\"]\n\
         static = {{ \"/static\" = \"{directory}\", \"/media\" = {{ volume = \"media\", path = \"public\" }} }}\n"
    ))
}

/// A name as Django gives it: it changes with the content.
fn hashed(version: &str) -> String {
    format!("app.{}0123456789a.css", version.trim_start_matches('v'))
}

fn write_version(repo: &Repo, version: &str) {
    repo.write_site(&Behaviour::version(version));
    repo.write("Dockerfile", DOCKERFILE);
    let _ = std::fs::remove_dir_all(repo.work().join("assets"));
    repo.write("assets/app.css", format!("css of {version}"));
    repo.write(&format!("assets/{}", hashed(version)), format!("css of {version}"));
    repo.write("assets/app.css.gz", "packed");
    repo.write("assets/large.bin", vec![b'x'; 300_000]);
    symlink("/etc/hostname", repo.work().join("assets/link")).unwrap();
}

async fn push(shop: &Shop, version: &str) -> serde_json::Value {
    write_version(&shop.repo, version);
    shop.repo.commit(version);
    let id = shop.deliver(&shop.repo.push("main")).await;
    shop.agent.deployment_ended(id, LIMIT).await
}

async fn get(shop: &Shop, path: &str) -> (u16, String) {
    let answer = shop.agent.visit(HOST, path).await.unwrap();
    (answer.status.as_u16(), answer.text().trim().to_owned())
}

/// What curl gets, with its status at the end.
fn curl(shop: &Shop, arguments: &[&str], path: &str) -> String {
    let url = format!("http://{}{path}", shop.agent.proxy);
    let host = format!("Host: {HOST}");
    let fixed = ["-sS", "--path-as-is", "--max-time", "20", "-H", &host, "-w", " %{http_code}", &url];
    let output = std::process::Command::new("curl").args(arguments).args(fixed).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_two_releases_are_found_across_a_switch() {
    let Some(engine) = engine::or_skip("files_of_two_releases_are_found_across_a_switch").await else { return };
    let repo = Repo::new();
    write_version(&repo, "v1");
    repo.commit("v1");
    repo.push("main");
    let mut shop = Shop::start_on(&engine, repo, options("assets"), "0s").await;
    shop.deploy_first().await;
    assert_eq!(get(&shop, "/static/app.css").await, (200, "css of v1".to_owned()));

    // Each page finds the file that it names, whichever version made it.
    let done = Arc::new(AtomicBool::new(false));
    let pages = {
        let (done, proxy) = (Arc::clone(&done), shop.agent.proxy);
        tokio::spawn(async move {
            let (mut seen, mut failures) = (Vec::new(), Vec::new());
            while !done.load(SeqCst) {
                let version = http::get(proxy, HOST, "/").await.unwrap().text().trim().to_owned();
                let asset = http::get(proxy, HOST, &format!("/static/{}", hashed(&version))).await.unwrap();
                if asset.status != 200 || asset.text() != format!("css of {version}") {
                    failures.push(format!("{version}: {} {}", asset.status, asset.text()));
                }
                let first = http::get(proxy, HOST, &format!("/static/{}", hashed("v1"))).await.unwrap();
                if first.status != 200 {
                    failures.push(format!("v1's after {version}: {}", first.status));
                }
                if !seen.contains(&version) {
                    seen.push(version);
                }
            }
            (seen, failures)
        })
    };
    assert_eq!(push(&shop, "v2").await["status"], "succeeded");
    done.store(true, SeqCst);
    let (seen, failures) = pages.await.unwrap();
    assert_eq!((seen, failures), (vec!["v1".to_owned(), "v2".to_owned()], vec![]));
    assert_eq!(get(&shop, "/static/app.css").await, (200, "css of v2".to_owned()));

    // What is no file of the app is none.
    for path in [
        "/static/../app.css",
        "/static/%2e%2e/%2e%2e/etc/hostname",
        "/static/..%2f..%2fetc/hostname",
        "/static//etc/hostname",
        "/static/link",
        "/static/",
        "/static",
        "/static/app.css%00",
    ] {
        assert!(curl(&shop, &[], path).ends_with(" 404"), "{path}");
    }
    assert_eq!(curl(&shop, &["-r", "4-5"], "/static/app.css"), "of 206");
    assert_eq!(curl(&shop, &["-r", "900-"], "/static/app.css").split(' ').next_back(), Some("416"));
    assert_eq!(
        curl(&shop, &["-r", "100000-299999", "-o", "/dev/null", "-w", "%{size_download}"], "/static/large.bin"),
        " 206"
    );
    assert_eq!(curl(&shop, &["-H", "Accept-Encoding: gzip"], "/static/app.css"), "packed 200");
    let http2 = curl(&shop, &["--http2-prior-knowledge", "-I"], "/static/large.bin");
    assert!(http2.starts_with("HTTP/2 200") && http2.contains("content-length: 300000"), "{http2}");
    assert!(curl(&shop, &["-X", "DELETE"], "/static/app.css").ends_with(" 405"));

    // A volume is what the app writes into it, links left out.
    let instance = &shop.instances("web").await[0];
    let found = engine.docker.inspect_container(&instance.id, None::<InspectContainerOptions>).await.unwrap();
    let mount = found.mounts.unwrap().remove(0).source.unwrap();
    let public = std::path::Path::new(&mount).join("public");
    std::fs::create_dir(&public).unwrap();
    std::fs::write(public.join("photo.txt"), "of a user").unwrap();
    std::fs::write(std::path::Path::new(&mount).join("private.txt"), "not for all").unwrap();
    symlink("/etc", public.join("etc")).unwrap();
    symlink("../private.txt", public.join("near")).unwrap();
    assert_eq!(get(&shop, "/media/photo.txt").await, (200, "of a user".to_owned()));
    for path in ["/media/etc/hostname", "/media/near", "/media/../private.txt"] {
        assert!(curl(&shop, &[], path).ends_with(" 404"), "{path}");
    }

    // Without an instance, and after a new start of the agent, it is all still there.
    let scaled = shop.ask_and_wait("PUT", "/api/v1/apps/shop/services/web/scale", json!({ "instances": 0 })).await;
    assert_eq!(scaled["status"], "succeeded", "{scaled:#}");
    shop.agent.stop().await;
    shop.agent.start().await;
    assert_eq!(get(&shop, "/").await.0, 503);
    assert_eq!(get(&shop, "/static/app.css").await, (200, "css of v2".to_owned()));
    assert_eq!(get(&shop, &format!("/static/{}", hashed("v1"))).await.0, 200);
    let scaled = shop.ask_and_wait("PUT", "/api/v1/apps/shop/services/web/scale", json!({ "instances": 1 })).await;
    assert_eq!(scaled["status"], "succeeded", "{scaled:#}");

    // A directory that is not in the image ends the deployment before anything is switched.
    shop.reconfigure(&options("nowhere")).await;
    let failed = push(&shop, "v3").await;
    assert_eq!(failed["status"], "failed", "{failed:#}");
    assert!(failed["reason"].as_str().unwrap().contains("the image has no /app/nowhere"), "{failed:#}");
    assert_eq!(get(&shop, "/static/app.css").await, (200, "css of v2".to_owned()));

    // A rollback brings the files back with the version, and what no kept release has goes.
    shop.reconfigure(&options("assets")).await;
    let back = shop.rollback(json!({})).await.expect(202).json()["id"].as_u64().unwrap();
    assert_eq!(shop.agent.deployment_ended(back, LIMIT).await["status"], "succeeded");
    assert_eq!(get(&shop, "/static/app.css").await, (200, "css of v1".to_owned()));
    assert_eq!(push(&shop, "v4").await["status"], "succeeded");
    let directories = || {
        let entries = std::fs::read_dir(shop.agent.data_dir().join("static/shop")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    eventually("two releases' files are left", LIMIT, async || {
        let names = directories();
        if names.len() == 3 && names.contains(&"volume.media".to_owned()) { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    let objects = engine.objects(&shop.agent.id()).await;
    assert!(objects.containers.iter().all(|container| container.label("longshore.kind") == "instance"), "{objects:?}");
    shop.finish().await;
}
