//! From what the engine shows of a container to an [`Observed`].

use std::collections::HashMap;
use std::str::FromStr;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary, HealthStatusEnum,
};
use jiff::Timestamp;

use crate::model::{AppName, CommitSha, DeploymentId, InstanceId, ReleaseNumber, ServiceName};
use crate::runtime::{Exited, Observed, RunState, Unknown, labels};

/// What a container with our agent's label is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// It is this instance.
    Instance(InstanceId),
    /// It runs the release command that is called so.
    ReleaseCommand(InstanceId),
    /// It is there to copy files from.
    Files,
    /// None of these, and why not.
    Unknown(String),
}

/// Whose container it is, from its name and its labels. These alone say little: an image that is made of a container has
/// them all, and so has every container that is made of that image.
pub(super) fn whose(agent: &str, name: &str, all: &HashMap<String, String>) -> Whose {
    let whole = |is: fn(InstanceId) -> Whose| match Labelled::read(agent, name, all) {
        Ok(labelled) => is(labelled.id),
        Err(wrong) => Whose::Unknown(wrong),
    };
    match all.get(labels::KIND).map(String::as_str) {
        Some(labels::KIND_INSTANCE) => whole(Whose::Instance),
        Some(labels::KIND_RELEASE_COMMAND) => whole(Whose::ReleaseCommand),
        Some(labels::KIND_FILES) => Whose::Files,
        _ => Whose::Unknown(malformed(labels::KIND)),
    }
}

/// The same of a listed one.
pub(super) fn whose_is(agent: &str, container: &ContainerSummary) -> Whose {
    let none = HashMap::new();
    whose(agent, listed_name(container), container.labels.as_ref().unwrap_or(&none))
}

/// The same of one as inspect shows it.
pub(super) fn whose_inspected(agent: &str, container: &ContainerInspectResponse) -> Whose {
    let none = HashMap::new();
    let all = container.config.as_ref().and_then(|config| config.labels.as_ref()).unwrap_or(&none);
    whose(agent, inspected_name(container), all)
}

/// A container with our labels that is neither an instance nor a one-off.
pub(super) fn unknown(agent: &str, container: ContainerSummary) -> Option<Unknown> {
    let Whose::Unknown(wrong) = whose_is(agent, &container) else { return None };
    let name = listed_name(&container).to_owned();
    Some(Unknown { container: container.id?, name, wrong })
}

/// Its own name. Where others link to it, a list has the names that these give it as well, each below its own.
fn listed_name(container: &ContainerSummary) -> &str {
    let mut names = container.names.iter().flatten().filter_map(|name| name.strip_prefix('/'));
    names.find(|name| !name.contains('/')).unwrap_or_default()
}

fn inspected_name(container: &ContainerInspectResponse) -> &str {
    container.name.as_deref().unwrap_or_default().trim_start_matches('/')
}

fn malformed(label: &str) -> String {
    format!("{label} is missing or malformed")
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
    /// The error says what is wrong: a label that is missing or malformed, labels that contradict each other, or a name
    /// that is not the instance's.
    fn read(agent: &str, name: &str, all: &HashMap<String, String>) -> Result<Self, String> {
        let labelled = Self::labels(all)?;
        let Self { id, app, service, slot, deployment, .. } = &labelled;
        if !id.is_of(*deployment, service, *slot) {
            let (of, place) = (labels::DEPLOYMENT, labels::SLOT);
            return Err(format!(
                "{} {id} does not fit {of} {deployment}, {} {service} and {place} {slot}",
                labels::INSTANCE,
                labels::SERVICE
            ));
        }
        let called = labels::container_name(agent, app, id);
        if name != called {
            return Err(format!("its name is not {called}"));
        }
        Ok(labelled)
    }

    fn labels(all: &HashMap<String, String>) -> Result<Self, String> {
        fn parsed<T: FromStr>(all: &HashMap<String, String>, name: &str) -> Result<T, String> {
            all.get(name).and_then(|text| text.parse().ok()).ok_or_else(|| malformed(name))
        }
        let id = all.get(labels::INSTANCE).and_then(|id| InstanceId::parse(id).ok());
        Ok(Self {
            id: id.ok_or_else(|| malformed(labels::INSTANCE))?,
            app: parsed(all, labels::APP)?,
            service: parsed(all, labels::SERVICE)?,
            slot: parsed(all, labels::SLOT)?,
            release: ReleaseNumber(parsed(all, labels::RELEASE)?),
            deployment: DeploymentId(parsed(all, labels::DEPLOYMENT)?),
            commit: parsed(all, labels::COMMIT)?,
            settings: all.get(labels::SETTINGS).cloned().ok_or_else(|| malformed(labels::SETTINGS))?,
        })
    }
}

/// `None` for a container that is not the agent's: without its label, or whose name and labels are not what we give.
pub(super) fn observed(agent: &str, container: &ContainerInspectResponse) -> Option<Observed> {
    let config = container.config.as_ref()?;
    let all = config.labels.as_ref()?;
    if all.get(labels::AGENT).map(String::as_str) != Some(agent) {
        return None;
    }
    let Labelled { id, app, service, slot, release, deployment, commit, settings } =
        Labelled::read(agent, inspected_name(container), all).ok()?;
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
    RunState::Exited(Exited {
        code: state.exit_code.unwrap_or(0),
        oom: yes(state.oom_killed),
        removed: is_being_removed(state),
        output: Vec::new(),
    })
}

