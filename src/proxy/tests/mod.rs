//! The proxy with real clients and real servers, all on loopback.

mod access_log;
mod agents;
mod challenges;
mod files;
mod h2c;
mod handover;
mod http2;
mod limits;
mod queueing;
mod streams;
mod support;
mod tls;
mod traffic;
mod wire;
