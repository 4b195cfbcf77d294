//! The key of an image: a digest of everything it is made of, known before it is built.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::{Build, BuilderKind};

/// Changes when the same content has to be built anew because of us.
const FORMAT: &str = "longshore-artifact-1";

/// The key. Every part is written with its length, so that no two inputs run together to the same bytes.
pub(super) fn digest(
    context: &str,
    dockerfile: &[u8],
    build: &Build,
    bases: &BTreeMap<String, Option<String>>,
) -> String {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(bytes.len().to_be_bytes());
        hasher.update(bytes);
    };
    part(FORMAT.as_bytes());
    part(context.as_bytes());
    part(build.dockerfile.as_bytes());
    part(dockerfile);
    part(build.target.as_deref().unwrap_or_default().as_bytes());
    let builder: &[u8] = match build.builder {
        BuilderKind::Auto => b"auto",
        BuilderKind::Buildkit => b"buildkit",
        BuilderKind::Classic => b"classic",
    };
    part(builder);
    part(&build.args.len().to_be_bytes());
    for (name, value) in &build.args {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    // The ids alone: a secret's value is no part of what an image is made of, and leaves no trace in its key.
    part(&build.secrets.len().to_be_bytes());
    build.secrets.keys().for_each(|id| part(id.as_bytes()));
    for (image, id) in bases {
        part(image.as_bytes());
        part(id.as_deref().unwrap_or_default().as_bytes());
    }
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretRef;

    fn build() -> Build {
        Build {
            dockerfile: "Dockerfile".to_owned(),
            context: ".".to_owned(),
            target: None,
            args: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            secrets: BTreeMap::new(),
            builder: BuilderKind::Auto,
        }
    }

    #[test]
    fn the_key_changes_with_everything_that_makes_the_image() {
        let bases = BTreeMap::from([("debian".to_owned(), Some("sha256:1".to_owned()))]);
        let own = digest("c", b"FROM debian", &build(), &bases);
        assert_eq!(own, digest("c", b"FROM debian", &build(), &bases.clone()));
        let secret = SecretRef::Env("TOKEN".to_owned());
        let others = [
            digest("d", b"FROM debian", &build(), &bases),
            digest("c", b"FROM debian\n", &build(), &bases),
            digest("c", b"FROM debian", &build(), &BTreeMap::from([("debian".to_owned(), None)])),
            digest("c", b"FROM debian", &Build { dockerfile: "b/Dockerfile".to_owned(), ..build() }, &bases),
            digest("c", b"FROM debian", &Build { target: Some("t".to_owned()), ..build() }, &bases),
            digest("c", b"FROM debian", &Build { args: BTreeMap::new(), ..build() }, &bases),
            digest("c", b"FROM debian", &Build { args: [("A1".to_owned(), String::new())].into(), ..build() }, &bases),
            digest("c", b"FROM debian", &Build { builder: BuilderKind::Classic, ..build() }, &bases),
            digest("c", b"FROM debian", &Build { secrets: [("t".to_owned(), secret)].into(), ..build() }, &bases),
        ];
        let different: std::collections::BTreeSet<&String> = others.iter().collect();
        assert!(different.len() == others.len() && !different.contains(&own));
    }
}
