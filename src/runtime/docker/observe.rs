//! From what the engine shows of a container to an [`Observed`].

use std::collections::HashMap;
use std::str::FromStr;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary, HealthStatusEnum,
};
use jiff::Timestamp;

use crate::model::{AppName, CommitSha, DeploymentId, InstanceId, ReleaseNumber, ServiceName};
use crate::runtime::{Exited, Observed, RunState, Unknown, labels};

/// What the labels of a container of ours say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// It is this instance.
    Instance(InstanceId),
    /// It runs a release command, or is there to copy files from.
    OneOff,
    /// Neither: this label is missing or malformed.
    Unknown(&'static str),
}

/// Whose container it is, from its labels.
pub(super) fn whose(all: &HashMap<String, String>) -> Whose {
    match all.get(labels::KIND).map(String::as_str) {
        Some(labels::KIND_INSTANCE) => match Labelled::read(all) {
            Ok(labelled) => Whose::Instance(labelled.id),
            Err(wrong) => Whose::Unknown(wrong),
        },
        Some(labels::KIND_RELEASE_COMMAND | labels::KIND_FILES) => Whose::OneOff,
        _ => Whose::Unknown(labels::KIND),
    }
}

/// The same of a listed one.
pub(super) fn whose_is(container: &ContainerSummary) -> Whose {
    container.labels.as_ref().map_or(Whose::Unknown(labels::KIND), whose)
}

/// A container of ours that is neither an instance nor a one-off.
pub(super) fn unknown(container: ContainerSummary) -> Option<Unknown> {
    let Whose::Unknown(wrong) = whose_is(&container) else { return None };
    let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
    Some(Unknown { container: container.id?, name: name.trim_start_matches('/').to_owned(), wrong })
}

/// What we write on a container.
struct Labelled {
    id: InstanceId,
    app: AppName,
    service: ServiceName,
    slot: u32,
    release: ReleaseNumber,
    deployment: DeploymentId,
    commit: CommitSha,
    settings: String,
}

impl Labelled {
    /// The error is the first label that is missing or malformed.
    fn read(all: &HashMap<String, String>) -> Result<Self, &'static str> {
        fn parsed<T: FromStr>(all: &HashMap<String, String>, name: &'static str) -> Result<T, &'static str> {
            all.get(name).and_then(|text| text.parse().ok()).ok_or(name)
        }
        let id = all.get(labels::INSTANCE).and_then(|id| InstanceId::parse(id).ok());
        Ok(Self {
            id: id.ok_or(labels::INSTANCE)?,
            app: parsed(all, labels::APP)?,
            service: parsed(all, labels::SERVICE)?,
            slot: parsed(all, labels::SLOT)?,
            release: ReleaseNumber(parsed(all, labels::RELEASE)?),
            deployment: DeploymentId(parsed(all, labels::DEPLOYMENT)?),
            commit: parsed(all, labels::COMMIT)?,
            settings: all.get(labels::SETTINGS).cloned().ok_or(labels::SETTINGS)?,
        })
    }
}

/// `None` for a container that is not the agent's, or whose labels are not what we write.
pub(super) fn observed(agent: &str, container: &ContainerInspectResponse) -> Option<Observed> {
    let config = container.config.as_ref()?;
    let all = config.labels.as_ref()?;
    if all.get(labels::AGENT).map(String::as_str) != Some(agent) {
        return None;
    }
    let Labelled { id, app, service, slot, release, deployment, commit, settings } = Labelled::read(all).ok()?;
    let state = container.state.as_ref()?;
    let run_state = run_state(state);
    let network = labels::network_name(agent, &app);
    let address = || {
        let networks = container.network_settings.as_ref()?.networks.as_ref()?;
        networks.get(&network)?.ip_address.as_deref()?.parse().ok()
    };
    let healthcheck = config.healthcheck.as_ref().and_then(|check| check.test.as_deref()).unwrap_or_default();
    Some(Observed {
        id,
        container: container.id.clone()?,
        app,
        service,
        slot,
        release,
        deployment,
        commit,
        settings,
        // An address shown for a container that does not run may be another's by now.
        address: if run_state == RunState::Running { address() } else { None },
        state: run_state,
        started_at: state.started_at.as_deref().and_then(time),
        restarts: container.restart_count.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        image_health: match state.health.as_ref().and_then(|health| health.status) {
            Some(HealthStatusEnum::HEALTHY) => Some(true),
            Some(HealthStatusEnum::UNHEALTHY) => Some(false),
            _ => None,
        },
        has_healthcheck: healthcheck.first().is_some_and(|first| first != "NONE"),
    })
}

/// While the engine waits to restart a container it calls it running: it is not.
fn run_state(state: &ContainerState) -> RunState {
    let yes = |flag: Option<bool>| flag.unwrap_or(false);
    if state.status == Some(ContainerStateStatusEnum::CREATED) {
        return RunState::Created;
    }
    if yes(state.running) && !yes(state.restarting) && state.pid.unwrap_or(0) != 0 {
        return RunState::Running;
    }
    RunState::Exited(Exited { code: state.exit_code.unwrap_or(0), oom: yes(state.oom_killed), output: Vec::new() })
}

/// The engine writes year 1 for "never".
fn time(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().filter(|at| at.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: &str, running: bool, restarting: bool, pid: i64) -> ContainerState {
        ContainerState {
            status: Some(status.parse().unwrap()),
            running: Some(running),
            restarting: Some(restarting),
            pid: Some(pid),
            exit_code: Some(7),
            oom_killed: Some(true),
            ..Default::default()
        }
    }

    #[test]
    fn only_a_process_is_running() {
        let ended = RunState::Exited(Exited { code: 7, oom: true, output: vec![] });
        assert_eq!(run_state(&state("created", false, false, 0)), RunState::Created);
        assert_eq!(run_state(&state("running", true, false, 12)), RunState::Running);
        assert_eq!(run_state(&state("running", true, false, 0)), ended, "the engine's own view lags behind");
        assert_eq!(run_state(&state("restarting", true, true, 0)), ended);
        assert_eq!(run_state(&state("exited", false, false, 0)), ended);
    }

    #[test]
    fn labels_that_are_not_ours_say_what_is_wrong_with_them() {
        let whole = [
            (labels::KIND, "instance"),
            (labels::INSTANCE, "d1-web-1"),
            (labels::APP, "shop"),
            (labels::SERVICE, "web"),
            (labels::SLOT, "1"),
            (labels::RELEASE, "1"),
            (labels::DEPLOYMENT, "1"),
            (labels::COMMIT, "0123456789abcdef0123456789abcdef01234567"),
            (labels::SETTINGS, ""),
        ];
        let labels = |but: &str, value: Option<&str>| -> HashMap<String, String> {
            let kept = whole.iter().filter(|(name, _)| *name != but).copied();
            kept.chain(value.map(|value| (but, value)))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        assert_eq!(whose(&labels("", None)), Whose::Instance(InstanceId::parse("d1-web-1").unwrap()));
        assert_eq!(whose(&labels(labels::KIND, Some("files"))), Whose::OneOff);
        for (name, _) in whole {
            assert_eq!(whose(&labels(name, None)), Whose::Unknown(name));
            if name != labels::SETTINGS {
                assert_eq!(whose(&labels(name, Some("Ü"))), Whose::Unknown(name));
            }
        }
    }

    #[test]
    fn never_started_has_no_time() {
        assert_eq!(time("0001-01-01T00:00:00Z"), None);
        assert!(time("2026-11-21T04:30:28.123456789Z").is_some());
    }
}
