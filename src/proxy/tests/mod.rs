//! The proxy with real clients and real servers, all on loopback.

mod access_log;
mod agents;
mod files;
mod handover;
mod http2;
mod streams;
mod support;
mod tls;
mod traffic;
mod wire;
