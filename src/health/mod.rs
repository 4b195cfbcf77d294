//! Whether an instance answers: a pure gate fed by probes.

pub mod gate;
pub mod probe;

pub use gate::Gate;
