//! The files that credentials read or write, over all services. No two of them may be the same,
//! however they are spelled.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;

#[derive(Default)]
pub(super) struct ClaimedFiles {
    /// The field that claimed each file, by the file's canonical path.
    fields: HashMap<PathBuf, ConfigPath>,
}

impl ClaimedFiles {
    /// Claims `file` for `field`. Reports a problem if another field has claimed it.
    pub(super) fn claim(&mut self, file: &Path, field: ConfigPath, report: &mut ProblemReport) {
        let file = canonical(file);
        match self.fields.get(&file) {
            Some(first) => report.problem(field, format!("the same file as {first}")),
            None => drop(self.fields.insert(file, field)),
        }
    }
}

/// Returns the path of the existing file with links resolved, or else the absolute path without dot
/// segments.
fn canonical(file: &Path) -> PathBuf {
    if let Ok(found) = file.canonicalize() {
        return found;
    }
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
