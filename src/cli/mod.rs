//! (to come)

pub mod check;
pub mod hook;
pub mod logging;
pub mod proxy;
pub mod serve;
