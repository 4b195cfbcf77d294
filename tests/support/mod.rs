//! What the end-to-end tests stand on. Nothing that longshore runs on is faked: git, the Docker engine, HTTP and
//! processes are real. Only GitHub (as a sender) and Discord (as a receiver) are stood in for, by local code that is
//! strict about what those services document.
//!
//! | module | what a test does with it |
//! |---|---|
//! | [`site`] | builds the application under deployment and says how it behaves |
//! | [`repo`] | commits it, pushes it |
//! | [`github`] | tells the agent, as GitHub would |
//! | [`agent`] | runs longshore itself and fails on what it leaves behind |
//! | [`load`] | keeps asking while things change |
//! | [`discord`] | receives the notices and refuses what Discord would |
//! | [`disk`] | a small file system that can be full or read-only |
//! | [`engine`] | looks at the Docker engine by label |
//! | [`spawned`] | reads what a program prints, line by line with the time |
//! | [`private_engine`] | runs an engine of the test's own, to be killed |
//! | [`pebble`] | runs a certificate authority of the test's own |
//! | [`relay`] | has one request to the engine go wrong |
//! | [`http`], [`ports`], [`wait`] | small tools of the others |
//!
//! A helper panics with one clear sentence when something is not as it must be: the test then fails with it.

pub mod agent;
pub mod discord;
pub mod disk;
pub mod engine;
pub mod github;
pub mod http;
pub mod load;
#[allow(dead_code, reason = "not for the benchmarks")]
pub mod pebble;
pub mod ports;
pub mod private_engine;
pub mod relay;
pub mod repo;
pub mod site;
pub mod spawned;
pub mod wait;
