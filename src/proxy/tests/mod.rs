//! The proxy with real clients and real servers, all on loopback.

mod agents;
mod handover;
mod streams;
mod support;
mod traffic;
mod wire;
