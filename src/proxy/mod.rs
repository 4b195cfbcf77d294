//! The data plane: a process of its own that serves traffic from a route table and survives the agent.
//!
//! A request passes: [`server`] (connection) → `forward` (one request) → [`routing`](self) (claim: pick and count in,
//! under one lock) → `pool` (a connection of that instance) → `body` (the answer, holding the claim until its end).
//! The agent's word comes in through [`control`], is kept on disk by `saved`, and ends in a swapped table; [`client`]
//! is the agent's side of that socket.

pub mod client;
pub mod control;
pub mod server;
pub mod spawn;
pub mod table;

mod answer;
mod body;
mod counts;
mod drain;
mod forward;
mod headers;
mod instance;
mod listen;
mod orders;
mod pick;
mod pool;
mod routing;
mod saved;
mod tunnel;

#[cfg(test)]
mod tests;

pub use client::{ApplyError, Counts, Drained, ProxyClient, ProxyStatus};
pub use server::{ProxyOptions, run};
pub use spawn::spawn_proxy;
