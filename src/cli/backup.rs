//! `longshore backup FILE`, `longshore restore FILE`

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;
use hyper::Method;
use jiff::Timestamp;

use super::client::{AskError, Client};
use super::error::CliError;
use super::target;
use super::term::Term;
use super::text::clean;
use crate::data_dir::lock::{self, LockError};
use crate::data_dir::{self, JOURNAL, sync_directory};
use crate::disk::Bytes;
use crate::store::restore::{self, Whose};
use crate::store::{Contents, OpenError, copy_closed, inspect};

pub(super) const BACKUP_EXAMPLES: &str = "Examples:
  longshore backup /srv/backup/longshore.db
  longshore backup --force /srv/backup/longshore.db

It has the whole journal: deployments, releases, tokens (as digests), the agent's id. It has no images, no secrets of the
configuration and no volumes of the apps. The agent goes on meanwhile. The file must be outside of the data_dir.";

pub(super) const RESTORE_EXAMPLES: &str = "Examples:
  longshore restore /srv/backup/longshore.db

Stop the agent before, and start it afterwards. The journal that is there is set aside, not deleted. The apps go on running meanwhile.
The backup of another agent is refused; with --another-agent this one goes on as that one.";

/// What is left to do after a restore.
const NEXT: &str = "
Next:
  1. Start the agent. It starts the release that the backup calls live, and until that is ready its app answers 503.
     What had not ended when the backup was made is cancelled. What the backup does not know of is left running,
     without requests (docker ps --filter label=longshore.app=APP shows it), and what is new is numbered beyond it.
  2. longshore deploy APP for each app: the release that the backup calls live may be older than the branch.";

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// Where to.
    file: PathBuf,
    /// Replace the file when it exists.
    #[arg(long)]
    force: bool,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// A file that `longshore backup` wrote, or a journal that was set aside.
    file: PathBuf,
    /// Take the backup of another agent than the one whose data_dir this is, and go on as that one.
    #[arg(long)]
    another_agent: bool,
}

/// Through the agent when one answers, else from the journal itself.
pub(super) async fn backup(
    client: &Client,
    term: &mut Term,
    config: Option<PathBuf>,
    args: BackupArgs,
) -> Result<ExitCode, CliError> {
    let BackupArgs { file, force } = &args;
    let shown = file.display();
    // Without a configuration here the agent is on another machine, or its directory is known by what is in it.
    refuse_data_dir(file, target::data_dir_of(config).ok().as_deref())?;
    if !force && file.symlink_metadata().is_ok() {
        return Err(CliError::Usage(format!("{shown} exists already; choose another name, or add --force")));
    }
    let new = beside(file)?;
    let copied = match fetch(client, &new, file).await {
        Err(AskError::Lost(why)) => match client.data_dir() {
            Some(data_dir) => copy_from(data_dir, &new, file, &why),
            None => Err(CliError::Failed(why)),
        },
        fetched => fetched.map_err(CliError::from),
    };
    let contents = copied.and_then(|()| keep(&new, file));
    if contents.is_err() {
        // Best effort: whatever there is of it is of no use.
        let _ = fs::remove_file(&new);
    }
    term.print(&clean(&format!("{shown}: {}", describe(&contents?))))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a file in a directory of an agent's, where it could replace what the agent works with, and where a copy is
/// lost together with the journal.
fn refuse_data_dir(file: &Path, own: Option<&Path>) -> Result<(), CliError> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // One that cannot be entered cannot be written to either, which is told of then.
    let Ok(directory) = fs::canonicalize(parent) else { return Ok(()) };
    let identity = |dir: &Path| fs::metadata(dir).ok().map(|found| (found.dev(), found.ino()));
    let own = own.and_then(identity);
    let is_agents = |dir: &&Path| {
        own.is_some() && identity(dir) == own || [JOURNAL, lock::FILE].iter().all(|name| dir.join(name).exists())
    };
    match directory.ancestors().find(is_agents) {
        Some(data_dir) => Err(CliError::Usage(format!(
            "{} is not written: it would be in the data_dir of an agent ({}), beside or in place of the files that the \
             agent works with; name a file in another directory",
            file.display(),
            data_dir.display()
        ))),
        None => Ok(()),
    }
}

