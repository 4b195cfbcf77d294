//! From what the engine shows of a container to an [`Observed`].

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, HealthStatusEnum};
use jiff::Timestamp;

use crate::model::{DeploymentId, InstanceId, ReleaseNumber};
use crate::runtime::{Exited, Observed, RunState, labels};

/// `None` for a container that is not the agent's, or whose labels are not what we write.
pub(super) fn observed(agent: &str, container: &ContainerInspectResponse) -> Option<Observed> {
    let config = container.config.as_ref()?;
    let all = config.labels.as_ref()?;
    let label = |name: &str| all.get(name).map(String::as_str);
    if label(labels::AGENT) != Some(agent) {
        return None;
    }
    let app = label(labels::APP)?.parse().ok()?;
    let state = container.state.as_ref()?;
    let run_state = run_state(state);
    let network = labels::network_name(agent, &app);
    let address = || {
        let networks = container.network_settings.as_ref()?.networks.as_ref()?;
        networks.get(&network)?.ip_address.as_deref()?.parse().ok()
    };
    let healthcheck = config.healthcheck.as_ref().and_then(|check| check.test.as_deref()).unwrap_or_default();
    Some(Observed {
        id: InstanceId::parse(label(labels::INSTANCE)?).ok()?,
        app,
        service: label(labels::SERVICE)?.parse().ok()?,
        slot: label(labels::SLOT)?.parse().ok()?,
        release: ReleaseNumber(label(labels::RELEASE)?.parse().ok()?),
        deployment: DeploymentId(label(labels::DEPLOYMENT)?.parse().ok()?),
        commit: label(labels::COMMIT)?.parse().ok()?,
        settings: label(labels::SETTINGS)?.to_owned(),
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
    fn never_started_has_no_time() {
        assert_eq!(time("0001-01-01T00:00:00Z"), None);
        assert!(time("2026-11-21T04:30:28.123456789Z").is_some());
    }
}
