//! The control protocol: whatever comes over the socket, and in whatever pieces, is the same messages, which read back as they
//! are written; and a table is taken when one would take it by hand.

#![no_main]

use std::collections::HashSet;
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use longshore::model::InstanceId;
use longshore::proxy::control::{LineBuffer, Order, Report, read_message, write_message};
use longshore::proxy::table::{DrainLimits, Maintenance, Member, Route, Table};
use longshore::proxy::{Balance, PathPrefix};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, BufReader, ReadBuf};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// As they come.
    Bytes { bytes: &'a [u8], pieces: Vec<u8> },
    /// Orders, written by an agent.
    Orders { orders: Vec<AnOrder<'a>>, pieces: Vec<u8> },
}

#[derive(Arbitrary, Debug)]
enum AnOrder<'a> {
    Apply(u64, Vec<ARoute<'a>>),
    Drain { instance: AnInstance, requests: (u64, u32), streams: (u64, u32) },
    Count,
    HandOver,
    TakeOver(Vec<&'a str>),
    Reload,
    Shutdown(u64),
}

#[derive(Arbitrary, Debug)]
struct ARoute<'a> {
    hosts: Vec<u8>,
    path: &'a str,
    flags: [bool; 3],
    page: Option<Option<&'a str>>,
    members: Vec<(AnInstance, IpAddr, u16, u32, u8)>,
}

/// Few, so that some meet.
#[derive(Arbitrary, Debug, Clone, Copy)]
struct AnInstance(u8);

impl AnInstance {
    fn id(self) -> InstanceId {
        InstanceId::parse(&format!("d{}-web-{}", self.0 % 4, self.0 / 64 + 1)).expect("an id")
    }
}

const HOSTS: [&str; 10] =
    ["a.test", "b.test", "*.test", "*.a.test", "A.test", "a.test:80", "", "*.", "[::1]", "a.test."];
/// The first ones of [`HOSTS`], and the address.
fn is_sound_host(host: &str) -> bool {
    matches!(host, "a.test" | "b.test" | "*.test" | "*.a.test" | "[::1]")
}

fn order(of: &AnOrder) -> Order {
    let duration = |&(seconds, nanos): &(u64, u32)| Duration::new(seconds, nanos % 1_000_000_000);
    match of {
        AnOrder::Apply(generation, routes) => {
            Order::Apply(Table { generation: *generation, routes: routes.iter().map(route).collect() })
        }
        AnOrder::Drain { instance, requests, streams } => Order::Drain {
            instance: instance.id(),
            limits: DrainLimits { requests: duration(requests), streams: duration(streams) },
        },
        AnOrder::Count => Order::Count,
        AnOrder::HandOver => Order::HandOver,
        AnOrder::TakeOver(listeners) => Order::TakeOver {
            listeners: listeners.iter().map(|&text| text.to_owned()).collect(),
            limits: DrainLimits { requests: Duration::ZERO, streams: Duration::MAX },
        },
        AnOrder::Reload => Order::Reload,
        AnOrder::Shutdown(grace_ms) => Order::Shutdown { grace_ms: *grace_ms },
    }
}

fn route(of: &ARoute) -> Route {
    let hosts = of.hosts.iter().map(|&number| HOSTS[usize::from(number) % HOSTS.len()].to_owned()).collect();
    let member = |&(instance, address, port, weight, group): &(AnInstance, IpAddr, u16, u32, u8)| Member {
        instance: instance.id(),
        address: SocketAddr::new(address, port),
        weight,
        group,
    };
    let members = of.members.iter().map(member).collect();
    let [strip, sticky, by_turns] = of.flags;
    Route {
        path: PathPrefix::parse(of.path).unwrap_or_default(),
        strip,
        sticky,
        balance: if by_turns { Balance::RoundRobin } else { Balance::default() },
        maintenance: of.page.map(|page| Maintenance { page: page.map(str::to_owned) }),
        ..Route::new("shop".parse().expect("a name"), "web".parse().expect("a name"), hosts, members)
    }
}

/// Each host and path once, each instance once and with a share.
fn is_sound(table: &Table) -> bool {
    let (mut claims, mut instances) = (HashSet::new(), HashSet::new());
    table.routes.iter().all(|route| {
        route.hosts.iter().all(|host| is_sound_host(host) && claims.insert((host, &route.path)))
            && route.members.iter().all(|member| member.weight > 0 && instances.insert(&member.instance))
    })
}

/// Bytes that come in pieces of these lengths, with nothing to read between them.
struct Pieces<'a> {
    bytes: &'a [u8],
    lengths: &'a [u8],
    is_waiting: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_waiting = !self.is_waiting;
        let Some((&length, lengths)) = self.lengths.split_first() else {
            let (now, later) = self.bytes.split_at(self.bytes.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.bytes = later;
            return Poll::Ready(Ok(()));
        };
        if self.is_waiting {
            return Poll::Pending;
        }
        let (now, later) =
            self.bytes.split_at(self.bytes.len().min(usize::from(length).max(1)).min(buffer.remaining()));
        buffer.put_slice(now);
        (self.bytes, self.lengths) = (later, lengths);
        Poll::Ready(Ok(()))
    }
}

