//! TLS in front: certificates by name, what clients are told, and what changes without a restart.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion, crypto::ring, version,
};

use super::support::*;
use crate::config::{CertificateFiles, ProxyConfig};
use crate::proxy::{ProxyOptions, run};

/// A new certificate for these hosts, which signs itself, in files of this name.
pub(super) fn certificate(dir: &Path, name: &str, hosts: &[&str]) -> CertificateFiles {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    let files = CertificateFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    crate::data_dir::write_whole(&files.key, made.signing_key.serialize_pem().as_bytes()).unwrap();
    crate::data_dir::write_whole(&files.cert, made.cert.pem().as_bytes()).unwrap();
    files
}

/// A client that knows these certificates and nothing else.
fn client_of(
    files: &[&CertificateFiles],
    protocols: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for files in files {
        roots.add(CertificateDer::from_pem_file(&files.cert).unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

pub(super) fn client(files: &[&CertificateFiles]) -> TlsConnector {
    client_of(files, &["http/1.1"], &[&version::TLS13])
}

pub(super) async fn connect(
    client: &TlsConnector,
    address: SocketAddr,
    host: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    client.connect(ServerName::try_from(host.to_owned()).unwrap(), socket).await
}

/// One request of HTTP/1.1, and the whole answer with its head.
pub(super) async fn ask(stream: &mut TlsStream<TcpStream>, host: &str, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let length =
            text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        if let (Some((head, _)), Some(length)) = (text.split_once("\r\n\r\n"), length)
            && answer.len() >= head.len() + 4 + length
        {
            return String::from_utf8(answer).unwrap();
        }
        let read = timeout(Duration::from_secs(10), stream.read_buf(&mut answer)).await.unwrap().unwrap();
        assert_ne!(read, 0, "the connection ended after {text:?}");
    }
}

/// A proxy with a backend behind `shop.test`, and where it serves TLS.
pub(super) async fn start(
    dir: &Arc<TempDir>,
    adapt: impl FnOnce(&mut ProxyConfig),
) -> (TestProxy, Backend, SocketAddr) {
    let proxy = TestProxy::start_with(Arc::clone(dir), |options| {
        options.front.https = Some(([127, 0, 0, 1], 0).into());
        adapt(&mut options.front);
    })
    .await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let https = proxy.client.status().listeners[1].parse().unwrap();
    (proxy, backend, https)
}

pub(super) fn dirs() -> (Arc<TempDir>, TempDir) {
    (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn a_host_is_served_with_its_certificate_or_not_at_all() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let wild = certificate(files.path(), "wild", &["*.wild.test"]);
    let (_proxy, _backend, https) = start(&dir, |front| front.certificates = vec![shop.clone(), wild.clone()]).await;
    for versions in [&[&version::TLS12][..], &[&version::TLS13]] {
        for (offered, agreed) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
        {
            let client = client_of(&[&shop, &wild], offered, versions);
            let stream = connect(&client, https, "shop.test").await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes));
            connect(&client, https, "a.wild.test").await.unwrap();
            for host in ["else.test", "wild.test", "a.b.wild.test"] {
                let refused = connect(&client, https, host).await.unwrap_err().to_string();
                assert!(
                    refused.contains("UnrecognizedName") || refused.contains("UnrecognisedName"),
                    "{host}: {refused}"
                );
            }
        }
        // The second handshake is a short one.
        let client = client_of(&[&shop], &["http/1.1"], versions);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = connect(&client, https, "shop.test").await.unwrap();
            let answer = ask(&mut stream, "shop.test", "/headers").await;
            assert!(answer.contains("x-forwarded-proto: https"), "{answer}");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{versions:?}");
        }
    }
}

