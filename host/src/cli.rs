//! The command line.
//!
//! Owns everything that is printed, and the exit codes: 0 for success, 1 for a failure, 2 for wrong
//! usage.

mod admin_client;
mod commands;
mod configuration;
mod error;
mod logging;
mod output;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::commands::{check, explain, generate, health, policy, run, status, usage};
use self::output::print;
use crate::config;
use crate::server;

/// A gateway for several OpenAI Codex credentials and API keys.
///
/// Clients authenticate with tokens that you issue. WebAssembly policies choose a credential for
/// each request, edit its headers and price it. A ledger records usage and cost. The configuration
/// is that of sing-box's OCM service.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: TollgateCommand,
}

#[derive(Debug, Subcommand)]
enum TollgateCommand {
    /// Run the gateway.
    ///
    /// SIGTERM or SIGINT shuts it down: it waits for requests in flight, or aborts them on a second
    /// signal. The configuration is reloaded when its file changes, and on SIGHUP. SIGUSR2 starts
    /// a new process from the program's file, which takes the place of this one without refusing a
    /// connection.
    ///
    /// Without a configuration, it serves $CODEX_HOME/auth.json (default: ~/.codex/auth.json) on
    /// 127.0.0.1:8080.
    Run {
        /// The configuration file: JSON, with comments and trailing commas.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Write the bound addresses and the process id to this file, as JSON, when all listeners
        /// accept connections.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Check a configuration and the files that it names.
    ///
    /// Prints all problems and warnings. Starts nothing and writes nothing.
    Check(check::CheckArgs),
    /// Show the credentials of the running gateway.
    Status(status::StatusArgs),
    /// Exit with 0 if the running gateway is ready to serve, and with 1 otherwise.
    ///
    /// For the health checks of containers: it asks through the socket in data_dir.
    Health(health::HealthArgs),
    /// Show usage and cost from the ledger.
    Usage(usage::UsageArgs),
    /// Show, reload and test policies.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Explain the attempts, cost and policy decisions of a request.
    Explain(explain::ExplainArgs),
    /// Print the JSON Schema of the configuration.
    ConfigSchema,
    /// Print the completions of these commands for a shell.
    ///
    /// For bash: tollgate completions bash > /etc/bash_completion.d/tollgate
    Completions(generate::CompletionsArgs),
    /// Write the manual pages of these commands to a folder.
    Man(generate::ManArgs),
    /// Print the version of this binary.
    Version,
    /// Refresh one credential's tokens as standard input says. The gateway runs it.
    #[command(hide = true, name = server::REFRESH_COMMAND)]
    RefreshCredential,
}

/// Runs the command that this process's arguments name.
pub fn main() -> ExitCode {
    let done = match CommandLine::parse().command {
        TollgateCommand::Run { config, ready_file } => {
            run::run(config.as_deref(), ready_file.as_deref())
        }
        TollgateCommand::Check(args) => check::check(&args),
        TollgateCommand::Status(args) => status::status(&args),
        TollgateCommand::Health(args) => health::health(&args),
        TollgateCommand::RefreshCredential => run::refresh_credential(),
        TollgateCommand::Usage(args) => usage::usage(&args),
        TollgateCommand::Policy(command) => policy::policy(&command),
        TollgateCommand::Explain(args) => explain::explain(&args),
        TollgateCommand::ConfigSchema => print(&format!("{:#}", config::schema())),
        TollgateCommand::Completions(args) => generate::completions(&args, CommandLine::command()),
        TollgateCommand::Man(args) => generate::man(&args, CommandLine::command()),
        TollgateCommand::Version => print(concat!("tollgate ", env!("CARGO_PKG_VERSION"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tollgate: {failure}");
            ExitCode::FAILURE
        }
    }
}
