//! Builds and containers on the real Docker engine of this machine.

#![allow(missing_docs)]

mod builds;
mod instances;
mod support;
