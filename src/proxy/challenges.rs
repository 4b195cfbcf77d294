//! What certificate authorities that validate a host are answered (RFC 8555, section 8): by a page, or in a handshake of its
//! own. The agent says what; nothing of it is kept on disk, because an order ends with the agent that placed it.

use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::ServerConfig;

use super::certificate::validation;
use super::control::ChallengeAnswer;
use super::instance::lock;
use crate::config::Challenge;

/// Where they look for the page; the token follows (RFC 8555, section 8.3).
pub const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// All answers of now.
#[derive(Debug, Default)]
pub struct Challenges {
    current: Mutex<Prepared>,
}

#[derive(Debug, Default)]
struct Prepared {
    pages: Vec<ChallengeAnswer>,
    handshakes: Vec<(String, Arc<ServerConfig>)>,
}

impl Challenges {
    /// From now on these, and no others.
    pub fn replace(&self, answers: Vec<ChallengeAnswer>) {
        let (pages, in_handshakes): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.challenge == Challenge::Http01);
        let prepare = |answer: ChallengeAnswer| match validation(&answer.host, &answer.key_authorization) {
            Ok(config) => Some((answer.host, Arc::new(config))),
            Err(error) => {
                tracing::error!(host = answer.host, error, "cannot make a certificate for a validation");
                None
            }
        };
        let handshakes = in_handshakes.into_iter().filter_map(prepare).collect();
        *lock(&self.current) = Prepared { pages, handshakes };
    }

    /// The page that is asked for by this token at a host in lower case.
    pub fn page(&self, host: &str, token: &str) -> Option<String> {
        let current = lock(&self.current);
        let found = current.pages.iter().find(|answer| answer.host == host && answer.token == token)?;
        Some(found.key_authorization.clone())
    }

    /// How a handshake that validates a host in lower case is done.
    pub fn handshake(&self, host: &str) -> Option<Arc<ServerConfig>> {
        let current = lock(&self.current);
        current.handshakes.iter().find(|(of, _)| of == host).map(|(_, config)| Arc::clone(config))
    }
}
