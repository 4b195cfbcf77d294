//! Forward-only migrations on `PRAGMA user_version`.

use std::path::Path;

use rusqlite::Connection;

use super::{OpenError, explain_open};

const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_start.sql"), include_str!("migrations/0002_upkeep.sql")];

/// Applies what is missing, each migration with its version in one transaction.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let explain = |err| explain_open(path, err);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(explain)?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(OpenError::Newer { path: path.into(), found, known });
    }
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        let version = index + 1;
        connection
            .execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"))
            .map_err(explain)?;
    }
    Ok(())
}
