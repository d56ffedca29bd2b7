//! Reads the configuration for a command, with messages that name its file.

use std::path::Path;

use super::error::CommandFailure;
use crate::config::{self, Config, ConfigError, ConfigProblem, LoadedConfig};
use crate::server::{self, StartError};

/// Reads the configuration at `path`, or the default one.
///
/// # Errors
/// All its problems, those of the files that it names included.
pub(super) fn load(path: Option<&Path>) -> Result<LoadedConfig, CommandFailure> {
    match path {
        Some(path) => config::load(path).map_err(|error| failure(path, error)),
        None => config::parse(config::DEFAULT_CONFIG).map_err(|error| error.to_string().into()),
    }
}

fn failure(path: &Path, mut error: ConfigError) -> CommandFailure {
    // The valid rest is checked, too, so that one run reports everything.
    if let Some(rest) = error.rest.take()
        && let Err(StartError::Config(more)) = server::check(*rest)
    {
        error.problems.extend(more.problems);
    }
    let mut lines: Vec<String> = error.warnings.iter().map(warning).collect();
    lines.push(error.to_string());
    in_file(path, &lines.join("\n"))
}

fn warning(problem: &ConfigProblem) -> String {
    format!("warning: {problem}")
}

/// Prefixes every line of `text` with the file that it is about.
pub(super) fn in_file(path: &Path, text: &str) -> CommandFailure {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("{}: {line}", path.display()))
        .collect();
    lines.join("\ntollgate: ").into()
}

/// Counts what `config` has, for a configuration without problems.
pub(super) fn summary(config: &Config) -> String {
    let services = config.services.len();
    let credentials = config
        .services
        .iter()
        .map(|service| service.credentials.len())
        .sum();
    let users = config
        .services
        .iter()
        .map(|service| service.users.len())
        .sum();
    format!(
        "ok: {}, {}, {}",
        counted(services, "service"),
        counted(credentials, "credential"),
        counted(users, "user"),
    )
}

/// `1 user`, `2 users`.
fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
