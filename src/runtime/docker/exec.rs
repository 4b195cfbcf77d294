//! A command inside a running container.

use std::time::Duration;

use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures_util::StreamExt;

use super::{CALL, explain, within};
use crate::runtime::output::{Lines, Tail};
use crate::runtime::{Exited, RuntimeError};

/// How many of the last lines are kept.
const TAIL: usize = 20;

/// Runs `argv` and waits for its end. The engine has no way to end such a command: after the timeout it is left to
/// the container.
pub(super) async fn exec(
    client: &bollard::Docker,
    container: &str,
    argv: &[String],
    timeout: Duration,
) -> Result<Exited, RuntimeError> {
    let config = ExecConfig {
        cmd: Some(argv.to_vec()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..Default::default()
    };
    let running = async {
        let exec = client.create_exec(container, config).await.map_err(explain::runtime_error)?.id;
        let started = client.start_exec(&exec, None::<StartExecOptions>).await.map_err(explain::runtime_error)?;
        let (mut lines, mut tail) = (Lines::default(), Tail::new(TAIL));
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(chunk) = output.next().await {
                let chunk = chunk.map_err(explain::runtime_error)?;
                lines.push(chunk.as_ref()).into_iter().for_each(|line| tail.push(line));
            }
        }
        lines.finish().into_iter().for_each(|line| tail.push(line));
        let ended = within(CALL, async { client.inspect_exec(&exec).await.map_err(explain::runtime_error) }).await?;
        let code =
            ended.exit_code.ok_or_else(|| RuntimeError::Unavailable("an exec without an exit code".to_owned()))?;
        Ok(Exited { code, oom: false, removed: false, output: tail.into_lines() })
    };
    match tokio::time::timeout(timeout, running).await {
        Ok(ended) => ended,
        Err(_) => Err(RuntimeError::Refused(format!(
            "the command {} did not end within {} ms",
            argv.join(" "),
            timeout.as_millis()
        ))),
    }
}
