//! Replacing instances: a pure machine decides, the driver performs.
//!
//! [`plan`] says what is different, [`machine`] in which order it changes, [`fleet`] holds an app's instances as they
//! are, [`judge`] whether a canary is as good as they are,
//! [`upkeep`] when one that fails is started again, [`driver`] is the one task per app that moves them, [`routes`] joins all apps into the proxy's table.

pub mod driver;
pub mod fleet;
pub mod judge;
pub mod machine;
pub mod plan;
pub mod routes;
pub mod upkeep;
pub mod watch;

pub use driver::{Assignment, Driver, LivePlace};
pub use fleet::{Entrance, InstanceState, ServiceSpec};
