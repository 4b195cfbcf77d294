//! One container that runs to its end: the release command.

use std::time::Duration;

use futures_util::StreamExt;

use super::spec::Kind;
use super::{CALL, Docker, START, explain, observe, within};
use crate::runtime::output::{Lines, Tail};
use crate::runtime::{Exited, InstanceSpec, RunState, RuntimeError};

/// How many of the last lines are kept.
const TAIL: usize = 20;

/// Starts the container, or adopts the one that an earlier life of the agent started, and waits for its end. It is
/// removed afterwards. When the engine stops answering or the caller stops waiting, it is left as it is: it can be
/// adopted again, or stopped by its name.
pub(super) async fn run(
    docker: &Docker,
    spec: &InstanceSpec,
    timeout: Duration,
    log: &(dyn Fn(&str) + Send + Sync),
) -> Result<Exited, RuntimeError> {
    let container = within(START, launch(docker, spec)).await?;
    let ended = match tokio::time::timeout(timeout, follow(docker, &container, log)).await {
        Ok(ended) => ended,
        Err(_) => {
            docker.stop_container(&container, spec.stop_grace).await?;
            Err(RuntimeError::Refused(format!("it did not end within {} s and was stopped", timeout.as_secs())))
        }
    };
    if !matches!(ended, Err(RuntimeError::Unavailable(_))) {
        docker.remove(&container).await?;
    }
    ended
}

/// The container's id. One that was running or has ended is left as it is.
async fn launch(docker: &Docker, spec: &InstanceSpec) -> Result<String, RuntimeError> {
    let container = docker.create(spec, Kind::ReleaseCommand).await?;
    let found = docker.inspect_container(&container).await?;
    let found = found.and_then(|now| observe::observed(docker.agent_id(), &now));
    if found.is_some_and(|observed| observed.state != RunState::Created) {
        return Ok(container);
    }
    if let Err(error) = docker.client.start_container(&container, None).await {
        docker.remove_unstarted(&container).await;
        return Err(explain::runtime_error(error));
    }
    Ok(container)
}

async fn follow(docker: &Docker, container: &str, log: &(dyn Fn(&str) + Send + Sync)) -> Result<Exited, RuntimeError> {
    let (mut lines, mut tail) = (Lines::default(), Tail::new(TAIL));
    let mut keep = |line: String| {
        log(&line);
        tail.push(line);
    };
    let mut output = docker.output(container, None, true);
    while let Some(chunk) = output.next().await {
        lines.push(&chunk).into_iter().for_each(&mut keep);
    }
    lines.finish().into_iter().for_each(&mut keep);
    docker.wait_until("not-running", container).await?;
    let now = within(CALL, docker.inspect_container(container)).await?;
    match now.and_then(|now| observe::observed(docker.agent_id(), &now)).map(|observed| observed.state) {
        Some(RunState::Exited(exited)) => Ok(Exited { output: tail.into_lines(), ..exited }),
        Some(_) => Err(RuntimeError::Unavailable("its output ended while it was running".to_owned())),
        None => Err(RuntimeError::Refused("it was removed by somebody else before it ended".to_owned())),
    }
}