#[tokio::test]
async fn configured_hosts_may_have_certificates_that_nobody_signed() {
    let (dir, _) = dirs();
    let (proxy, backend, https) = start(&dir, |front| front.self_signed = true).await;
    let by_curl = |host: &'static str, shown: &'static str| async move {
        let mut curl = tokio::process::Command::new("curl");
        let to = format!("{host}:{}:127.0.0.1", https.port());
        curl.args(["-ksS", "-m", "10", "--http2", "-w", shown, "--resolve", &to]);
        let output = curl.arg(format!("https://{host}:{}/", https.port())).output().await.expect("curl is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(by_curl("shop.test", "|%{http_version}").await, (true, "d1-web-1|2".to_owned()));
    assert!(!by_curl("else.test", "").await.0);
    // Whatever name a stranger thinks of, a wildcard has one.
    proxy.client.apply(vec![route("shop", "shop.test", &[]), route("wild", "*.wild.test", &[&backend])]).await.unwrap();
    let [one, other] = [by_curl("a.wild.test", "%{certs}").await, by_curl("b.wild.test", "%{certs}").await];
    assert!(one.0 && one.1.contains("BEGIN CERTIFICATE") && one == other, "{one:?}\n{other:?}");
    // Nobody would believe it: plain requests stay where they are.
    proxy.route(&[&backend]).await;
    assert_eq!(proxy.wire().await.get("/").await.status, 200);
}

#[tokio::test]
async fn plain_requests_go_to_https_where_there_is_a_certificate() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let (proxy, backend, https) = start(&dir, |front| {
        front.certificates = vec![shop.clone()];
        front.hsts = Some(Duration::from_secs(86_400));
        front.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let behind = Backend::start("d2-web-1").await;
    let other = route("other", "other.test", &[&behind]);
    proxy.client.apply(vec![route("shop", "shop.test", &[&backend]), other]).await.unwrap();
    let mut wire = proxy.wire().await;
    // The address in the settings is the one that was asked for: any port, here.
    let reply = wire.get("/a?b=c").await;
    assert_eq!((reply.status, reply.header("location")), (308, Some("https://shop.test:0/a?b=c")), "{reply:?}");
    assert_eq!(wire.get("/.well-known/acme-challenge/x").await.status, 200);
    wire.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200, "it has no certificate");
    for said in ["X-Forwarded-Proto: https", "X-Forwarded-Proto: https, http", "Forwarded: for=192.0.2.7;proto=https"] {
        wire.send(&format!("GET /headers HTTP/1.1\r\nHost: shop.test\r\n{said}\r\n\r\n")).await;
        let reply = wire.reply().await;
        let told = reply.body.contains("x-forwarded-proto: https\n");
        assert!(reply.status == 200 && told, "{said}: somebody trusted ended TLS: {reply:?}");
        assert_eq!(reply.header("strict-transport-security"), None);
    }
    let mut stream = connect(&client(&[&shop]), https, "shop.test").await.unwrap();
    let answer = ask(&mut stream, "shop.test", "/").await;
    assert!(answer.contains("strict-transport-security: max-age=86400\r\n"), "{answer}");
}

#[tokio::test]
async fn certificates_and_settings_change_without_a_restart() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let config = files.path().join("deploy.toml");
    let write = |more: &str| {
        let names = "certificates = [{ cert = \"shop.pem\", key = \"shop.key\" }]";
        std::fs::write(&config, format!("[proxy]\nhttps = \"127.0.0.1:1\"\n{names}\n{more}\n[apps]\nx = 1\n")).unwrap();
    };
    let proxy = TestProxy::start_with(Arc::clone(&dir), |options| {
        options.front.https = Some(([127, 0, 0, 1], 0).into());
        options.front.certificates = vec![shop.clone()];
        options.config = Some(config.clone());
    })
    .await;
    let backend = Backend::start("d1-web-1").await;
    proxy.route(&[&backend]).await;
    let https: SocketAddr = proxy.client.status().listeners[1].parse().unwrap();
    let mut before = connect(&client(&[&shop]), https, "shop.test").await.unwrap();
    // Something that is no certificate changes nothing.
    std::fs::write(&shop.cert, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(ask(&mut before, "shop.test", "/").await.ends_with("d1-web-1"));
    let shop = certificate(files.path(), "shop", &["shop.test", "new.test"]);
    let fresh = client(&[&shop]);
    eventually("the new certificate is served", || async { connect(&fresh, https, "new.test").await.is_ok() }).await;
    assert!(ask(&mut before, "shop.test", "/").await.ends_with("d1-web-1"), "connections go on");

    write("hsts = \"1d\"\nself_signed = true");
    proxy.client.reload();
    eventually("the settings are read again, whatever is wrong elsewhere in the file", || async {
        let mut stream = connect(&fresh, https, "shop.test").await.unwrap();
        ask(&mut stream, "shop.test", "/").await.contains("max-age=86400")
    })
    .await;
    write("hsts = 5");
    proxy.client.reload();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut stream = connect(&fresh, https, "shop.test").await.unwrap();
    assert!(ask(&mut stream, "shop.test", "/").await.contains("max-age=86400"), "a bad one is not taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tls_client_notices_a_hand_over() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let (first, _backend, https) = start(&dir, |front| front.certificates = vec![shop.clone()]).await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (stop, sent, client) = (Arc::clone(&stop), Arc::clone(&sent), client(&[&shop]));
            tokio::spawn(async move {
                let mut stream = connect(&client, https, "shop.test").await.unwrap();
                while !stop.load(SeqCst) {
                    let answer = ask(&mut stream, "shop.test", "/").await;
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    if number % 2 == 0 || answer.contains("connection: close") {
                        stream = connect(&client, https, "shop.test").await.unwrap();
                    }
                    sent.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let before = sent.load(SeqCst);
        let (ready, serves) = oneshot::channel();
        let mut options = ProxyOptions::new(first.address, first.dir.path().to_owned());
        options.front.https = Some(https);
        options.front.certificates = vec![shop.clone()];
        tokio::spawn(run(ProxyOptions { take_over: true, ready: Some(ready), ..options }, first.shutdown.clone()));
        assert_eq!(serves.await.unwrap(), first.address);
        eventually("traffic goes on", || async { sent.load(SeqCst) > before + 50 }).await;
    }
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(timeout(Duration::from_secs(10), first.task).await.is_ok(), "the first one has ended");
}

#[tokio::test]
async fn silent_clients_hold_nobody_up() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let (_proxy, _backend, https) = start(&dir, |front| front.certificates = vec![shop.clone()]).await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(https).await.unwrap());
    }
    let mut stream =
        timeout(Duration::from_secs(3), connect(&client(&[&shop]), https, "shop.test")).await.unwrap().unwrap();
    assert!(ask(&mut stream, "shop.test", "/").await.ends_with("d1-web-1"));
    let mut end = [0; 1];
    let ended = timeout(Duration::from_secs(15), silent[0].read(&mut end)).await.expect("it is not waited for");
    assert!(matches!(ended, Ok(0) | Err(_)));
}

/// TLS has a word for it (`close_notify`), and it means the same.
#[tokio::test]
async fn a_client_that_says_no_more_is_answered() {
    let (dir, files) = dirs();
    let shop = certificate(files.path(), "shop", &["shop.test"]);
    let (_proxy, _backend, https) = start(&dir, |front| front.certificates = vec![shop.clone()]).await;
    for request in [
        "GET /slow?100 HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET /slow?100 HTTP/1.0\r\nHost: shop.test\r\n\r\n",
        "POST /slow?100 HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nbody",
        "POST /slow?100 HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let mut stream = connect(&client(&[&shop]), https, "shop.test").await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains(" 200 OK\r\n") && answer.ends_with("d1-web-1"), "{request}: {answer:?}");
    }
}
