//! Secrets, and pages of maintenance, that were not there at the start are looked for until they are.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use crate::config::{Absent, Config, Problems};

/// Between two looks. Where they lie may be mounted any moment, which no event of a file tells.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks until none is absent. Later there can be none: a configuration that names what is absent is not taken by a reload.
pub async fn look_out(agent: Arc<Agent>) {
    let mut told: Option<Problems> = None;
    while !agent.config().absent.is_empty() {
        let looked = agent.shutdown().run_until_cancelled(async {
            tokio::time::sleep(PAUSE).await;
            look(&agent).await
        });
        match looked.await {
            None => return,
            Some(Ok(())) => told = None,
            Some(Err(problems)) => {
                if told.as_ref() != Some(&problems) {
                    tracing::error!("what was absent is not taken up, as something else is wrong:\n{problems}");
                }
                told = Some(problems);
            }
        }
    }
}

/// Puts those in force that are there by now, each by itself.
async fn look(agent: &Arc<Agent>) -> Result<(), Problems> {
    let before = agent.config();
    let asked = before.clone();
    // An error is an agent that ends.
    let Ok(read) = tokio::task::spawn_blocking(move || asked.absent.look_again()).await else { return Ok(()) };
    let now = read?;
    let keys = |config: &Config| config.absent.iter().map(|absent| absent.key.clone()).collect::<Vec<_>>();
    if keys(&before) == keys(&now) {
        return Ok(());
    }
    let there: Vec<String> = keys(&before).into_iter().filter(|key| !keys(&now).contains(key)).collect();
    if agent.replace_config(&before, now).await {
        tracing::info!("what was absent is there now: {}", there.join(", "));
    }
    Ok(())
}

/// What is not done as long as a secret or a page is absent. Strangers are not told where it should be.
pub(super) fn warning(absent: &Absent, caller_is_local: bool) -> String {
    if absent.is_page() {
        let key = match caller_is_local {
            true => absent.to_string(),
            false => absent.key.clone(),
        };
        return format!("a maintenance page is absent, and the proxy shows its own: {key}");
    }
    let what = match absent.app() {
        Some(app) => format!("what {app} needs it for is refused"),
        None => "what needs it waits".to_owned(),
    };
    match caller_is_local {
        true => format!("a secret is absent, and {what}: {absent}"),
        false => format!("a secret is absent, and {what}: {}", absent.key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_which_secret_is_absent_and_not_where_it_should_be() {
        let text = "[apps.shop]\nrepo = \"https://h/x\"\nwebhook = { secret = { file = \"/none/hook\" } }\n";
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("deploy.toml"), text).unwrap();
        let config = crate::config::load_to_start(&dir.path().join("deploy.toml")).unwrap();
        let absent = config.absent.iter().next().unwrap();
        assert_eq!(
            warning(absent, false),
            "a secret is absent, and what shop needs it for is refused: apps.shop.webhook.secret"
        );
        assert_eq!(
            warning(absent, true),
            "a secret is absent, and what shop needs it for is refused: apps.shop.webhook.secret: the secret file \
             /none/hook cannot be read: No such file or directory (os error 2)"
        );
        let text = "[apps.shop]\nrepo = \"https://h/x\"\nmaintenance = { page = \"/none/page\" }\n";
        std::fs::write(dir.path().join("deploy.toml"), text).unwrap();
        let config = crate::config::load_to_start(&dir.path().join("deploy.toml")).unwrap();
        assert_eq!(
            warning(config.absent.iter().next().unwrap(), false),
            "a maintenance page is absent, and the proxy shows its own: apps.shop.maintenance.page"
        );
    }
}
