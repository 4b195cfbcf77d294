//! Forward-only migrations on `PRAGMA user_version`. A journal is copied before it is changed.

use std::path::Path;

use rusqlite::Connection;

use super::backup;
use super::open::{OpenError, explain, sibling};
use super::recognise::copy_from_before;

pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_start.sql"),
    include_str!("migrations/0002_upkeep.sql"),
    include_str!("migrations/0003_commits.sql"),
    include_str!("migrations/0004_engine_outages.sql"),
    include_str!("migrations/0005_server_errors.sql"),
    include_str!("migrations/0006_delivery_keys.sql"),
    include_str!("migrations/0007_request_proof.sql"),
    include_str!("migrations/0008_canary_alerts.sql"),
    include_str!("migrations/0009_certificate_alerts.sql"),
    include_str!("migrations/0010_strangers.sql"),
];

/// The newest version.
pub(super) const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Which version a journal has; 0 = it is empty.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Refuses what a newer longshore wrote.
pub(super) fn refuse_newer(connection: &Connection, path: &Path) -> Result<i64, OpenError> {
    let found = version(connection).map_err(|err| explain(path, err))?;
    if found > KNOWN {
        let before = copy_from_before(path, KNOWN);
        return Err(OpenError::Newer { path: path.into(), found, known: KNOWN, before });
    }
    Ok(found)
}

/// Refuses an SQLite file that is of another program, whatever its version means there.
pub(super) fn refuse_foreign(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('deployments', 'releases', 'meta')";
    match connection.query_row(sql, [], |row| row.get(0)).map_err(|err| explain(path, err))? {
        3 => Ok(()),
        _ => Err(OpenError::NotAJournal { path: path.into(), what: "it is an SQLite file without a journal in it" }),
    }
}

/// Applies what is missing, each migration with its version in one transaction. What was there before is kept as
/// `journal.db.before-v2`.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = refuse_newer(connection, path)?;
    if (1..KNOWN).contains(&found) {
        let copy = sibling(path, &format!(".before-v{KNOWN}"));
        let no_copy = |why: String| OpenError::NoCopy { path: path.into(), to: KNOWN, copy: copy.clone(), why };
        backup::copy(connection, &copy).map_err(|err| no_copy(err.to_string()))?;
        tracing::info!(copy = %copy.display(), "the journal was copied; bringing it from schema version {found} to {KNOWN}");
    }
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        let version = index + 1;
        connection
            .execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {version}; COMMIT;"))
            .map_err(|err| not_migrated(explain(path, err), version))?;
    }
    Ok(())
}

fn not_migrated(err: OpenError, version: usize) -> OpenError {
    match err {
        OpenError::Other { path, why } => {
            let why = format!("it cannot be brought to schema version {version} ({why}) and is left as it was");
            OpenError::Other { path, why }
        }
        other => other,
    }
}
