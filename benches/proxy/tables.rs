//! Large tables: how long a switch takes, and a start.

use std::time::Instant;

use longshore::proxy::ProxyClient;

use super::asked;
use super::servers::{UP, longshore, table};
use crate::figure::{Figure, Target};
use crate::rounds::{ROUNDS, median, ms, show};

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
    drop(server);
    let large = table(ports, 10_000);
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let few = longshore(&table(ports, 1)).await;
        asked(few.port).await;
        let small = ms(began.elapsed());
        let began = Instant::now();
        let server = longshore(&large).await;
        asked(server.port).await;
        starts.push(ms(began.elapsed()) - small);
    }
    show("a switch among 200 routes of 5, on disk and acknowledged, ms", &switches[..5]);
    show("a start with 10,000 routes, ms more than with one", &starts);
    vec![
        Figure::new("a switch among 200 routes of 5, on disk and acknowledged", median(&switches), "ms"),
        Figure::new("a start with 10,000 routes of 5, beyond one with a single route", median(&starts), "ms")
            .target(Target::AtMost(100.0)),
    ]
}
