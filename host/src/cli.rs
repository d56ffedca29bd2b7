//! The commands. Owns everything that is printed, and the exit codes: 0, 1 (configuration or runtime), 2 (usage).

mod ask;
mod explain;
mod logging;
mod policy;
mod run;
mod status;
mod table;
mod usage;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, Loaded};
use crate::files::plain;
use crate::server::{self, StartError};

/// A gateway for several OpenAI Codex credentials and API keys.
///
/// Clients authenticate with tokens of yours and are served by credentials that WebAssembly policies choose; usage and
/// cost of every request are kept in a ledger. Configured as sing-box's OCM service is.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or SIGINT.
    ///
    /// It takes up its configuration anew when the file changes, and on SIGHUP.
    ///
    /// Without a configuration it serves $CODEX_HOME/auth.json (or ~/.codex/auth.json) on 127.0.0.1:8080.
    Run {
        /// The configuration: JSON, with comments and trailing commas.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Write a JSON file with the addresses once every listener is up.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Check a configuration, and everything that it names, without starting anything.
    Check {
        /// The configuration.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the state of the running gateway's credentials.
    Status(status::Args),
    /// Print usage and cost from the ledger.
    Usage(usage::Args),
    /// Look at the policies of the running gateway, change them, and replay their records.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Print why a request went where it went.
    Explain(explain::Args),
    /// Print the JSON Schema of the configuration.
    ConfigSchema,
    /// Print the version.
    Version,
    /// Refresh one credential's tokens as standard input says. The gateway runs it.
    #[command(hide = true, name = server::REFRESH_COMMAND)]
    RefreshCredential,
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run { config, ready_file } => run::run(config.as_deref(), ready_file.as_deref()),
        Command::Check { config } => check(&config),
        Command::Status(args) => status::status(&args),
        Command::RefreshCredential => run::refresh_credential(),
        Command::Usage(args) => usage::usage(&args),
        Command::Policy(command) => policy::policy(&command),
        Command::Explain(args) => explain::explain(&args),
        Command::ConfigSchema => print(&format!("{:#}", config::schema())),
        Command::Version => print(concat!("tollgate ", env!("CARGO_PKG_VERSION"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tollgate: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A failure, as a person reads it.
type Message = String;

fn check(path: &std::path::Path) -> Result<(), Message> {
    let Loaded { config, warnings } = load(Some(path))?;
    for warning in &warnings {
        eprintln!("tollgate: {}: warning: {warning}", path.display());
    }
    let summary = summary(&config);
    for warning in server::check(config).map_err(|error| in_file(path, &error.to_string()))? {
        eprintln!("tollgate: {}: warning: {warning}", path.display());
    }
    print(&format!("{}: {summary}", path.display()))
}

/// Prints a text. Whoever reads it may stop before its end.
fn print(text: &str) -> Result<(), Message> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot print: {}", plain(&error)))
        }
        _ => Ok(()),
    }
}

fn summary(config: &Config) -> String {
    let count = |number: usize, one: &str, many: &str| {
        if number == 1 {
            format!("1 {one}")
        } else {
            format!("{number} {many}")
        }
    };
    let credentials: usize = config
        .services
        .iter()
        .map(|service| service.credentials.len())
        .sum();
    let users: usize = config
        .services
        .iter()
        .map(|service| service.users.len())
        .sum();
    format!(
        "ok: {}, {}, {}",
        count(config.services.len(), "service", "services"),
        count(credentials, "credential", "credentials"),
        count(users, "user", "users"),
    )
}

/// Reads the configuration at `path`, or the default one.
fn load(path: Option<&std::path::Path>) -> Result<Loaded, Message> {
    match path {
        Some(path) => config::load(path).map_err(|mut error| {
            // What the rest of it names is looked at, too: one run tells everything.
            if let Some(rest) = error.rest.take()
                && let Err(StartError::Config(more)) = server::check(*rest)
            {
                error.problems.extend(more.problems);
            }
            let warnings: Vec<String> = error
                .warnings
                .iter()
                .map(|warning| format!("warning: {warning}"))
                .collect();
            let all: Vec<String> = warnings.into_iter().chain([error.to_string()]).collect();
            in_file(path, &all.join("\n"))
        }),
        None => config::parse(config::DEFAULT_CONFIG.to_owned()).map_err(|error| error.to_string()),
    }
}

/// Every line of `text`, with the file that it is about.
fn in_file(path: &std::path::Path, text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("{}: {line}", path.display()))
        .collect();
    lines.join("\ntollgate: ")
}