/// The name under which the file is written, in the same directory.
fn beside(file: &Path) -> Result<PathBuf, CliError> {
    let name = file.file_name().ok_or_else(|| CliError::Usage(format!("{} is not a file's name", file.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(file.with_file_name(hidden))
}

/// Writes to `new` for now; `file` is what people call it.
async fn fetch(client: &Client, new: &Path, file: &Path) -> Result<(), AskError> {
    let cannot_write = |err: io::Error| AskError::Refused(format!("cannot write {}: {err}", file.display()));
    let mut body = client.bytes(Method::POST, "/api/v1/backup").await?;
    let mut file = create(new).map_err(cannot_write)?;
    while let Some(chunk) = body.next().await {
        // It was there: what came of it does not count, but it is no reason to open the journal oneself.
        let chunk = chunk.map_err(|why| AskError::Refused(format!("the agent's answer broke off: {why}")))?;
        file.write_all(&chunk).map_err(cannot_write)?;
    }
    file.sync_all().map_err(cannot_write)
}

fn create(new: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(new)
}

/// Without an agent.
fn copy_from(data_dir: &Path, new: &Path, file: &Path, unreachable: &str) -> Result<(), CliError> {
    let journal = data_dir.join(JOURNAL);
    if !journal.exists() {
        return Err(CliError::Failed(format!("{unreachable}\nand there is no journal at {}", journal.display())));
    }
    let _alone = lock::take(data_dir, "longshore backup").map_err(|err| match err {
        LockError::Held { .. } => CliError::Failed(format!("{unreachable}\n{err}")),
        LockError::Io { .. } => CliError::Failed(err.to_string()),
    })?;
    copy_closed(&journal, new).map_err(|err| match err {
        OpenError::NotWritten { .. } => CliError::Failed(err.told_of(file).to_string()),
        of_the_journal => CliError::Failed(of_the_journal.to_string()),
    })
}

/// Only what is whole gets the name.
fn keep(new: &Path, file: &Path) -> Result<Contents, CliError> {
    let contents = inspect(new).map_err(|err| not_whole(err, file))?;
    let named = fs::rename(new, file).and_then(|()| sync_directory(file));
    named.map_err(|err| CliError::Failed(format!("cannot write {}: {err}", file.display())))?;
    Ok(contents)
}

fn not_whole(err: OpenError, file: &Path) -> CliError {
    let why = match err {
        OpenError::NotAJournal { what, .. } => format!("is no journal of longshore's: {what}"),
        OpenError::Damaged { why, .. } => format!("is damaged: {why}"),
        OpenError::Newer { found, known, .. } => {
            format!("has schema version {found}, and this longshore knows up to {known}: use the agent's version")
        }
        other => format!("cannot be read again: {}", other.told_of(file)),
    };
    CliError::Failed(format!("{} is not written: the copy of the journal {why}", file.display()))
}

/// Refused while an agent runs.
pub(super) fn restore(args: &RestoreArgs, config: Option<PathBuf>) -> Result<(), CliError> {
    let data_dir = target::data_dir_of(config)?;
    // On a new machine there is none yet.
    data_dir::prepare(&data_dir).map_err(|err| CliError::Failed(format!("{err:#}")))?;
    let alone = lock::take(&data_dir, "longshore restore").map_err(|err| match err {
        LockError::Held { .. } => {
            CliError::Failed(format!("{err}; stop it first, the apps and the proxy go on meanwhile"))
        }
        LockError::Io { .. } => CliError::Failed(err.to_string()),
    })?;
    let journal = data_dir.join(JOURNAL);
    let whose = if args.another_agent { Whose::Any } else { Whose::Own };
    let done = restore::restore(&args.file, &journal, whose, Timestamp::now());
    let done = done.map_err(|err| CliError::Failed(format!("nothing is restored: {err}")))?;
    drop(alone);
    let mut lines = vec![format!("{} is restored: {}", journal.display(), describe(&done.contents))];
    if let Some(aside) = &done.set_aside {
        lines.push(format!("what was there is at {}", aside.display()));
    }
    lines.extend(NEXT.lines().map(str::to_owned));
    Term::stdout().print(&lines.iter().map(|line| clean(line)).collect::<Vec<_>>().join("\n"))?;
    Ok(())
}

fn describe(contents: &Contents) -> String {
    let counted = |number: u64, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    format!(
        "{}, {}, {} (schema version {})",
        Bytes(contents.bytes),
        counted(contents.deployments, "deployment"),
        counted(contents.releases, "release"),
        contents.schema
    )
}
