//! `longshore init`: a first configuration with a fresh webhook secret.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Error, Result, ensure};
use clap::Args;

use crate::config;
use crate::model::AppName;

pub(super) const EXAMPLES: &str = "Examples:
  longshore init --app shop --repo https://github.com/example/shop.git --domain shop.example.com
  longshore init --app shop --repo https://github.com/example/shop.git --port 3000 --config /etc/longshore/deploy.toml";

/// What the command takes.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The app's name.
    #[arg(long, value_name = "NAME")]
    app: AppName,
    /// Its repository: https, ssh, or an absolute path on this machine.
    #[arg(long, value_name = "URL")]
    repo: String,
    /// The branch that deploys.
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    branch: String,
    /// The host that leads to it.
    #[arg(long, value_name = "HOST")]
    domain: Option<String>,
    /// The port that it listens on.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
}

/// Writes the configuration and the secret, neither over an existing file, and says what comes next.
pub(super) fn run(args: &InitArgs, config_path: &Path) -> Result<()> {
    ensure!(!config_path.exists(), "{} exists already; it is left as it is", config_path.display());
    let dir = match config_path.parent() {
        Some(dir) if dir != Path::new("") => dir.to_path_buf(),
        _ => std::env::current_dir().context("the current directory is gone")?,
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    let secret_path = dir.join(format!("{}-webhook-secret", args.app));
    let text = template(args, &secret_path);
    let name = config_path.display().to_string();
    let secret = fresh_secret()?;
    write_new(&secret_path, &secret, 0o600)?;
    // What is wrong with the arguments is said in the words of `check`, before a configuration is there.
    if let Err(problems) = config::parse(&text, &name, &dir) {
        fs::remove_file(&secret_path).ok();
        return Err(Error::new(problems).context("nothing was written; the file would be wrong"));
    }
    write_new(config_path, &text, 0o644)?;
    println!("wrote {name} and {}\n", secret_path.display());
    println!("Next:");
    println!("  longshore check --config {name}");
    println!("  longshore serve --config {name}");
    println!("Tell it of pushes by a GitHub webhook to http(s)://THIS_SERVER/hooks/{} with the secret in", args.app);
    println!("{} (content type application/json, the push event),", secret_path.display());
    println!("or by the hook of a git repository on this machine:");
    println!("  longshore hook install --app {} --config {name} /path/to/repository.git", args.app);
    Ok(())
}

fn template(args: &InitArgs, secret_path: &Path) -> String {
    let InitArgs { app, repo, branch, domain, port } = args;
    let local = if repo.starts_with('/') { "allow_local = true\n" } else { "" };
    let domains = domain.iter().map(|domain| format!("domains  = [{domain:?}]\n")).collect::<String>();
    format!(
        "# Every key is explained in deploy.toml.example of longshore's source.\n\
         [agent]\n\
         listen   = \"127.0.0.1:9000\"\n\
         data_dir = \"/var/lib/longshore\"\n\
         \n\
         [proxy]\n\
         http = \"0.0.0.0:80\"\n\
         # With certificates of Let's Encrypt, to whose terms you agree by it:\n\
         # https = \"0.0.0.0:443\"\n\
         # acme  = {{ email = \"ops@example.com\" }}\n\
         \n\
         [apps.{app}]\n\
         repo     = {repo:?}\n\
         {local}branch   = {branch:?}\n\
         webhook  = {{ provider = \"github\", secret = {{ file = {secret_path:?} }} }}\n\
         {domains}port      = {port}\n\
         instances = 2\n\
         # A path that answers 2xx when the app can take requests:\n\
         # health  = {{ path = \"/healthz\" }}\n"
    )
}

fn fresh_secret() -> Result<String> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).context("no randomness")?;
    Ok(hex::encode(random))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    ensure!(!path.exists(), "{} exists already; it is left as it is, and nothing was written", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(repo: &str) -> InitArgs {
        InitArgs {
            app: "shop".parse().unwrap(),
            repo: repo.into(),
            branch: "main".into(),
            domain: Some("shop.example.com".into()),
            port: 3000,
        }
    }

    #[test]
    fn what_it_writes_is_valid_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/deploy.toml");
        run(&args("https://github.com/example/shop.git"), &path).unwrap();
        let config = config::load(&path).unwrap();
        assert_eq!(config.apps.len(), 1);
        let again = run(&args("https://github.com/example/shop.git"), &path).unwrap_err();
        assert!(again.to_string().contains("exists already"), "{again}");
    }

    #[test]
    fn bad_arguments_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deploy.toml");
        let err = run(&args("--upload-pack=x"), &path).unwrap_err();
        assert!(err.is::<config::Problems>(), "{err}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