/// The messages of a stream up to its end or the first that is none. A reader that waits is given up and asked anew, as where
/// it waits for something else beside.
fn read<T: DeserializeOwned>(bytes: &[u8], lengths: &[u8]) -> (Vec<T>, Result<(), String>) {
    let mut reader = BufReader::with_capacity(64, Pieces { bytes, lengths, is_waiting: false });
    let (mut line, mut messages) = (LineBuffer::default(), Vec::new());
    let mut context = Context::from_waker(Waker::noop());
    loop {
        let polled = pin!(read_message::<T>(&mut reader, &mut line)).poll(&mut context);
        match polled {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(message))) => messages.push(message),
            Poll::Ready(Ok(None)) => return (messages, Ok(())),
            Poll::Ready(Err(error)) => return (messages, Err(error.to_string())),
        }
    }
}

fn written<T: Serialize + Sync>(messages: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let polled = pin!(write_message(&mut bytes, message)).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(()))), "{polled:?}");
    }
    bytes
}

fn check<T: DeserializeOwned + Serialize + Sync + PartialEq + Debug>(bytes: &[u8], lengths: &[u8]) -> Vec<T> {
    let whole = read::<T>(bytes, &[]);
    assert_eq!(read::<T>(bytes, lengths), whole);
    let again = read::<T>(&written(&whole.0), &[]);
    assert_eq!((again.0, again.1), (whole.0, Ok(())));
    whole_of(bytes)
}

fn whole_of<T: DeserializeOwned>(bytes: &[u8]) -> Vec<T> {
    read(bytes, &[]).0
}

/// What the agent makes of counts: sums, and how slow answers were.
fn add(reports: Vec<Report>) {
    for report in reports {
        let Report::Counts { apps, instances, .. } = report else { continue };
        for counts in apps.into_values() {
            let mut sum = counts;
            sum += counts;
            let _ = (sum.latency.total(), sum.latency.quantile(0.99));
            let _ = sum.latency.since(&counts.latency);
        }
        for counts in instances.into_values() {
            let mut sum = counts;
            sum += counts;
        }
    }
}

fuzz_target!(|input: Input| match input {
    Input::Bytes { bytes, pieces } => {
        for order in check::<Order>(bytes, &pieces) {
            if let Order::Apply(table) = order {
                let _ = table.validate();
            }
        }
        add(check::<Report>(bytes, &pieces));
    }
    Input::Orders { orders, pieces } => {
        let orders: Vec<Order> = orders.iter().map(order).collect();
        let bytes = written(&orders);
        assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), orders.len(), "one line each");
        assert_eq!(check::<Order>(&bytes, &pieces), orders);
        for order in &orders {
            if let Order::Apply(table) = order {
                assert_eq!(table.validate().is_ok(), is_sound(table), "{:?}", table.validate());
            }
        }
    }
});