/// Between its end and its disappearance.
pub(super) fn is_being_removed(state: &ContainerState) -> bool {
    matches!(state.status, Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD))
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
        let ended = RunState::Exited(Exited { code: 7, oom: true, removed: false, output: vec![] });
        assert_eq!(run_state(&state("created", false, false, 0)), RunState::Created);
        assert_eq!(run_state(&state("running", true, false, 12)), RunState::Running);
        assert_eq!(run_state(&state("running", true, false, 0)), ended, "the engine's own view lags behind");
        assert_eq!(run_state(&state("restarting", true, true, 0)), ended);
        assert_eq!(run_state(&state("exited", false, false, 0)), ended);
    }

    const WHOLE: [(&str, &str); 9] = [
        (labels::KIND, "instance"),
        (labels::INSTANCE, "d12-web-1"),
        (labels::APP, "shop"),
        (labels::SERVICE, "web"),
        (labels::SLOT, "1"),
        (labels::RELEASE, "1"),
        (labels::DEPLOYMENT, "12"),
        (labels::COMMIT, "0123456789abcdef0123456789abcdef01234567"),
        (labels::SETTINGS, ""),
    ];
    const NAME: &str = "longshore.abc.shop.d12-web-1";

    /// All that we write, but one label.
    fn with(but: &str, value: Option<&str>) -> HashMap<String, String> {
        let kept = WHOLE.iter().filter(|(name, _)| *name != but).copied();
        let all = kept.chain(value.map(|value| (but, value)));
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn wrong(name: &str, all: &HashMap<String, String>) -> String {
        match whose("abc", name, all) {
            Whose::Unknown(wrong) => wrong,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn labels_that_are_not_ours_say_what_is_wrong_with_them() {
        let id = InstanceId::parse("d12-web-1").unwrap();
        assert_eq!(whose("abc", NAME, &with("", None)), Whose::Instance(id.clone()));
        assert_eq!(
            whose("abc", NAME, &with(labels::KIND, Some("release-command"))),
            Whose::ReleaseCommand(id),
            "a release command has the labels of an instance"
        );
        assert_eq!(whose("abc", "any", &with(labels::KIND, Some("files"))), Whose::Files);
        for (name, _) in WHOLE {
            assert_eq!(wrong(NAME, &with(name, None)), format!("{name} is missing or malformed"));
            if name != labels::SETTINGS {
                assert_eq!(wrong(NAME, &with(name, Some("Ü"))), format!("{name} is missing or malformed"));
            }
        }
    }

    #[test]
    fn labels_alone_make_no_instance() {
        let called = "its name is not longshore.abc.shop.d12-web-1";
        for name in ["dbg", "", "longshore.abc.shop.d12-web-2", "longshore.other.shop.d12-web-1"] {
            assert_eq!(wrong(name, &with("", None)), called, "{name}");
            assert_eq!(wrong(name, &with(labels::KIND, Some("release-command"))), called, "{name}");
        }
        assert_eq!(wrong(NAME, &with(labels::APP, Some("blog"))), "its name is not longshore.abc.blog.d12-web-1");
    }

    #[test]
    fn labels_that_contradict_each_other_make_no_instance() {
        for (label, value) in [(labels::SLOT, "9"), (labels::SERVICE, "worker"), (labels::DEPLOYMENT, "1")] {
            let wrong = wrong(NAME, &with(label, Some(value)));
            assert!(wrong.contains("d12-web-1 does not fit"), "{wrong}");
            assert!(wrong.contains(&format!("{label} ")) && wrong.contains(value), "{wrong}");
        }
    }

    #[test]
    fn a_listed_or_inspected_container_is_known_by_its_own_name() {
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let listed = |called: &[&str]| {
            let id = Some("0123".to_owned());
            ContainerSummary { id, names: names(called), labels: Some(with("", None)), ..Default::default() }
        };
        let own = format!("/{NAME}");
        let id = InstanceId::parse("d12-web-1").unwrap();
        assert_eq!(whose_is("abc", &listed(&["/proxy/web", &own])), Whose::Instance(id.clone()));
        assert_eq!(unknown("abc", listed(&[&own])), None);
        let stranger = unknown("abc", listed(&["/dbg"])).unwrap();
        assert_eq!((stranger.container.as_str(), stranger.name.as_str()), ("0123", "dbg"));

        let inspected = |name: &str| {
            let mut all = with("", None);
            all.insert(labels::AGENT.to_owned(), "abc".to_owned());
            let config = bollard::models::ContainerConfig { labels: Some(all), ..Default::default() };
            let state = Some(state("running", true, false, 12));
            let (id, name) = (Some("0123".to_owned()), Some(name.to_owned()));
            ContainerInspectResponse { id, name, state, config: Some(config), ..Default::default() }
        };
        assert_eq!(observed("abc", &inspected(&own)).map(|seen| seen.id), Some(id.clone()));
        assert_eq!(whose_inspected("abc", &inspected(&own)), Whose::Instance(id));
        assert_eq!(observed("abc", &inspected("/dbg")), None);
    }

    #[test]
    fn never_started_has_no_time() {
        assert_eq!(time("0001-01-01T00:00:00Z"), None);
        assert!(time("2026-11-21T04:30:28.123456789Z").is_some());
    }
}
