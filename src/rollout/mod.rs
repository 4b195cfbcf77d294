//! Replacing instances: a pure machine decides, the driver performs.
//!
//! [`plan`] says what is different, [`machine`] in which order it changes, [`canary`] the same in steps that share the
//! requests ([`shares`]), [`judge`] whether the new instances answer as well as the old ones meanwhile. [`fleet`] holds an
//! app's instances as they are, [`upkeep`] says when one that fails is started again, [`driver`] is the one task per app
//! that moves them, [`routes`] joins all apps into the proxy's table. [`permanent`] watches over an app that shares
//! another one's requests for as long as it is there.

pub mod canary;
pub mod driver;
pub mod fleet;
pub mod judge;
pub mod machine;
pub mod permanent;
pub mod plan;
pub mod routes;
pub mod shares;
pub mod stand_ins;
pub mod strangers;
pub mod tally;
pub mod upkeep;
pub mod watch;

pub use driver::{Adopted, Assignment, Driver, LivePlace};
pub use fleet::{Entrance, InstanceState, Prepared, ServiceSpec, Share};
