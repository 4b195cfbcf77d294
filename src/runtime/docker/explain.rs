//! The engine's error texts, cut down to what a person needs.

use bollard::errors::Error;

use crate::runtime::RuntimeError;
use crate::text::with_causes;

/// What a failed call means: no answer, or a refusal in one line.
pub(crate) fn runtime_error(error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message } => {
            RuntimeError::Refused(refusal(&message))
        }
        Error::RequestTimeoutError => RuntimeError::Unavailable("no answer in time".to_owned()),
        other => RuntimeError::Unavailable(without_client(&with_causes(&other))),
    }
}

/// A failure to connect without the names of the client's layers.
fn without_client(text: &str) -> String {
    const LAYERS: [&str; 2] = ["Error in the hyper legacy client: ", "client error (Connect): "];
    LAYERS.iter().fold(text, |text, layer| text.strip_prefix(layer).unwrap_or(text)).to_owned()
}

/// The HTTP status of a refusal.
pub(crate) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// One line without the layers' names around it:
/// `OCI runtime create failed: …: exec: "nope": executable file not found in $PATH: unknown`
/// becomes `exec: "nope": executable file not found in $PATH`.
pub(crate) fn refusal(message: &str) -> String {
    const LAYERS: [&str; 4] = [
        "unable to start container process: ",
        "starting container process caused: ",
        "runc create failed: ",
        "OCI runtime create failed: ",
    ];
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let innermost = LAYERS.iter().find_map(|layer| line.rsplit_once(layer)).map_or(line.as_str(), |(_, rest)| rest);
    let plain = innermost.strip_suffix(": unknown").unwrap_or(innermost);
    if plain.contains("non-overlapping IPv4 address pool") {
        return format!("{plain}: remove unused networks (docker network prune) or widen default-address-pools");
    }
    if plain.is_empty() { "the engine gave no reason".to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connection_is_said_without_the_client() {
        let text = "Error in the hyper legacy client: client error (Connect): Connection refused (os error 111)";
        assert_eq!(without_client(text), "Connection refused (os error 111)");
        assert_eq!(without_client("connection closed"), "connection closed");
    }

    #[test]
    fn layers_are_peeled() {
        let check = |message: &str, expected: &str| assert_eq!(refusal(message), expected);
        check(
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container \
             process: exec: \"nope\": executable file not found in $PATH: unknown",
            "exec: \"nope\": executable file not found in $PATH",
        );
        check(
            "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \"/a\": permission denied: unknown",
            "exec: \"/a\": permission denied",
        );
        check(
            "invalid mount config for type \"bind\":\n bind source path does not exist: /x",
            "invalid mount config for type \"bind\": bind source path does not exist: /x",
        );
        check("", "the engine gave no reason");
    }
}
