//! `[proxy]`: where it listens, with which certificates, whom it believes, and what it keeps on record.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use super::field::Field;
use super::problem::Fault;
use super::validate::socket_address;
use super::{AccessLogConfig, CertificateFiles, ProxyConfig, acme, limits};
use crate::model::shorten;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where its listeners are written.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub http: Option<Range<usize>>,
    pub https: Option<Range<usize>>,
}

/// `[proxy]`, and where its listeners are written.
pub(super) fn read(field: Option<Field<'_>>) -> (ProxyConfig, Places) {
    let mut config = ProxyConfig::plain(SocketAddr::from(([0, 0, 0, 0], 80)));
    let Some(section) = field.and_then(|field| field.section("write [proxy] on a line of its own")) else {
        return (config, Places::default());
    };
    let (http, https) = (section.take("http"), section.take("https"));
    config.http = http.as_ref().and_then(socket_address).unwrap_or(config.http);
    config.https = https.as_ref().and_then(socket_address);
    let certificates = section.take("certificates");
    let acme = section.take("acme");
    let (redirect, hsts, self_signed) =
        (section.take("redirect_http"), section.take("hsts"), section.take("self_signed"));
    if https.is_none() {
        for field in [&certificates, &acme, &redirect, &hsts, &self_signed].into_iter().flatten() {
            field.problem(" is of no use without proxy.https", "add https = \"0.0.0.0:443\", or remove it");
        }
    }
    if let Some(list) = certificates.and_then(|field| field.list("write [{ cert = \"PATH\", key = \"PATH\" }]")) {
        config.certificates = list.iter().filter_map(certificate).collect();
    }
    config.acme = acme.and_then(|field| acme::read(&field));
    config.redirect_http = redirect.and_then(|field| field.boolean()).unwrap_or(config.redirect_http);
    config.hsts = hsts.and_then(|field| field.duration_or_zero(DAY..=DAY * 730)).filter(|hsts| !hsts.is_zero());
    config.self_signed = self_signed.and_then(|field| field.boolean()).unwrap_or(config.self_signed);
    if let Some(list) = section.take("trusted_proxies").and_then(|field| field.list("write [\"10.0.0.0/8\"]")) {
        config.trusted_proxies = list.iter().filter_map(|field| field.parsed(network)).collect();
    }
    config.limits = section.take("limits").map(|field| limits::read(&field)).unwrap_or_default();
    config.access_log = section.take("access_log").and_then(|field| access_log(&field));
    section.finish();
    (config, Places { http: http.map(|field| field.span()), https: https.map(|field| field.span()) })
}

fn certificate(field: &Field<'_>) -> Option<CertificateFiles> {
    const FORM: &str = "write { cert = \"PATH\", key = \"PATH\" }";
    let section = field.section(FORM)?;
    let (cert, key) = (section.require("cert", FORM), section.require("key", FORM));
    section.finish();
    let (cert, key) = (cert?.file_path(), key?.file_path());
    Some(CertificateFiles { cert: cert?, key: key? })
}

/// `access_log = true`, or with settings of its own.
fn access_log(field: &Field<'_>) -> Option<AccessLogConfig> {
    let mut config = AccessLogConfig { path: None, max_size: 100 << 20, keep: 5 };
    if !field.is_table() {
        return field.boolean().filter(|&on| on).map(|_| config);
    }
    let section =
        field.section("write access_log = true or access_log = { path = \"/var/log/longshore/access.log\" }")?;
    config.path = section.take("path").and_then(|field| field.file_path());
    let max_size = section.take("max_size").and_then(|field| field.size(64 << 10, "64KiB"));
    config.max_size = max_size.unwrap_or(config.max_size);
    config.keep = section.take("keep").and_then(|field| field.number(1..=100, "1 to 100")).unwrap_or(config.keep);
    section.finish();
    Some(config)
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, Fault> {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        Fault::new(
            format!(" must be a network, got {:?}", shorten(text, 60)),
            "write an address and the length of its prefix, such as \"10.0.0.0/8\", or one address",
        )
    })
}
