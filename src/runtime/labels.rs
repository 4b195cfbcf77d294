//! What our objects on the engine are called, and the labels that say whose they are. An object without our agent
//! label is never touched.

use crate::model::{AppName, InstanceId};

/// Whose object it is: the agent's id.
pub const AGENT: &str = "longshore.agent";
/// Of which app.
pub const APP: &str = "longshore.app";
/// Of which service.
pub const SERVICE: &str = "longshore.service";
/// Which of the service's places.
pub const SLOT: &str = "longshore.slot";
/// The instance's name.
pub const INSTANCE: &str = "longshore.instance";
/// Which release's.
pub const RELEASE: &str = "longshore.release";
/// Which deployment made it.
pub const DEPLOYMENT: &str = "longshore.deployment";
/// Of which commit.
pub const COMMIT: &str = "longshore.commit";
/// Digest of what it runs with.
pub const SETTINGS: &str = "longshore.settings";
/// What it is for: one of the `KIND_` values.
pub const KIND: &str = "longshore.kind";
/// An image's key: the digest of everything it is made of.
pub const ARTIFACT: &str = "longshore.artifact";

/// [`KIND`] of an instance.
pub const KIND_INSTANCE: &str = "instance";
/// [`KIND`] of a container that runs a release command.
pub const KIND_RELEASE_COMMAND: &str = "release-command";
/// [`KIND`] of a container that is never started, and of whose image files are copied.
pub const KIND_FILES: &str = "files";
/// [`KIND`] of an image.
pub const KIND_BUILD: &str = "build";

/// A container's name.
pub fn container_name(agent: &str, app: &AppName, instance: &InstanceId) -> String {
    format!("longshore.{agent}.{app}.{instance}")
}

/// The name of an app's network.
pub fn network_name(agent: &str, app: &AppName) -> String {
    format!("{}{app}", network_prefix(agent))
}

/// How the names of all our networks begin.
pub fn network_prefix(agent: &str) -> String {
    format!("longshore.{agent}.")
}

/// The engine's name of an app's volume.
pub fn volume_name(agent: &str, app: &AppName, volume: &str) -> String {
    format!("longshore.{agent}.{app}.{volume}")
}

/// The repository of an app's images; the tag is the first half of the key.
pub fn image_repository(agent: &str, app: &AppName) -> String {
    format!("longshore-{agent}/{app}")
}

/// A filter by label, as the engine's list and event calls take it.
pub fn filter(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, Vec<String>> {
    let labels = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    std::collections::HashMap::from([("label".to_owned(), labels)])
}
