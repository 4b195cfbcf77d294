//! The journal on disk: one SQLite file, one thread that owns the connection.
/// Handle.
#[derive(Clone)]
pub struct Store;
