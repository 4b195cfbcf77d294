//! The proxy with real clients and real servers, all on loopback.

mod access_log;
mod agents;
mod broken_off;
mod challenges;
mod ending;
mod files;
mod h2c;
mod handover;
mod http2;
mod http2_frames;
mod large;
mod limits;
mod messages;
mod queueing;
mod recorder;
mod smuggling;
mod streams;
mod support;
mod tls;
mod traffic;
mod websocket;
mod wire;
