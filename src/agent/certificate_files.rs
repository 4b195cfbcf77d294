//! Certificates that are configured as files are looked at while the agent runs: a proxy goes on with what it read of one
//! that became unusable, and nobody would notice before its next start.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::Agent;
use crate::named_files::{self, Finding};

/// Between two looks, beside the one at every change of the configuration.
const PAUSE: Duration = Duration::from_secs(20);

/// What was found at the last look.
#[derive(Debug, Default)]
pub struct Findings(RwLock<Vec<Finding>>);

impl Findings {
    /// One line each. Strangers are not told where the files are.
    pub(super) fn warnings(&self, caller_is_local: bool) -> Vec<String> {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let told = |finding: &Finding| match caller_is_local {
            true => finding.problem.what.clone(),
            false => format!("a certificate cannot be used as it is, or not for long: {}", finding.key),
        };
        found.iter().map(told).collect()
    }

    /// Keeps what was found; what is new is said in the log.
    fn keep(&self, now: Vec<Finding>) {
        let mut before = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for finding in now.iter().filter(|finding| !before.contains(finding)) {
            tracing::warn!("{}", finding.problem.what);
        }
        if now.is_empty() && !before.is_empty() {
            tracing::info!("every certificate of [proxy] can be used again");
        }
        *before = now;
    }
}

/// Looks until the agent ends.
pub async fn look_out(agent: Arc<Agent>) {
    let mut config = agent.watch_config();
    let looking = async {
        loop {
            let current = config.borrow_and_update().clone();
            let looked = tokio::task::spawn_blocking(move || named_files::unusable(&current, Timestamp::now()));
            // An error is an agent that ends.
            let Ok(found) = looked.await else { return };
            agent.certificate_files.keep(found);
            if let Ok(Err(_)) = timeout(PAUSE, config.changed()).await {
                return;
            }
        }
    };
    agent.shutdown().run_until_cancelled(looking).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_in;

    #[test]
    fn a_bad_certificate_is_told_until_it_is_good_again_and_strangers_do_not_hear_where() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[proxy]\nhttps = \"0.0.0.0:443\"\ncertificates = [{ cert = \"a.pem\", key = \"a.key\" }]\n";
        let config = parse_in(text, "deploy.toml", dir.path(), &|_: &str| None).unwrap();
        let findings = Findings::default();
        let look = || findings.keep(named_files::unusable(&config, Timestamp::now()));
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.pem", "junk");
        look();
        let local = findings.warnings(true);
        assert!(
            local[0].starts_with("proxy.certificates[0].cert: ") && local[0].contains("a.pem holds no"),
            "{local:?}"
        );
        assert!(local[1].starts_with("proxy.certificates[0].key: cannot read "), "{local:?}");
        let told = findings.warnings(false);
        assert_eq!(told[0], "a certificate cannot be used as it is, or not for long: proxy.certificates[0].cert");
        let made = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).unwrap();
        write("a.pem", &made.cert.pem());
        write("a.key", &made.signing_key.serialize_pem());
        look();
        assert_eq!(findings.warnings(true), Vec::<String>::new());
    }
}
