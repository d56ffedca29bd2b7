//! Where files are if the configuration does not say so.

use std::env;
use std::path::PathBuf;

use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;

/// Returns the default folder of the ledger: `$XDG_DATA_HOME/tollgate`, or
/// `~/.local/share/tollgate`.
pub(super) fn data_dir(report: &mut ProblemReport) -> Option<PathBuf> {
    let field = ConfigPath::root().key("data_dir");
    let folder = variable_or_home("XDG_DATA_HOME", ".local/share", field, report)?;
    Some(folder.join("tollgate"))
}

/// Returns the default credential file: `$CODEX_HOME/auth.json`, or `~/.codex/auth.json`.
pub(super) fn credential_path(field: ConfigPath, report: &mut ProblemReport) -> Option<PathBuf> {
    let folder = variable_or_home("CODEX_HOME", ".codex", field, report)?;
    Some(folder.join("auth.json"))
}

fn variable_or_home(
    variable: &str,
    below_home: &str,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<PathBuf> {
    let folder = folder_in(variable).or_else(|| Some(home_folder()?.join(below_home)));
    if folder.is_none() {
        let message = format!(
            "missing: there is no default because neither {variable} nor HOME is set and the user \
            database has no home folder"
        );
        report.problem(field, message);
    }
    folder
}

/// Returns the folder in `HOME`, or without it the one in the user database.
fn home_folder() -> Option<PathBuf> {
    env::home_dir().filter(|folder| !folder.as_os_str().is_empty())
}

fn folder_in(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    Some(PathBuf::from(value))
}
