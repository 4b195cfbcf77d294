//! (to come)

pub mod check;
pub mod logging;
pub mod proxy;
pub mod serve;
