//! Keeps secrets out of what is written down: their values, and their values in base64, become `[secret]`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{App, EnvValue, Service};
use crate::journal::DeployLog;
use crate::store::Release;

/// Shorter values would turn harmless words into `[secret]` and are guessed at once anyway.
const MIN_LENGTH: usize = 6;

/// The secret values of one app.
#[derive(Clone, Default)]
pub struct Redactor {
    values: Vec<SecretString>,
}

impl Redactor {
    /// Knows every secret of the app's services that can be read now.
    pub fn of_app(app: &App) -> Self {
        Self::of_services(app.services.values())
    }

    /// The same, and those of a release's services, which the configuration may no longer know.
    pub fn of(app: &App, release: &Release) -> Self {
        Self::of_services(app.services.values().chain(release.body.services.iter().map(|released| &released.service)))
    }

    fn of_services<'a>(services: impl Iterator<Item = &'a Service> + Clone) -> Self {
        let env = services.clone().flat_map(|service| service.env.values()).filter_map(|value| match value {
            EnvValue::Secret(reference) => Some(reference),
            EnvValue::Literal(_) => None,
        });
        let build = services.flat_map(|service| service.build.secrets.values());
        Self::new(env.chain(build).filter_map(|reference| reference.resolve().ok()))
    }

    fn new(secrets: impl Iterator<Item = SecretString>) -> Self {
        let long = secrets.filter(|value| value.expose_secret().trim().len() >= MIN_LENGTH);
        let both = long.flat_map(|value| {
            let plain = value.expose_secret().trim().to_owned();
            let encoded = STANDARD.encode(&plain);
            [plain, encoded]
        });
        // Longest first, so that a value that holds another one goes whole. A secret of several lines is met line by line.
        let mut values: Vec<String> = both
            .flat_map(|value| value.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|value| value.len() >= MIN_LENGTH)
            .collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values: values.into_iter().map(SecretString::from).collect() }
    }

    /// `text` without secrets.
    pub fn clean(&self, text: &str) -> String {
        let replace = |text: String, secret: &SecretString| text.replace(secret.expose_secret(), "[secret]");
        self.values.iter().fold(text.to_owned(), replace)
    }

    /// A log that writes no secrets.
    pub fn log(&self, log: DeployLog) -> DeployLog {
        let redactor = self.clone();
        DeployLog::new(move |line| log.line(redactor.clean(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_vanish_plain_encoded_and_inside_each_other() {
        let secrets = ["hunter2-long", "hunter2", "tiny", "line-one\nline-two"];
        let redactor = Redactor::new(secrets.into_iter().map(|s| SecretString::from(s.to_owned())));
        assert_eq!(redactor.clean("pw=hunter2-long; hunter2! tiny"), "pw=[secret]; [secret]! tiny");
        assert_eq!(redactor.clean(&STANDARD.encode("hunter2")), "[secret]");
        assert_eq!(redactor.clean("a line-two b"), "a [secret] b");
    }
}
