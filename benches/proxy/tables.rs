//! Large tables: how long a switch takes, and a start.

use std::fs;
use std::time::{Duration, Instant};

use longshore::proxy::ProxyClient;
use longshore::proxy::table::Route;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::servers::{LOG, UP, longshore, ready, table};
use super::{AT_ONE_LOAD, asked, wrk};
use crate::figure::{Figure, Target};
use crate::rounds::{ROUNDS, median, ms, show};

/// As rollouts make them whose instances are up at once; and faster than any.
const PACES: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(50)];

/// What the proxy says of a switch, in microseconds: `switched_in=210.3µs`.
fn switched_in(line: &str) -> Option<f64> {
    let (_, said) = line.split_once("switched_in=")?;
    let number: String = said.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    let scale = match &said[number.len()..] {
        unit if unit.starts_with("ns") => 1e-3,
        unit if unit.starts_with("ms") => 1e3,
        _ => 1.0,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

/// One switch after another until it is over; how many there were.
async fn switch_on(
    client: ProxyClient,
    routes: Vec<Route>,
    pace: Duration,
    mut is_over: oneshot::Receiver<()>,
) -> usize {
    let mut count = 0;
    while is_over.try_recv() == Err(TryRecvError::Empty) {
        let mut routes = routes.clone();
        routes[0].members.truncate(1 + count % 2);
        client.apply(routes).await.expect("the table is taken");
        count += 1;
        tokio::time::sleep(pace).await;
    }
    count
}

/// Large tables: a switch among 200 routes, and a start with 10,000.
pub async fn figures(ports: [u16; 2]) -> Vec<Figure> {
    let many = table(ports, 200);
    let server = longshore(&many).await;
    let data = server.directory.as_ref().expect("its own directory").path().join("data");
    let client = ProxyClient::start(&data);
    assert!(client.connected(UP).await, "the proxy answers");
    let mut switches = Vec::new();
    for round in 0..50 {
        let mut routes = many.routes.clone();
        routes[0].members.truncate(1 + round % 2);
        let began = Instant::now();
        client.apply(routes).await.expect("the table is taken");
        switches.push(ms(began.elapsed()));
    }
    let log = fs::read_to_string(data.with_file_name(LOG)).expect("the proxy's log");
    let alone: Vec<f64> = log.lines().filter_map(switched_in).collect();
    assert!(alone.len() >= switches.len(), "each switch is in the log");
    let (mut calm, mut switched, mut counts) = (Vec::new(), PACES.map(|_| Vec::new()), [0; PACES.len()]);
    for _ in 0..super::ROUNDS {
        calm.push(wrk(&server, AT_ONE_LOAD).await.p99);
        for (place, pace) in PACES.into_iter().enumerate() {
            let (still, is_over) = oneshot::channel::<()>();
            let switching = tokio::spawn(switch_on(client.clone(), many.routes.clone(), pace, is_over));
            switched[place].push(wrk(&server, AT_ONE_LOAD).await.p99);
            drop(still);
            counts[place] += switching.await.expect("switches");
        }
    }
    drop(server);
    show("1 KB at the same load, p99 ms", &calm);
    for (pace, switched) in PACES.iter().zip(&switched) {
        show(&format!("the same with a switch every {pace:?}, p99 ms"), switched);
    }
    let (single, large) = (table(ports, 1), table(ports, 10_000));
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let mut took = [0.0; 2];
        for (table, took) in [&single, &large].into_iter().zip(&mut took) {
            let ready = ready(table);
            let began = Instant::now();
            let server = ready.start().await;
            asked(server.port).await;
            *took = ms(began.elapsed());
        }
        starts.push(took[1] - took[0]);
    }
    show("a switch among 200 routes of 5, on disk and acknowledged, ms", &switches[..5]);
    show("a start with 10,000 routes, ms more than with one", &starts);
    show("a switch among 200 routes of 5, in the proxy alone, µs", &alone[..5]);
    let under = |place: usize| {
        let what =
            format!("99th percentile of requests with a switch every {:?}, {} of them", PACES[place], counts[place]);
        Figure::new(what, median(&switched[place]), "ms").against("without any", median(&calm))
    };
    vec![
        Figure::new("a switch among 200 routes of 5, in the proxy alone", median(&alone) / 1e3, "ms")
            .target(Target::AtMost(1.0)),
        // What the medians of two such series differ by when nothing differs.
        under(0).target(Target::RatioAtMost(1.1)),
        under(1),
        Figure::new("a switch among 200 routes of 5, on disk and acknowledged", median(&switches), "ms"),
        Figure::new("a start with 10,000 routes of 5, beyond one with a single route", median(&starts), "ms")
            .target(Target::AtMost(100.0)),
    ]
}
