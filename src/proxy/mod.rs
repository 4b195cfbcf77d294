//! The data plane: a process of its own that serves traffic from a route table and survives the agent.
pub mod control;
pub mod table;
