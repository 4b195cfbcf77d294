//! What certificate authorities are answered, and what they have issued.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::support::*;
use super::tls::{ask, certificate, client, connect, dirs, start};
use crate::config::{AcmeConfig, CertificateFiles, Challenge};
use crate::proxy::control::ChallengeAnswer;
use crate::proxy::{ISSUED, ProxyOptions, run};

fn acme() -> AcmeConfig {
    AcmeConfig {
        email: "ops@example.com".to_owned(),
        directory_url: "https://ca.example/dir".to_owned(),
        challenge: Challenge::Http01,
        ca_file: None,
    }
}

fn answer(challenge: Challenge, host: &str, token: &str) -> ChallengeAnswer {
    ChallengeAnswer {
        challenge,
        host: host.to_owned(),
        token: token.to_owned(),
        key_authorization: format!("{token}.thumb"),
    }
}

/// What an authority sees by plain HTTP.
async fn page(address: SocketAddr, host: &str, token: &str) -> (u16, String) {
    let mut wire = Wire::open(address).await;
    wire.send(&format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let reply = wire.reply().await;
    (reply.status, reply.body)
}

fn told(token: &str) -> (u16, String) {
    (200, format!("{token}.thumb"))
}

#[tokio::test]
async fn an_authority_gets_its_page_though_others_are_sent_to_https() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let (proxy, _backend, https) = start(&dir, |front| front.certificates = vec![shop.clone()]).await;
    let in_a_handshake = answer(Challenge::TlsAlpn01, "shop.test", "c");
    let answers =
        vec![answer(Challenge::Http01, "shop.test", "a"), answer(Challenge::Http01, "new.test", "b"), in_a_handshake];
    assert!(proxy.client.answer(answers).await);
    assert_eq!(page(proxy.address, "shop.test", "a").await, told("a"));
    assert_eq!(page(proxy.address, "NEW.test", "b").await, told("b"), "its app is yet to be deployed");
    assert_eq!(page(proxy.address, "new.test", "a").await.0, 404, "it is another host's");
    assert_eq!(page(proxy.address, "shop.test", "c").await, (200, "d1-web-1".to_owned()), "the app may have its own");
    // Nobody else is shown the certificate of a validation.
    let mut stream = connect(&client(&[&shop]), https, "shop.test").await.unwrap();
    assert!(ask(&mut stream, "shop.test", "/").await.ends_with("d1-web-1"));
    assert!(proxy.client.answer(Vec::new()).await);
    assert_eq!(page(proxy.address, "new.test", "b").await.0, 404);
}

#[tokio::test]
async fn a_proxy_that_takes_the_place_of_another_is_told_as_well() {
    let (dir, _) = dirs();
    let first = TestProxy::start_in(Arc::clone(&dir)).await;
    assert!(first.client.answer(vec![answer(Challenge::Http01, "shop.test", "a")]).await);
    let (ready, serves) = oneshot::channel();
    let options = ProxyOptions::new(first.address, dir.path().to_owned());
    tokio::spawn(run(ProxyOptions { take_over: true, ready: Some(ready), ..options }, first.shutdown.clone()));
    serves.await.unwrap();
    assert!(timeout(Duration::from_secs(10), first.task).await.is_ok(), "the first one has ended");
    eventually("the second one answers", || async { page(first.address, "shop.test", "a").await == told("a") }).await;
}

#[tokio::test]
async fn issued_certificates_are_served_where_a_person_has_put_none() {
    let (dir, files) = dirs();
    // The agent was here before.
    std::fs::write(dir.path().join("agent.lock"), "").unwrap();
    let issued = dir.path().join(ISSUED);
    std::fs::create_dir_all(&issued).unwrap();
    let issue = |host: &str| {
        let CertificateFiles { cert, key } = certificate(files.path(), host, &[host]);
        let both = [cert.clone(), key.clone()].map(|path| std::fs::read_to_string(path).unwrap()).concat();
        crate::data_dir::write_whole(&issued.join(format!("{host}.pem")), both.as_bytes()).unwrap();
        CertificateFiles { cert, key }
    };
    let (shop, ordered) = (issue("shop.test"), issue("a.wild.test"));
    let wild = certificate(files.path(), "wild", &["*.wild.test"]);
    let (proxy, _backend, https) = start(&dir, |front| {
        front.certificates = vec![wild.clone()];
        front.acme = Some(acme());
    })
    .await;
    connect(&client(&[&shop]), https, "shop.test").await.unwrap();
    connect(&client(&[&wild]), https, "a.wild.test").await.unwrap();
    assert!(connect(&client(&[&ordered]), https, "a.wild.test").await.is_err(), "a person's choice comes first");
    let mut wire = proxy.wire().await;
    assert_eq!(wire.get("/").await.status, 308, "it has a certificate now");
    // One that is renewed or new is noticed.
    let (shop, blog) = (issue("shop.test"), issue("blog.test"));
    for (files, host) in [(&shop, "shop.test"), (&blog, "blog.test")] {
        let client = client(&[files]);
        eventually("the new certificate is served", || async { connect(&client, https, host).await.is_ok() }).await;
    }
}
