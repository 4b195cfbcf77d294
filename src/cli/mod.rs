//! (to come)

pub mod hook;
