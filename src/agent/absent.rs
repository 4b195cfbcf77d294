//! Secrets, and pages of maintenance, are looked for: those that were not there at the start until they are, and secrets that were
//! in case they go.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use crate::config::{Absences, Absent, Problems};

/// Between two looks. Where they lie may be mounted any moment, which no event of a file tells.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks until the agent ends.
pub async fn look_out(agent: Arc<Agent>) {
    let mut told: Option<Problems> = None;
    loop {
        let looked = agent.shutdown().run_until_cancelled(async {
            tokio::time::sleep(PAUSE).await;
            look(&agent).await
        });
        match looked.await {
            None => return,
            Some(Ok(())) => told = None,
            Some(Err(problems)) => {
                if told.as_ref() != Some(&problems) {
                    tracing::error!("what may be absent cannot be looked for, as something else is wrong:\n{problems}");
                }
                told = Some(problems);
            }
        }
    }
}

/// Puts those in force that are there by now, each by itself, and tells of those that are not.
async fn look(agent: &Arc<Agent>) -> Result<(), Problems> {
    let before = agent.config();
    let asked = before.clone();
    // An error is an agent that ends.
    let Ok(read) = tokio::task::spawn_blocking(move || asked.absent.look_again()).await else { return Ok(()) };
    let now = read?;
    let News { there, absent } = News::between(&before.absent, &now.absent);
    if (there.is_empty() && absent.is_empty()) || !agent.replace_config(&before, now).await {
        return Ok(());
    }
    for absent in absent {
        tracing::error!("{}", warning(&absent, true));
    }
    if !there.is_empty() {
        tracing::info!("what was absent is there now: {}", there.join(", "));
    }
    Ok(())
}

/// What one look has found that the one before had not.
#[derive(Debug, PartialEq, Eq)]
struct News {
    /// The keys of those that are there now.
    there: Vec<String>,
    /// Those that have gone, or are absent for another reason now.
    absent: Vec<Absent>,
}

impl News {
    fn between(before: &Absences, now: &Absences) -> Self {
        let is_absent = |key: &str| now.iter().any(|absent| absent.key == key);
        let there = before.iter().map(|absent| absent.key.clone()).filter(|key| !is_absent(key));
        let is_news = |absent: &&Absent| !before.iter().any(|known| known == *absent);
        Self { there: there.collect(), absent: now.iter().filter(is_news).cloned().collect() }
    }
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
        _ if absent.in_use => "what was read of it stays in use until the agent ends".to_owned(),
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_reason_is_news_and_so_is_one_that_goes_while_it_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let hook = dir.path().join("hook");
        let write = |mode| {
            std::fs::write(&hook, "sixteen.bytes.or.more").unwrap();
            std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let text = "[apps.shop]\nrepo = \"https://h/x\"\nwebhook = { secret = { file = \"hook\" } }\n";
        std::fs::write(dir.path().join("deploy.toml"), text).unwrap();
        let mut config = crate::config::load_to_start(&dir.path().join("deploy.toml")).unwrap();
        let mut look = || {
            let now = config.absent.look_again().unwrap();
            let news = News::between(&config.absent, &now.absent);
            config = now;
            (news.there.join(" "), news.absent.iter().map(|absent| warning(absent, true)).collect::<String>())
        };
        assert_eq!(look(), Default::default(), "what is known is told once");
        write(0o644);
        assert!(look().1.contains("hook has mode 0644"));
        write(0o600);
        assert_eq!(look(), ("apps.shop.webhook.secret".to_owned(), String::new()));
        std::fs::remove_file(&hook).unwrap();
        let (_, told) = look();
        assert!(told.contains("what was read of it stays in use") && told.contains("No such file"), "{told}");
        assert_eq!(look(), Default::default());
        let app = &config.apps[&"shop".parse().unwrap()];
        assert!(app.webhook.as_ref().unwrap().secret.is_ok());
    }

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
