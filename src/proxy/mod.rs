//! The data plane: a process of its own that serves traffic from a route table and survives the agent.
//!
//! A request passes [`server`] (the listener), `connection` (the client's, in its version of HTTP), `forward` (the
//! request), `routing` (the claim: look up, pick and count in, under one lock), `attempt` (its tries), `pool` (a connection of
//! that instance) and `relay` (the answer, which holds the claim to its end); its head is a `message` with `fields`, and
//! `access_log` tells of it. Static files are answered by `files`, without a claim. The agent's word comes in through
//! [`control`] and `orders`, is kept on disk by `saved` and ends in a swapped table; `drain` sees off what left it. [`client`]
//! is the agent's side of the socket, and [`supervise`] its care for the process. A new process takes over by `handover`, and
//! speaks for its `predecessor` while that one `retire`s.

pub mod certificate;
pub mod client;
pub mod control;
pub mod log;
pub mod server;
pub mod spawn;
pub mod supervise;
pub mod table;

mod access_log;
mod alive;
mod answer;
mod attempt;
mod certificates;
mod challenges;
mod clients;
mod connection;
mod counts;
mod drain;
mod fields;
mod files;
mod forward;
mod front;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod giving_way;
mod handover;
mod headers;
mod http1;
mod instance;
mod listen;
mod lookup;
mod message;
mod multiplexed;
mod orders;
mod path_prefix;
mod pick;
mod pool;
mod predecessor;
mod queue;
mod relay;
mod retire;
mod routing;
mod saved;
mod stagger;
mod sticky;
mod stream;
mod streams;
mod taking;
mod tls;
mod tunnel;
mod upload;
mod upload_tasks;
mod wait;
mod watched;
mod websocket;

#[cfg(test)]
mod tests;

pub use client::{ApplyError, Counts, Drained, ProxyClient, ProxyStatus};
pub use front::ISSUED;
pub use listen::Inherited;
pub use path_prefix::{InvalidPath, PathPrefix};
pub use pick::Balance;
pub use queue::RouteLimits;
pub use server::{ProxyOptions, run};
pub use spawn::spawn_proxy;
