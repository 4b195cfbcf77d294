//! `longshore hook install PATH`: makes a repository on a git server tell the agent of each push.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{self, Config, Problems, RepoUrl};
use crate::model::AppName;

/// The hook itself.
const HOOK: &str = include_str!("../../hooks/post-receive");
/// By this line a hook of ours is known.
const MARK: &str = "# longshore: post-receive hook.";
/// Holds the settings, beside the repository's `config` and included by it: that one is readable by everybody.
const SETTINGS: &str = "longshore.conf";

/// Install the post-receive hook in a repository on this machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    longshore hook install /srv/git/shop.git\n  \
    longshore hook install /srv/git/shop.git --app shop --url https://deploy.example.com --secret-stdin < secret")]
pub struct HookInstall {
    /// The repository, bare or not.
    #[arg(value_name = "PATH")]
    pub repository: PathBuf,
    /// The app that it deploys. Default: the one whose `repo` is PATH, else the only one.
    #[arg(long)]
    pub app: Option<AppName>,
    /// Where the hook reaches the agent. Default: `agent.public_url`, else `agent.listen`.
    #[arg(long)]
    pub url: Option<String>,
    /// Read the app's webhook secret from standard input, not from the configuration.
    #[arg(long)]
    pub secret_stdin: bool,
    /// Put the hook in place of one that is not longshore's; that one is kept beside it.
    #[arg(long)]
    pub force: bool,
}

/// What the hook is told by the repository's configuration.
#[derive(Debug, Clone)]
pub struct HookSettings {
    /// The agent's address.
    pub url: String,
    /// The app to deploy.
    pub app: AppName,
    /// Its webhook secret.
    pub secret: SecretString,
}

/// What [`install`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The hook.
    pub hook: PathBuf,
    /// The file with the settings.
    pub settings: PathBuf,
    /// The hook that was there before.
    pub backup: Option<PathBuf>,
}

/// Runs the command; the configuration is read only for what the arguments leave open.
pub fn run(args: &HookInstall, config_path: &Path) -> Result<()> {
    let settings = match (&args.app, &args.url, args.secret_stdin) {
        (Some(app), Some(url), true) => {
            HookSettings { url: url.clone(), app: app.clone(), secret: secret_from_stdin()? }
        }
        // Another app's secret is none of this one's business.
        _ => settings_from(args, &config::load_to_start(config_path)?)?,
    };
    let done = install(&args.repository, &settings, args.force)?;
    tell(&done, &settings, args).context("cannot write to standard output")
}

fn tell(done: &Installed, settings: &HookSettings, args: &HookInstall) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if let Some(backup) = &done.backup {
        writeln!(out, "Kept the earlier hook as {}", backup.display())?;
    }
    writeln!(out, "Installed {}", done.hook.display())?;
    writeln!(out, "Wrote longshore.url, longshore.app and longshore.secret to {}", done.settings.display())?;
    writeln!(
        out,
        "A push now has the agent at {} deploy {}, and shows its log to the pusher.",
        settings.url, settings.app
    )?;
    writeln!(out, "To try the connection without deploying anything, run in {}:", args.repository.display())?;
    writeln!(out, "  echo {zero} {zero} refs/heads/test | {}", done.hook.display(), zero = "0".repeat(40))?;
    Ok(())
}

fn settings_from(args: &HookInstall, config: &Config) -> Result<HookSettings> {
    let name = match &args.app {
        Some(app) => app.clone(),
        None => app_of(&args.repository, config)?,
    };
    let url = args.url.clone().or_else(|| config.agent.public_url.clone());
    let url = url.unwrap_or_else(|| format!("http://{}", reachable(config.agent.listen)));
    let secret = if args.secret_stdin {
        secret_from_stdin()?
    } else {
        let app =
            config.apps.get(&name).ok_or_else(|| anyhow!("there is no app {name}; there are: {}", names(config)))?;
        let webhook = app.webhook.as_ref().ok_or_else(|| {
            anyhow!("app {name} takes no webhooks: add `webhook = {{ provider = \"github\", secret = … }}` to it")
        })?;
        webhook
            .secret
            .clone()
            .map_err(|absent| Problems { file: config.absent.file().to_owned(), problems: vec![absent.problem] })?
    };
    Ok(HookSettings { url, app: name, secret })
}

fn app_of(repository: &Path, config: &Config) -> Result<AppName> {
    let here = fs::canonicalize(repository).with_context(|| format!("cannot open {}", repository.display()))?;
    let is_here = |repo: &RepoUrl| match repo {
        RepoUrl::Local(path) => fs::canonicalize(path).is_ok_and(|path| path == here || path == here.join(".git")),
        _ => false,
    };
    let mut of_it = config.apps.values().filter(|app| is_here(&app.repo));
    match (of_it.next(), of_it.next()) {
        (Some(app), None) => return Ok(app.name.clone()),
        (Some(_), Some(_)) => bail!("several apps deploy {}: say which with --app NAME", here.display()),
        (None, _) => {}
    }
    match config.apps.keys().collect::<Vec<_>>()[..] {
        [only] => Ok(only.clone()),
        _ => bail!("say with --app NAME which app {} deploys; there are: {}", here.display(), names(config)),
    }
}

fn names(config: &Config) -> String {
    let names: Vec<&str> = config.apps.keys().map(AppName::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The address to connect to for a listener that may be bound to every address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port());
    }
    listen
}

fn secret_from_stdin() -> Result<SecretString> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read the secret from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).into())
}

