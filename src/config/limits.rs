//! `[proxy.limits]`: how much one client may ask for, and for how long it may keep the proxy waiting.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::ProxyLimits;
use super::field::Field;

const KIB: u64 = 1 << 10;
const WAITS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

pub(super) fn read(field: &Field<'_>) -> ProxyLimits {
    let usual = ProxyLimits::default();
    let Some(section) = field.section("write [proxy.limits] on a line of its own") else { return usual };
    let wait = |key: &'static str, usual| section.take(key).and_then(|field| field.duration(WAITS)).unwrap_or(usual);
    let number = |key: &'static str| {
        let field = section.take(key)?;
        usize::try_from(field.number(1..=1_000_000, "a number from 1 to 1000000")?).ok()
    };
    let limits = ProxyLimits {
        connections: number("connections"),
        connections_per_client: number("connections_per_client").unwrap_or(usual.connections_per_client),
        header_timeout: wait("header_timeout", usual.header_timeout),
        answer_timeout: wait("answer_timeout", usual.answer_timeout),
        send_timeout: wait("send_timeout", usual.send_timeout),
        max_header_size: section
            .take("max_header_size")
            .and_then(|field| field.size_within(8 * KIB..=16 << 20, "8KiB", "16MiB"))
            .and_then(|size| u32::try_from(size).ok())
            .unwrap_or(usual.max_header_size),
        max_body_size: section.take("max_body_size").and_then(|field| field.size(KIB, "1KiB")),
    };
    section.finish();
    limits
}
