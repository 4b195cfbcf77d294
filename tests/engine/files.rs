//! Directories of images, copied out, and where volumes are.

use std::io::Read;
use std::time::Duration;

use longshore::config::BuilderKind;
use longshore::runtime::{Runtime, RuntimeError};
use tokio::sync::mpsc;

use super::support::*;

#[test]
fn a_directory_of_an_image_is_copied_without_starting_anything() {
    with_agent(|agent| async move {
        let large = "x".repeat(8 << 20);
        let dockerfile = "FROM scratch\nWORKDIR /srv\nCOPY files files\n";
        let files = [("Dockerfile", dockerfile), ("files/a.txt", "a"), ("files/sub/large.txt", &large)];
        let (artifact, _) = agent.build(&Commit::new(&files), &build(BuilderKind::Auto)).await;
        let image = artifact.unwrap().image;
        for directory in ["files", "/srv/files"] {
            let (pieces, mut archive) = mpsc::channel::<bytes::Bytes>(4);
            let reading = async {
                let mut whole = Vec::new();
                while let Some(piece) = archive.recv().await {
                    whole.extend_from_slice(&piece);
                }
                whole
            };
            let (copied, whole) = tokio::join!(agent.docker.copy_out(&agent.app, &image, directory, pieces), reading);
            copied.unwrap();
            let mut names = Vec::new();
            for entry in tar::Archive::new(whole.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                names.push((entry.path().unwrap().display().to_string(), content.len()));
            }
            names.sort();
            let expected = [("files/", 0), ("files/a.txt", 1), ("files/sub/", 0), ("files/sub/large.txt", 8 << 20)];
            assert_eq!(names, expected.map(|(name, length)| (name.to_owned(), length)), "{directory}");
        }
        let (pieces, _archive) = mpsc::channel(4);
        let missing = agent.docker.copy_out(&agent.app, &image, "none", pieces).await.unwrap_err();
        assert!(matches!(&missing, RuntimeError::Refused(why) if why == "the image has no /srv/none"), "{missing}");
        let containers = || async { agent.objects().await.into_iter().filter(|name| name.starts_with('/')).count() };
        assert_eq!(containers().await, 0, "what was read from is removed");

        // Whoever reads goes away in the middle: what is left is found by its label.
        let (pieces, _unread) = mpsc::channel(1);
        let copying = agent.docker.copy_out(&agent.app, &image, "files", pieces);
        assert!(tokio::time::timeout(Duration::from_secs(2), copying).await.is_err());
        assert_eq!(containers().await, 1);
        assert_eq!(agent.docker.remove_left_over(&agent.app).await.unwrap(), 1);
        assert_eq!(containers().await, 0);

        let runtime: &dyn Runtime = &agent.docker;
        let directory = runtime.volume_directory(&agent.app, "media").await.unwrap();
        assert!(directory.is_dir(), "{}", directory.display());
        assert_eq!(runtime.volume_directory(&agent.app, "media").await.unwrap(), directory);
    });
}
