//! `tollgate check`: a configuration, the files that it names and, if asked for, the way to
//! upstream.

use std::path::{Path, PathBuf};

use crate::cli::admin_client::in_runtime;
use crate::cli::configuration::{in_file, load, summary};
use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::config::{ConfigProblem, LoadedConfig};
use crate::server::{self, TriedConnection, try_connections};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CheckArgs {
    /// The configuration file to check: JSON, with comments and trailing commas.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Also connect to upstream as each credential does, through its outbounds. No request is sent.
    #[arg(long)]
    connect: bool,
}

pub(in crate::cli) fn check(args: &CheckArgs) -> Result<(), CommandFailure> {
    let path = args.config.as_path();
    let LoadedConfig { config, warnings } = load(Some(path))?;
    print_warnings(path, &warnings);
    let summary = summary(&config);
    let warnings = server::check(config).map_err(|error| in_file(path, &error.to_string()))?;
    print_warnings(path, &warnings);
    print(&format!("{}: {summary}", path.display()))?;
    if args.connect {
        return connect(path);
    }
    Ok(())
}

fn print_warnings(path: &Path, warnings: &[ConfigProblem]) {
    for warning in warnings {
        eprintln!("tollgate: {}: warning: {warning}", path.display());
    }
}

/// # Errors
/// Every connection that cannot be made.
fn connect(path: &Path) -> Result<(), CommandFailure> {
    let config = load(Some(path))?.config;
    let tried = in_runtime(async { Ok(try_connections(&config, None).await) })?;
    let mut failures = Vec::new();
    for connection in &tried {
        match &connection.failure {
            None => print(&format!("{}: {}", path.display(), connected(connection)))?,
            Some(error) => failures.push(format!("{}: {error}", place(connection))),
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(in_file(path, &failures.join("\n")))
    }
}

fn connected(connection: &TriedConnection) -> String {
    let place = place(connection);
    match &connection.through {
        Some(tag) => format!("{place}: connected through outbound {tag:?}"),
        None => format!("{place}: connected"),
    }
}

fn place(connection: &TriedConnection) -> String {
    let TriedConnection {
        service,
        credential,
        origin,
        ..
    } = connection;
    format!("service {service:?}, credential {credential:?}: {origin}")
}
