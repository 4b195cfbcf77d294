//! Which static files an app has, and where they are. Pure.

use super::text::clean;
use crate::api::static_files::StaticView;
use crate::api::views::AppView;

/// `/static from staticfiles of the image, /media from public in volume media`; `None` of an app without any.
pub(super) fn prefixes(app: &AppView) -> Option<String> {
    let all = app.services.iter().flat_map(|service| &service.static_files);
    let told = |files: &StaticView| {
        format!("{} from {}", clean(&files.prefix), place(&files.directory, files.volume.as_deref(), "the image"))
    };
    let told: Vec<String> = all.map(told).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// Where static files are: in a volume, or in an image.
pub(super) fn place(directory: &str, volume: Option<&str>, image: &str) -> String {
    let directory = clean(directory);
    match volume.map(clean) {
        None => format!("{directory} of {image}"),
        Some(volume) if directory.is_empty() => format!("volume {volume}"),
        Some(volume) => format!("{directory} in volume {volume}"),
    }
}
