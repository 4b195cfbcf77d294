//! Where the agent is: `LONGSHORE_URL` with `LONGSHORE_TOKEN`, else the socket in the configuration's data_dir.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::error::CliError;

const HERE: &str = "deploy.toml";
const SYSTEM: &str = "/etc/longshore/deploy.toml";
const DATA_DIR: &str = "/var/lib/longshore";
/// The agent's socket in its data_dir.
const SOCKET: &str = "longshore.sock";

/// How the agent is reached.
#[derive(Debug)]
pub(super) enum Target {
    /// On this machine; the kernel says who we are.
    Socket {
        path: PathBuf,
        /// For the advice how to start the agent.
        config: PathBuf,
    },
    /// Anywhere.
    Http { url: String, token: SecretString },
}

/// The configuration file that is meant: as asked, else the one here, else the system's.
pub(super) fn config_path(asked: Option<PathBuf>) -> PathBuf {
    asked.unwrap_or_else(|| {
        let system = Path::new(SYSTEM);
        let use_system = !Path::new(HERE).exists() && system.exists();
        if use_system { system.into() } else { HERE.into() }
    })
}

/// Finds the agent by the environment and the configuration.
pub(super) fn find(asked: Option<PathBuf>) -> Result<Target, CliError> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    match (variable("LONGSHORE_URL"), variable("LONGSHORE_TOKEN")) {
        (Some(url), Some(token)) => {
            let url = url.trim().trim_end_matches('/').to_owned();
            Ok(Target::Http { url, token: token.trim().to_owned().into() })
        }
        (Some(_), None) => Err(CliError::Usage(
            "LONGSHORE_URL is set but LONGSHORE_TOKEN is not; make a token with: longshore token create".into(),
        )),
        (None, _) => {
            let explicit = asked.is_some();
            let config = config_path(asked);
            Ok(Target::Socket { path: data_dir(&config, explicit)?.join(SOCKET), config })
        }
    }
}

/// The configuration as it is written, when it can be read here; nothing in it is checked.
pub(super) fn configuration(asked: Option<PathBuf>) -> Option<toml::Table> {
    std::fs::read_to_string(config_path(asked)).ok()?.parse().ok()
}

/// The agent's directory on this machine.
pub(super) fn data_dir_of(asked: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let explicit = asked.is_some();
    data_dir(&config_path(asked), explicit)
}

/// Reads the one key that a client needs: the rest may name secrets that only the agent can read. Without a file
/// that was asked for, the agent's default.
fn data_dir(config: &Path, explicit: bool) -> Result<PathBuf, CliError> {
    let shown = config.display();
    let text = match std::fs::read_to_string(config) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound && !explicit => return Ok(DATA_DIR.into()),
        Err(err) => return Err(CliError::Usage(format!("cannot read {shown}: {err}"))),
    };
    let file: toml::Table =
        text.parse().map_err(|err: toml::de::Error| CliError::Usage(format!("{shown}: {}", err.message())))?;
    let value = file.get("agent").and_then(|agent| agent.get("data_dir"));
    let dir = match value {
        None => DATA_DIR,
        Some(toml::Value::String(dir)) => dir,
        Some(_) => return Err(CliError::Usage(format!("{shown}: agent.data_dir must be a path in quotes"))),
    };
    Ok(config.parent().unwrap_or(Path::new("")).join(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_data_dir_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deploy.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            data_dir(&path, true)
        };
        let secret = "[agent]\ndata_dir = \"/srv/data\"\n[apps.shop.env]\nKEY = { env = \"NOT_SET_ANYWHERE\" }\n";
        assert_eq!(read(secret).unwrap(), Path::new("/srv/data"));
        assert_eq!(read("[agent]\ndata_dir = \"data\"\n").unwrap(), dir.path().join("data"));
        assert_eq!(read("").unwrap(), Path::new(DATA_DIR));
        assert!(matches!(read("[agent]\ndata_dir = 3\n"), Err(CliError::Usage(_))));
        assert!(matches!(read("[agent"), Err(CliError::Usage(_))));
        let missing = dir.path().join("none.toml");
        assert_eq!(data_dir(&missing, false).unwrap(), Path::new(DATA_DIR));
        assert!(matches!(data_dir(&missing, true), Err(CliError::Usage(_))));
    }
}
