//! Apps that are no longer configured and whose instances are still there: nobody else would tell of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::Agent;
use crate::model::{AppName, InstanceId};

/// Between two looks, beside the one at every change of the configuration: what ends is heard of at once.
const PAUSE: Duration = Duration::from_secs(60);

/// What was found at the last look.
#[derive(Debug, Default)]
pub struct Findings(RwLock<BTreeMap<AppName, LeftBehind>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LeftBehind {
    instances: BTreeSet<InstanceId>,
    /// Whether the table has any of them.
    gets_requests: bool,
}

impl Findings {
    /// A line for each app. How to end it is of use to those on this machine.
    pub(super) fn warnings(&self, agent_id: &str, caller_is_local: bool) -> Vec<String> {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let told = |(app, left): (&AppName, &LeftBehind)| {
            let instances = match left.instances.len() {
                1 => "1 instance runs on".to_owned(),
                n => format!("{n} instances run on"),
            };
            let requests = match left.gets_requests {
                true => "with the requests of its domains",
                false => "without requests",
            };
            let said = format!("{app} is not configured any more; {instances} {requests}, and nobody looks after them");
            match caller_is_local {
                true => format!(
                    "{said}; to end them: docker rm -f $(docker ps -aq --filter label=longshore.agent={agent_id} \
                     --filter label=longshore.app={app})"
                ),
                false => said,
            }
        };
        found.iter().map(told).collect()
    }

    /// An instance is gone, whosever it was.
    pub(super) fn removed(&self, id: &InstanceId) {
        let mut found = self.0.write().unwrap_or_else(PoisonError::into_inner);
        found.values_mut().for_each(|left| {
            left.instances.remove(id);
        });
        found.retain(|_, left| !left.instances.is_empty());
    }
}

/// Looks once, where the engine can be asked.
pub(super) async fn look(agent: Arc<Agent>) {
    let Ok(parts) = agent.parts() else { return };
    // An engine that does not answer is told of already.
    let Ok(observed) = parts.runtime.list(None).await else { return };
    let config = agent.config();
    let mut found: BTreeMap<AppName, LeftBehind> = BTreeMap::new();
    for instance in observed.into_iter().filter(|instance| !config.apps.contains_key(&instance.app)) {
        found.entry(instance.app).or_default().instances.insert(instance.id);
    }
    for left in found.values_mut() {
        left.gets_requests = parts.routes.leads_to(&left.instances).await;
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
        let left = LeftBehind { instances: ids.iter().cloned().collect(), gets_requests: true };
        let findings = Findings(RwLock::new([("blog".parse().unwrap(), left)].into()));
        assert_eq!(
            findings.warnings("a1", false),
            [
                "blog is not configured any more; 2 instances run on with the requests of its domains, and nobody looks after them"
            ]
        );
        findings.removed(&ids[0]);
        let local = findings.warnings("a1", true);
        assert!(
            local[0].contains("; 1 instance runs on ") && local[0].contains("label=longshore.app=blog)"),
            "{local:?}"
        );
        findings.removed(&ids[1]);
        assert_eq!(findings.warnings("a1", true), Vec::<String>::new());
    }
}
