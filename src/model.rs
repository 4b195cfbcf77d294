//! The words of the domain as types. Each is parsed once, where it enters; nothing re-checks it later.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not a name, a commit or a ref. The text is a whole sentence for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// The rule for names of apps and services: `^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`.
fn check_name(what: &str, text: &str) -> Result<(), ParseError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|&b| allowed(b) || b == b'-');
    let ends = bytes.first().copied().is_some_and(allowed) && bytes.last().copied().is_some_and(allowed);
    if bytes.len() <= 40 && inner && ends {
        return Ok(());
    }
    Err(ParseError(format!(
        "{what} {text:?} must be 1 to 40 lower-case letters, digits or hyphens, with a letter or digit at both ends"
    )))
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                let check: fn(&str) -> Result<(), ParseError> = $check;
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type!(
    /// What one repository branch deploys to.
    AppName,
    |text| check_name("app name", text)
);

text_type!(
    /// One process type of an app, such as `web` or `worker`.
    ServiceName,
    |text| check_name("service name", text)
);

text_type!(
    /// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
    CommitSha,
    |text| {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && (text.len() == 40 || text.len() == 64) {
            return Ok(());
        }
        Err(ParseError(format!(
            "{:?} is not a full commit id (40 or 64 lower-case hexadecimal digits)",
            shorten(text, 80)
        )))
    }
);

text_type!(
    /// The beginning of a commit id, or all of it.
    CommitPrefix,
    |text| {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && (7..=64).contains(&text.len()) {
            return Ok(());
        }
        Err(ParseError(format!(
            "{:?} is not a commit id (lower-case hexadecimal digits, at least the first 7)",
            shorten(text, 80)
        )))
    }
);

impl CommitSha {
    /// The first seven digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }

    /// git's "no such commit": all zeros, sent for a created or deleted ref.
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }
}

text_type!(
    /// A full ref name such as `refs/heads/main`, by the rules of git-check-ref-format(1).
    GitRef,
    |text| {
        let valid = text.starts_with("refs/") && is_valid_ref(text);
        if valid {
            return Ok(());
        }
        Err(ParseError(format!("{:?} is not a valid git ref (refs/heads/NAME or refs/tags/NAME)", shorten(text, 80))))
    }
);

impl GitRef {
    /// The ref of a branch. Fails when the name is no valid branch name.
    pub fn of_branch(branch: &str) -> Result<Self, ParseError> {
        format!("refs/heads/{branch}").parse()
    }

    /// The branch's short name; `None` for tags and other refs.
    pub fn branch(&self) -> Option<&str> {
        self.0.strip_prefix("refs/heads/")
    }
}

/// git-check-ref-format(1), for a full ref of at most 1,024 bytes.
fn is_valid_ref(text: &str) -> bool {
    let forbidden = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    text.len() <= 1024
        && !text.contains("..")
        && !text.contains("@{")
        && !text.ends_with('.')
        && !text.contains(forbidden)
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// At most `max` characters of `text`, with an ellipsis where something was cut.
pub fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A release's number, written `v7`; counted per app from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u32);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl FromStr for ReleaseNumber {
    type Err = ParseError;
    /// Reads `7` and `v7`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.strip_prefix('v')
            .unwrap_or(text)
            .parse()
            .map(Self)
            .map_err(|_| ParseError(format!("{:?} is not a release (write v7 or 7)", shorten(text, 40))))
    }
}

/// A deployment's number: unique in one agent, growing in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub i64);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One running copy of a service. Named by the deployment that started it (`d12-web-3`), so that starting it
/// twice is starting it once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(String);

impl InstanceId {
    /// The instance that `deployment` starts for `slot` of `service`; `attempt` tells apart the new
    /// instance (0) and those that restore the old release while undoing (1, 2, …).
    pub fn new(deployment: DeploymentId, service: &ServiceName, slot: u32, attempt: u32) -> Self {
        match attempt {
            0 => Self(format!("d{}-{service}-{slot}", deployment.0)),
            n => Self(format!("d{}-{service}-{slot}-r{n}", deployment.0)),
        }
    }

    /// Whether this is how an instance is called that `deployment` starts for `slot` of `service`, at any attempt.
    pub fn is_of(&self, deployment: DeploymentId, service: &ServiceName, slot: u32) -> bool {
        let first = Self::new(deployment, service, slot, 0);
        let Some(rest) = self.0.strip_prefix(first.as_str()) else { return false };
        let attempt = if rest.is_empty() { Some(0) } else { rest.strip_prefix("-r").and_then(|n| n.parse().ok()) };
        // What is parsed may be written in more ways than one.
        attempt.is_some_and(|attempt| *self == Self::new(deployment, service, slot, attempt))
    }

