//! From an [`InstanceSpec`] to what the engine is asked to create.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType,
    MountVolumeOptions, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};
use secrecy::ExposeSecret;

use crate::config::MountSource;
use crate::model::{AppName, ServiceName};
use crate::runtime::{InstanceSpec, labels};

/// Processes and threads in one container.
const PIDS: i64 = 512;

/// Everything else is dropped. These are what the entrypoints of common images need to start as root, take their
/// data directory and step down to a user of their own (nginx, PostgreSQL, gunicorn): to change owners (CHOWN,
/// FOWNER, DAC_OVERRIDE), identities (SETUID, SETGID), to signal the children that then run as another user (KILL)
/// and to listen below port 1024 (NET_BIND_SERVICE).
const CAPABILITIES: [&str; 7] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"];

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Runs until it is stopped; the engine restarts it.
    Instance,
    /// Runs once.
    ReleaseCommand,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Instance => labels::KIND_INSTANCE,
            Self::ReleaseCommand => labels::KIND_RELEASE_COMMAND,
        }
    }

    /// `always`, because `unless-stopped` containers stay down after the engine crashed. One that we stop stays
    /// stopped until the engine starts anew, and by then it is removed.
    fn restart_policy(self) -> RestartPolicyNameEnum {
        match self {
            Self::Instance => RestartPolicyNameEnum::ALWAYS,
            Self::ReleaseCommand => RestartPolicyNameEnum::NO,
        }
    }
}

/// The labels of a container, by which it is found again after anything.
pub(super) fn instance_labels(agent: &str, spec: &InstanceSpec, kind: Kind) -> HashMap<String, String> {
    [
        (labels::AGENT, agent.to_owned()),
        (labels::APP, spec.app.to_string()),
        (labels::SERVICE, spec.service.to_string()),
        (labels::SLOT, spec.slot.to_string()),
        (labels::INSTANCE, spec.id.to_string()),
        (labels::RELEASE, spec.release.0.to_string()),
        (labels::DEPLOYMENT, spec.deployment.0.to_string()),
        (labels::COMMIT, spec.commit.to_string()),
        (labels::SETTINGS, spec.settings.clone()),
        (labels::KIND, kind.label().to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The whole container.
pub(super) fn container(agent: &str, spec: &InstanceSpec, kind: Kind) -> ContainerCreateBody {
    let network = labels::network_name(agent, &spec.app);
    // Only an instance answers to the service's name.
    let endpoint = endpoint((kind == Kind::Instance).then_some(&spec.service));
    let memory = spec.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    ContainerCreateBody {
        image: Some(spec.image.0.clone()),
        cmd: spec.command.clone(),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={}", value.expose_secret())).collect()),
        labels: Some(instance_labels(agent, spec, kind)),
        // At most 63 bytes, as a host name may have.
        hostname: Some(spec.id.as_str().chars().take(63).collect::<String>().trim_end_matches('-').to_owned()),
        stop_timeout: Some(i64::from(whole_seconds(spec.stop_grace))),
        host_config: Some(HostConfig {
            network_mode: Some(network.clone()),
            restart_policy: Some(RestartPolicy { name: Some(kind.restart_policy()), maximum_retry_count: None }),
            init: Some(true),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
            pids_limit: Some(PIDS),
            memory,
            // No swap on top: the limit is the limit.
            memory_swap: memory,
            nano_cpus: spec
                .cpu_millis
                .map(|millis| i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000_000)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(
                    [("max-size", "10m"), ("max-file", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ),
            }),
            mounts: Some(mounts(agent, spec)),
            ..Default::default()
        }),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(network, endpoint)])) }),
        ..Default::default()
    }
}

/// How a container is in its app's network: under the name of its service, if it is to answer to one.
pub(super) fn endpoint(service: Option<&ServiceName>) -> EndpointSettings {
    EndpointSettings { aliases: service.map(|service| vec![service.to_string()]), ..Default::default() }
}

fn mounts(agent: &str, spec: &InstanceSpec) -> Vec<EngineMount> {
    spec.volumes
        .iter()
        .map(|mount| {
            let base = EngineMount {
                target: Some(mount.target.clone()),
                read_only: Some(mount.read_only),
                ..Default::default()
            };
            match &mount.source {
                MountSource::Volume(name) => EngineMount {
                    typ: Some(MountType::VOLUME),
                    source: Some(labels::volume_name(agent, &spec.app, name)),
                    volume_options: Some(MountVolumeOptions {
                        labels: Some(volume_labels(agent, &spec.app)),
                        ..Default::default()
                    }),
                    ..base
                },
                MountSource::Host(path) => {
                    EngineMount { typ: Some(MountType::BIND), source: Some(path.display().to_string()), ..base }
                }
            }
        })
        .collect()
}

/// A volume outlives every release, so it says only whose it is.
pub(super) fn volume_labels(agent: &str, app: &AppName) -> HashMap<String, String> {
    [(labels::AGENT, agent.to_owned()), (labels::APP, app.to_string())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The engine counts in seconds: never less than asked.
pub(super) fn whole_seconds(duration: std::time::Duration) -> i32 {
    let up = u64::from(duration.subsec_nanos() > 0);
    i32::try_from(duration.as_secs().saturating_add(up)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_grace_is_never_shortened() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(10)), 10);
        assert_eq!(whole_seconds(Duration::MAX), i32::MAX);
    }
}
