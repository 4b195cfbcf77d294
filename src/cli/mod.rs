//! What a person types. One file per command; `client` reaches the agent, `watch` follows a deployment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod backup;
mod canary;
mod cancel;
mod check;
mod client;
mod completions;
mod daemon;
mod demo;
mod deploy;
mod deployments;
mod error;
mod hook;
mod init;
mod logs;
mod plan;
mod progress;
mod prove;
mod proxy;
mod releases;
mod restart;
mod rollback;
mod scale;
mod serve;
mod sockets;
mod sse;
mod static_files;
mod status;
mod target;
mod term;
mod text;
mod token;
mod traffic;
mod watch;

use client::Client;
use error::CliError;
use term::Term;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 130 interrupted.";

/// A git-push continuous deployment agent.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Cli {
    /// The configuration file. Default: deploy.toml here, else /etc/longshore/deploy.toml.
    #[arg(long, global = true, env = "LONGSHORE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (and a proxy, unless one runs).
    #[command(after_help = serve::EXAMPLES)]
    Serve,
    /// Run the proxy alone: the data plane, which outlives the agent.
    #[command(after_help = proxy::EXAMPLES)]
    Proxy(proxy::ProxyArgs),
    /// Say whether the configuration is valid, and everything that is wrong with it.
    #[command(after_help = check::EXAMPLES)]
    Check,
    /// Write a first configuration with a fresh webhook secret.
    #[command(after_help = init::EXAMPLES)]
    Init(init::InitArgs),
    /// Show a deployment of a small example app on this machine.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::Options),
    /// Deploy a commit, a ref, or the branch's tip, and watch it.
    #[command(after_help = deploy::EXAMPLES)]
    Deploy(deploy::DeployArgs),
    /// Say what a deployment would do, without doing it.
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::PlanArgs),
    /// Bring an earlier release live again, without a build.
    #[command(after_help = rollback::EXAMPLES)]
    Rollback(rollback::RollbackArgs),
    /// Show what is live and what is going on.
    #[command(after_help = status::EXAMPLES)]
    Status(status::StatusArgs),
    /// Show the output of instances, or a deployment's log.
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::LogsArgs),
    /// List an app's releases.
    #[command(after_help = releases::EXAMPLES)]
    Releases(releases::ReleasesArgs),
    /// List an app's deployments.
    #[command(after_help = deployments::EXAMPLES)]
    Deployments(deployments::DeploymentsArgs),
    /// Run another number of instances of a service.
    #[command(after_help = scale::EXAMPLES)]
    Scale(scale::ScaleArgs),
    /// Replace every instance of an app, one at a time, without a build.
    #[command(after_help = restart::EXAMPLES)]
    Restart(restart::RestartArgs),
    /// Promote, abort, pause or resume the canary under way.
    #[command(after_help = canary::EXAMPLES)]
    Canary(canary::CanaryArgs),
    /// Replace every instance while requests are sent from outside, and say whether each got one complete answer.
    #[command(after_help = prove::EXAMPLES)]
    Prove(prove::ProveArgs),
    /// Cancel a deployment: one that waits ends at once, one that runs is undone first.
    #[command(after_help = cancel::EXAMPLES)]
    Cancel(cancel::CancelArgs),
    /// Manage the tokens of the HTTP API.
    #[command(subcommand, after_help = token::EXAMPLES)]
    Token(token::TokenCommand),
    /// Write the journal to a file, while the agent runs.
    #[command(after_help = backup::BACKUP_EXAMPLES)]
    Backup(backup::BackupArgs),
    /// Put a backup in the journal's place, while no agent runs.
    #[command(after_help = backup::RESTORE_EXAMPLES)]
    Restore(backup::RestoreArgs),
    /// Deploy from a git server of one's own.
    #[command(subcommand)]
    Hook(HookCommand),
    /// Print a completion script for a shell.
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
}

#[derive(Debug, Subcommand)]
enum HookCommand {
    /// Install the post-receive hook in a repository on this machine.
    Install(hook::HookInstall),
}

/// `--json`
#[derive(Debug, Clone, Copy, Args)]
struct Json {
    /// Print the API's JSON.
    #[arg(long)]
    json: bool,
}

/// Runs what the process was asked for.
pub fn main() -> ExitCode {
    // The TLS client has no cryptography of its own; an error here means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(std::env::args_os())
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // What runs in the demo's image is no command for people: not even a suggestion may name it.
    if args.get(1).is_some_and(|command| command == demo::SITE) {
        return demo::run_site();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) => {
            // Help goes to stdout with 0, mistakes to stderr with 2; a reader that went away is no further error.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    let config = target::config_path(cli.config.clone());
    let client_command = match cli.command {
        Command::Serve => return serve::run(&config),
        Command::Proxy(args) => return proxy::run(&config, &args),
        Command::Check => return check::run(&config),
        Command::Init(args) => return exit_code(init::run(&args, &config)),
        Command::Demo(options) => return demo::run(options),
        Command::Hook(HookCommand::Install(args)) => return exit_code(hook::run(&args, &config)),
        Command::Completions(args) => return completions::run(args),
        Command::Restore(args) => {
            return backup::restore(&args, cli.config).map_or_else(|err| err.report(), |()| ExitCode::SUCCESS);
        }
        other => other,
    };
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(talk(client_command, cli.config));
            // A look-up that is still under way must not hold up the end.
            runtime.shutdown_background();
            outcome
        }
        Err(err) => Err(CliError::Failed(format!("cannot start: {err}"))),
    };
    outcome.unwrap_or_else(|err| err.report())
}

/// The end of a command that works on this machine.
fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is::<crate::config::Problems>() => CliError::Usage(format!("{err:#}")).report(),
        Err(err) => CliError::Failed(format!("{err:#}")).report(),
    }
}

/// The commands that ask the agent.
async fn talk(command: Command, config: Option<PathBuf>) -> Result<ExitCode, CliError> {
    let client = Client::new(target::find(config.clone())?)?;
    let mut term = Term::stdout();
    match command {
        Command::Deploy(args) => deploy::deploy(&client, &mut term, args).await,
        Command::Plan(args) => plan::run(&client, &mut term, args).await,
        Command::Rollback(args) => rollback::run(&client, &mut term, args).await,
        Command::Status(args) => status::run(&client, &mut term, args).await,
        Command::Logs(args) => logs::run(&client, &mut term, args).await,
        Command::Releases(args) => releases::run(&client, &mut term, args).await,
        Command::Deployments(args) => deployments::run(&client, &mut term, args).await,
        Command::Scale(args) => scale::run(&client, &mut term, args).await,
        Command::Restart(args) => restart::run(&client, &mut term, args).await,
        Command::Canary(args) => canary::run(&client, &mut term, args).await,
        Command::Prove(args) => prove::run(&client, &mut term, config, args).await,
        Command::Cancel(args) => cancel::run(&client, &mut term, args).await,
        Command::Token(command) => token::run(&client, &mut term, command).await,
        Command::Backup(args) => backup::backup(&client, &mut term, config, args).await,
        Command::Serve
        | Command::Proxy(_)
        | Command::Check
        | Command::Init(_)
        | Command::Demo(_)
        | Command::Hook(_)
        | Command::Restore(_)
        | Command::Completions(_) => Err(CliError::Usage("this command does not ask an agent".into())),
    }
}

#[cfg(test)]
mod tests;
