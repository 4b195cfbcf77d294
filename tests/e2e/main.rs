//! longshore from outside: a real agent, a real Docker engine, real git and real HTTP.
// Helpers panic with a sentence when something is not as it must be: that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod api;
mod bad_versions;
mod cancel;
mod commands;
mod deliveries;
mod gates;
mod operations;
mod pushing;
mod queueing;
mod reconciling;
mod recovery;
mod rollout;
mod secrets;
mod shop;
mod support_selftest;
