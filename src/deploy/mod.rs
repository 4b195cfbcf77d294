//! One deployment, told in order: source, build, release command, rollout, watch.
pub mod build;
pub mod source;
