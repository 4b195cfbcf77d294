//! Where a service's static files would come from.

use serde::{Deserialize, Serialize};

use crate::config::{FilesSource, Service};
use crate::deploy::static_files::StaticStore;
use crate::model::{AppName, ImageId};

/// Where static files would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesPlan {
    /// They are copied out of the image.
    Copy,
    /// They were copied out of this image before.
    Reuse,
    /// They are read in a volume.
    Volume,
}

/// A prefix below which the proxy would answer with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticPlan {
    /// The beginning of the paths.
    pub prefix: String,
    /// Where the files would come from.
    pub files: FilesPlan,
    /// The volume that has them; null: the image has them.
    pub volume: Option<String>,
    /// The directory of the image or of the volume; empty for all of a volume.
    pub directory: String,
}

impl StaticPlan {
    /// All of a service, whose image may be still to be built. Looks at the disk.
    pub(super) fn all_of(app: &AppName, service: &Service, image: Option<&ImageId>, store: &StaticStore) -> Vec<Self> {
        let files = service.static_files.iter();
        files.map(|(prefix, source)| Self::of(app, prefix.to_string(), source, image, store)).collect()
    }

    fn of(app: &AppName, prefix: String, source: &FilesSource, image: Option<&ImageId>, store: &StaticStore) -> Self {
        match source {
            FilesSource::Image(directory) => {
                let is_there = image.is_some_and(|image| store.directory(app, image, source).is_dir());
                let files = if is_there { FilesPlan::Reuse } else { FilesPlan::Copy };
                Self { prefix, files, volume: None, directory: directory.clone() }
            }
            FilesSource::Volume { name, path } => {
                Self { prefix, files: FilesPlan::Volume, volume: Some(name.clone()), directory: path.clone() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_copied_once_out_of_each_image() {
        let dir = tempfile::tempdir().unwrap();
        let (app, store): (AppName, _) = ("shop".parse().unwrap(), StaticStore::new(dir.path()));
        let image = |number: u32| ImageId(format!("sha256:{number:064x}"));
        let directory = FilesSource::Image("staticfiles".into());
        let plan = |source: &FilesSource, image: Option<&ImageId>| {
            StaticPlan::of(&app, "/static".into(), source, image, &store).files
        };
        assert_eq!(plan(&directory, Some(&image(1))), FilesPlan::Copy);
        fs::create_dir_all(store.directory(&app, &image(1), &directory)).unwrap();
        assert_eq!(plan(&directory, Some(&image(1))), FilesPlan::Reuse);
        assert_eq!(plan(&directory, Some(&image(2))), FilesPlan::Copy);
        assert_eq!(plan(&directory, None), FilesPlan::Copy, "it is still to be built");
        let volume = FilesSource::Volume { name: "media".into(), path: String::new() };
        assert_eq!(plan(&volume, Some(&image(1))), FilesPlan::Volume);
    }
}