    /// An id read back from a label or a request. Only the characters that [`InstanceId::new`] produces.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok && !text.is_empty() && text.len() <= 100 {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseError(format!("{:?} is not an instance id (such as d12-web-3)", shorten(text, 80))))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image by its content: `sha256:…`, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub String);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word on the wire and on disk.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ParseError(format!("{:?} is not one of {}", text, [$($word),+].join(", ")))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

word_enum!(
    /// Where a deployment stands. The last five are terminal, and a deployment reaches exactly one of them.
    Status {
        /// On disk, waiting for its turn.
        Queued = "queued",
        /// Fetching the source.
        Preparing = "preparing",
        /// Building images.
        Building = "building",
        /// Running the release command in the new image.
        Releasing = "releasing",
        /// Replacing instances.
        RollingOut = "rolling_out",
        /// Every instance is switched; a crash now still undoes all.
        Watching = "watching",
        /// Live.
        Succeeded = "succeeded",
        /// Ended before anything was switched.
        Failed = "failed",
        /// Instances had been started or switched, and every one was put back.
        RolledBack = "rolled_back",
        /// A newer request took its place.
        Superseded = "superseded",
        /// Ended by a person.
        Cancelled = "cancelled",
    }
);

impl Status {
    /// Whether a deployment in this state has ended.
    pub fn is_terminal(self) -> bool {
        self >= Self::Succeeded
    }
}

word_enum!(
    /// Why a deployment exists.
    Trigger {
        /// A provider's webhook.
        Push = "push",
        /// The post-receive hook of a git server.
        PostReceive = "post_receive",
        /// A call of the HTTP API.
        Api = "api",
        /// A person at the command line.
        Cli = "cli",
        /// A request for an earlier release, through the API or the command line: in the list of deployments it says
        /// more than which of the two it was.
        Rollback = "rollback",
        /// The branch's tip was newer than what is recorded.
        Reconcile = "reconcile",
    }
);

word_enum!(
    /// Whether an instance answers its checks; written by the health gate alone.
    Health {
        /// Not yet ready for the first time.
        Starting = "starting",
        /// Passing.
        Ready = "ready",
        /// Failing after having been ready.
        Unready = "unready",
    }
);

word_enum!(
    /// What an instance is for; written by the rollout machine alone. Routable = ready and serving.
    Duty {
        /// Not chosen.
        Idle = "idle",
        /// Chosen by the proxy.
        Serving = "serving",
        /// No longer chosen, finishing its requests.
        Draining = "draining",
        /// Stopped, or about to be.
        Retired = "retired",
    }
);

word_enum!(
    /// What a person may ask of a canary under way.
    CanaryAction {
        /// All requests to the new instances now.
        Promote = "promote",
        /// No more requests to the new instances; they end.
        Abort = "abort",
        /// Keep the share until somebody says otherwise.
        Pause = "pause",
        /// Go on by itself.
        Resume = "resume",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "web", "a-b", "0", &"x".repeat(40)] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "My_App", "a..b", "../../etc", "a b", &"x".repeat(41), "é"] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_instance_is_called_by_its_deployment_service_and_place() {
        let is_of = |id: &str| InstanceId::parse(id).unwrap().is_of(DeploymentId(12), &"web".parse().unwrap(), 3);
        for (attempt, id) in [(0, "d12-web-3"), (1, "d12-web-3-r1"), (10, "d12-web-3-r10")] {
            assert_eq!(InstanceId::new(DeploymentId(12), &"web".parse().unwrap(), 3, attempt).as_str(), id);
            assert!(is_of(id), "{id}");
        }
        for other in ["d1-web-3", "d12-w-3", "d12-web-1", "d12-web-31", "d12-web-3-r", "d12-web-3-r0", "d12-web-3-r01"]
        {
            assert!(!is_of(other), "{other}");
        }
    }

    #[test]
    fn refs_follow_git() {
        for good in [
            "refs/heads/main",
            "refs/heads/a;$(id)&|<script>@everyone",
            "refs/heads/%2e%2e",
            "refs/heads/-x",
            "refs/heads/größe",
        ] {
            assert!(good.parse::<GitRef>().is_ok(), "{good}");
        }
        for bad in [
            "main",
            "refs/heads/",
            "refs/heads/a b",
            "refs/heads/a..b",
            "refs/heads/a~1",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/heads/a@{b",
            "refs/heads/a\n",
            "refs//a",
        ] {
            assert!(bad.parse::<GitRef>().is_err(), "{bad}");
        }
        let twice: GitRef = "refs/heads/refs/heads/main".parse().unwrap();
        assert_eq!(twice.branch(), Some("refs/heads/main"));
    }

    #[test]
    fn commits_are_full_ids() {
        assert!("a".repeat(40).parse::<CommitSha>().is_ok());
        assert!("0".repeat(64).parse::<CommitSha>().unwrap().is_zero());
        for bad in ["abc1234", &"A".repeat(40), &"g".repeat(40), &"a".repeat(39)] {
            assert!(bad.parse::<CommitSha>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_commit_may_be_named_by_its_beginning() {
        assert!("0427011".parse::<CommitPrefix>().is_ok() && "a".repeat(40).parse::<CommitPrefix>().is_ok());
        for bad in ["042701", "0427O11", "ABCDEF0", "HEAD~12", &"a".repeat(65)] {
            assert!(bad.parse::<CommitPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_read_back() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), *status);
        }
        assert!(Status::Succeeded.is_terminal() && Status::Cancelled.is_terminal() && !Status::Watching.is_terminal());
    }
}
