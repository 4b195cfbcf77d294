//! Builds and containers on the real Docker engine of this machine.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod builds;
mod files;
mod instances;
mod support;
