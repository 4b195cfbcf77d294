//! Apps that are no longer configured and whose instances are still there: nobody else would tell of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::Agent;
use crate::model::{AppName, InstanceId};

/// Between two looks, beside the one at every change of the configuration: what ends is heard of at once.
const PAUSE: Duration = Duration::from_secs(60);

/// Whose instances were found at the last look.
#[derive(Debug, Default)]
pub struct Findings(RwLock<BTreeMap<AppName, BTreeSet<InstanceId>>>);

impl Findings {
    /// A line for each app of these that is gone now, with whether it gets requests now. How to end it is of use to those on this machine.
    pub(super) fn warnings(
        &self,
        agent_id: &str,
        caller_is_local: bool,
        is_gone: impl Fn(&AppName) -> bool,
        gets_requests: impl Fn(&BTreeSet<InstanceId>) -> bool,
    ) -> Vec<String> {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let told = |(app, left): (&AppName, &BTreeSet<InstanceId>)| {
            let instances = match left.len() {
                1 => "1 instance runs on".to_owned(),
                n => format!("{n} instances run on"),
            };
            let requests = match gets_requests(left) {
                true => "with the requests of its domains",
                false => "without requests",
            };
            let said = format!("{app} is not configured any more; {instances} {requests}, and nobody looks after them");
            let own = format!("--filter label=longshore.agent={agent_id} --filter label=longshore.app={app}");
            match caller_is_local {
                true => format!(
                    "{said}; to end them: docker rm -f $(docker ps -aq {own}); and then to remove its network and images: \
                     docker network prune -f {own}; docker image prune -af {own}"
                ),
                false => said,
            }
        };
        found.iter().filter(|(app, _)| is_gone(app)).map(told).collect()
    }

    /// An instance is gone, whosever it was.
    pub(super) fn removed(&self, id: &InstanceId) {
        let mut found = self.0.write().unwrap_or_else(PoisonError::into_inner);
        found.values_mut().for_each(|left| {
            left.remove(id);
        });
        found.retain(|_, left| !left.is_empty());
    }
}

/// Looks once, where the engine can be asked.
pub(super) async fn look(agent: Arc<Agent>) {
    agent.end_what_is_unconfigured().await;
    let Ok(parts) = agent.parts() else { return };
    // An engine that does not answer is told of already.
    let Ok(observed) = parts.runtime.list(None).await else { return };
    let config = agent.config();
    let mut found: BTreeMap<AppName, BTreeSet<InstanceId>> = BTreeMap::new();
    for instance in observed.into_iter().filter(|instance| !config.apps.contains_key(&instance.app)) {
        found.entry(instance.app).or_default().insert(instance.id);
    }
    *agent.unconfigured.0.write().unwrap_or_else(PoisonError::into_inner) = found;
}

/// Looks until the agent ends.
pub async fn look_out(agent: Arc<Agent>) {
    let looking = async {
        loop {
            tokio::time::sleep(PAUSE).await;
            look(agent.clone()).await;
        }
    };
    agent.shutdown().run_until_cancelled(looking).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_told_of_until_its_last_instance_is_gone() {
        let ids = ["d1-web-1", "d1-web-2"].map(|id| InstanceId::parse(id).unwrap());
        let left = ids.iter().cloned().collect();
        let findings = Findings(RwLock::new([("blog".parse().unwrap(), left)].into()));
        assert_eq!(
            findings.warnings("a1", false, |_| true, |_| true),
            [
                "blog is not configured any more; 2 instances run on with the requests of its domains, and nobody looks after them"
            ]
        );
        assert_eq!(findings.warnings("a1", true, |_| false, |_| true), Vec::<String>::new(), "it is back");
        findings.removed(&ids[0]);
        let local = findings.warnings("a1", true, |_| true, |_| false);
        assert!(
            local[0].contains("; 1 instance runs on without requests")
                && local[0].contains("docker rm -f $(docker ps -aq --filter label=longshore.agent=a1 --filter label=longshore.app=blog); ")
                && local[0].ends_with("docker image prune -af --filter label=longshore.agent=a1 --filter label=longshore.app=blog"),
            "{local:?}"
        );
        findings.removed(&ids[1]);
        assert_eq!(findings.warnings("a1", true, |_| true, |_| true), Vec::<String>::new());
    }
}
