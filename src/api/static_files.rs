//! The static files of a live service, as the API shows them.

use serde::{Deserialize, Serialize};

use crate::config::{FilesSource, Service};

/// A prefix below which the proxy answers with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticView {
    /// The beginning of the paths.
    pub prefix: String,
    /// The volume that has the files; null: the image has them.
    pub volume: Option<String>,
    /// The directory of the image or of the volume; empty for all of a volume.
    pub directory: String,
}

impl StaticView {
    pub(super) fn all_of(service: &Service) -> Vec<Self> {
        let view = |(prefix, source): (_, &FilesSource)| {
            let (volume, directory) = match source {
                FilesSource::Image(directory) => (None, directory.clone()),
                FilesSource::Volume { name, path } => (Some(name.clone()), path.clone()),
            };
            Self { prefix, volume, directory }
        };
        service.static_files.iter().map(|(prefix, source)| view((prefix.to_string(), source))).collect()
    }
}
