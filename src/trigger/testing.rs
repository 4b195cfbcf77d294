//! What the tests of this folder share.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{App, Credential, Order, Provider, RepoUrl, RolloutPolicy, Webhook};

/// The webhook secret of [`app`].
pub const SECRET: &str = "a webhook secret of the shop";

/// An app that deploys `main` of `repo`.
pub fn app(name: &str, repo: RepoUrl) -> App {
    App {
        name: name.parse().unwrap(),
        repo,
        branch: "main".into(),
        credential: Credential::None,
        submodules: false,
        webhook: Some(Webhook { provider: Provider::GitHub, secret: SECRET.into() }),
        domains: Vec::new(),
        release: None,
        services: BTreeMap::new(),
        rollout: RolloutPolicy { order: Order::StartFirst, watch: Duration::ZERO },
        build_timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(60),
        keep_releases: 5,
    }
}
