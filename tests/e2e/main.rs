//! longshore from outside: a real agent, a real Docker engine, real git and real HTTP.
// Helpers panic with a sentence when something is not as it must be: that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;
// Of what the tests of the source have, the end to end tests need the servers only.
#[allow(dead_code)]
#[path = "../support/git_server.rs"]
mod git_server;
#[path = "../support/sshd.rs"]
mod sshd;

mod absent_secrets;
mod acme;
mod api;
mod backups;
mod bad_versions;
mod canaries;
mod cancel;
mod chance;
mod chaos;
mod clients;
mod commands;
mod deliveries;
mod departures;
mod disk_full;
mod endings;
mod engine_away;
mod engine_lost;
mod engine_restarts;
#[cfg(feature = "fail-points")]
mod faults;
mod gates;
mod networks;
mod operations;
mod permanent_canaries;
mod proof;
mod proving;
mod proxy;
mod pushing;
mod queueing;
mod reconciling;
mod recovery;
mod rollout;
mod routes;
mod secrets;
mod shop;
mod sources;
mod stand_ins;
mod static_files;
mod support_selftest;
mod upkeep;
