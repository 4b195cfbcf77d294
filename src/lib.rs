//! longshore: a push becomes a verified, built, health-gated rollout that undoes itself when it fails.
//!
//! The modules read in the order in which a push passes them:
//!
//! 1. [`trigger`] verifies a delivery and turns it into a `Push`;
//! 2. [`queue`] decides what it replaces, [`store`] has it on disk before the answer leaves;
//! 3. [`deploy`] runs the deployment: source, build, release command, rollout;
//! 4. [`rollout`] replaces instances one at a time (a pure machine and its driver),
//!    on a [`runtime`], gated by [`health`], switched in the [`proxy`];
//! 5. [`journal`] tells it on: to the pusher's terminal, the [`api`] and [`notify`].
//!
//! [`agent`] holds an app's parts together, [`serve`] starts and ends it all; [`cli`] is what a person types.

pub mod discard;
pub mod fail_point;
pub mod histogram;
pub mod model;
pub mod text;

pub mod acme;
pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod deploy;
pub mod disk;
pub mod health;
pub mod journal;
pub mod named_files;
pub mod notify;
pub mod proxy;
pub mod queue;
pub mod rollout;
pub mod runtime;
pub mod serve;
pub mod store;
pub mod trigger;

#[cfg(feature = "fuzzing")]
pub use proxy::fuzzing;
