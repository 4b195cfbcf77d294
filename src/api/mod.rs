//! (to come)

pub mod problem;
