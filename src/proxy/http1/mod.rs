//! HTTP/1.1 (RFC 9112) as nearly all of it is: a request without a body that asks for nothing special, and its answer.
//!
//! This is what a proxy does most, and where its processor time goes: hyper takes half as much again for it as for the
//! system calls. All else is left to hyper, which knows the rest of the protocol: on the side of clients a connection
//! goes over to it with the first request that is not plain, so that nothing is judged twice (what the parser that both use
//! does not take at all is refused here, with a page of the proxy's own);
//! on the side of instances the requests that are not replayable, those with bodies and upgrades, take its connections.

mod chunked;
mod exchange;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod head;
mod interims;
mod pipe;
mod request;
mod response;
mod serve;
mod socket;
mod spare;

pub use exchange::{Exchange, LARGEST_HEAD, LinkError, Unanswered};
pub use interims::Interims;
pub use pipe::{MOST as MOST_PIPES, Pipe};
pub use request::first_line;
pub use serve::{ClientSocket, HALF_CLOSE, Served, serve};