/// Writes the hook and its settings into `repository`. Repeating it brings both up to date.
pub fn install(repository: &Path, settings: &HookSettings, force: bool) -> Result<Installed> {
    check(settings)?;
    let repository = &fs::canonicalize(repository).with_context(|| format!("cannot open {}", repository.display()))?;
    let git_dir = within(repository, &git(repository, &["rev-parse", "--git-common-dir"])?);
    let hooks = within(repository, &git(repository, &["rev-parse", "--git-path", "hooks"])?);
    let git_config = git_dir.join("config");
    let owner = Owner::of(&git_config)?;

    let hook = hooks.join("post-receive");
    let backup = set_aside_foreign(&hook, force)?;
    fs::create_dir_all(&hooks).with_context(|| format!("cannot create {}", hooks.display()))?;
    // The hook runs as whoever pushes: members of the group in a shared repository.
    let mode = if is_shared(repository)? { 0o640 } else { 0o600 };
    let settings_file = git_dir.join(SETTINGS);
    write(&settings_file, &settings_text(settings), mode, owner)?;
    include_settings(repository)?;
    write(&hook, HOOK, 0o755, owner)?;
    Ok(Installed { hook, settings: settings_file, backup })
}

fn check(settings: &HookSettings) -> Result<()> {
    let HookSettings { url, secret, .. } = settings;
    let secret = secret.expose_secret();
    ensure!(
        url.starts_with("https://") || url.starts_with("http://"),
        "the agent's address {url:?} must begin with https:// or http://"
    );
    ensure!(!url.chars().any(|c| c.is_control() || c.is_whitespace()), "the agent's address {url:?} has blanks in it");
    ensure!(!secret.is_empty(), "the webhook secret is empty");
    ensure!(!secret.chars().any(char::is_control), "the webhook secret has control characters or line ends in it");
    Ok(())
}

/// Runs git in the repository; its output without the line end.
fn git(repository: &Path, args: &[&str]) -> Result<String> {
    let output = run_git(repository, args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {} in {}: {}", args.join(" "), repository.display(), said.trim());
    let text = String::from_utf8(output.stdout).context("git's answer is not UTF-8")?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// A path as git gives it, relative to the repository: in a bare one that is `.` or `./hooks`.
fn within(repository: &Path, path: &str) -> PathBuf {
    repository.join(path).components().collect()
}

fn run_git(repository: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new("git");
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_CONFIG");
    command.arg("-C").arg(repository).args(args).output().context("cannot run git: is it installed?")
}

/// Moves a hook that is not ours out of the way, when told to.
fn set_aside_foreign(hook: &Path, force: bool) -> Result<Option<PathBuf>> {
    let there = match fs::read(hook) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        there => there.with_context(|| format!("cannot read {}", hook.display()))?,
    };
    if String::from_utf8_lossy(&there).contains(MARK) {
        return Ok(None);
    }
    ensure!(
        force,
        "{} is there already and is not longshore's: call longshore's hook from it, or use --force to replace it (it is kept)",
        hook.display()
    );
    let backup =
        (0_u32..)
            .map(|n| {
                if n == 0 {
                    "post-receive.before-longshore".into()
                } else {
                    format!("post-receive.before-longshore.{n}")
                }
            })
            .map(|name| hook.with_file_name(name))
            .find(|path| !path.exists())
            .ok_or_else(|| anyhow!("no free name for a backup of {}", hook.display()))?;
    fs::rename(hook, &backup).with_context(|| format!("cannot move {} to {}", hook.display(), backup.display()))?;
    Ok(Some(backup))
}

/// `core.sharedRepository`, see git-config(1).
fn is_shared(repository: &Path) -> Result<bool> {
    let output = run_git(repository, &["config", "--get", "core.sharedRepository"])?;
    let value = String::from_utf8_lossy(&output.stdout).trim().to_ascii_lowercase();
    Ok(!matches!(value.as_str(), "" | "false" | "no" | "off" | "0" | "umask"))
}

fn settings_text(settings: &HookSettings) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "# Written by `longshore hook install`.\n[longshore]\n\turl = \"{}\"\n\tapp = \"{}\"\n\tsecret = \"{}\"\n",
        quoted(&settings.url),
        settings.app,
        quoted(settings.secret.expose_secret())
    )
}

/// Has the repository's configuration read ours, and drops what an earlier setup by hand left in it.
fn include_settings(repository: &Path) -> Result<()> {
    for key in ["longshore.url", "longshore.app", "longshore.secret"] {
        let output = run_git(repository, &["config", "--local", "--unset-all", key])?;
        // 5: it was not set.
        let done = output.status.success() || output.status.code() == Some(5);
        ensure!(done, "git config --unset-all {key}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    git(repository, &["config", "--local", "--replace-all", "include.path", SETTINGS, r"^longshore\.conf$"]).map(drop)
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn of(file: &Path) -> Result<Self> {
        let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { user: meta.uid(), group: meta.gid() })
    }
}

/// Writes a file as a whole: whoever looks sees the old or the new one, never with another mode or owner.
fn write(path: &Path, text: &str, mode: u32, owner: Owner) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let written = (|| -> Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        if Owner::of(&new)? != owner {
            chown(&new, Some(owner.user), Some(owner.group))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(())
    })();
    if written.is_err() {
        // The cause is what the caller must hear of.
        let _ = fs::remove_file(&new);
    }
    written.with_context(|| format!("cannot write {}: run this as the repository's owner", path.display()))
}

#[cfg(test)]
mod tests;
