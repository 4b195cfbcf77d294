//! longshore from outside: a real agent, a real Docker engine, real git and real HTTP.
// Helpers panic with a sentence when something is not as it must be: that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod bad_versions;
mod cancel;
mod gates;
mod operations;
mod recovery;
mod rollout;
mod secrets;
mod shop;
mod support_selftest;
