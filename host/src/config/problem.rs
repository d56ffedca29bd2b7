//! What can be wrong with a configuration, and the list in which it is collected. A message says
//! what was expected and what was found, and never quotes a text that may be a secret.

use std::fmt;

use super::path::ConfigPath;

/// One thing that is wrong with a configuration, or that its operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The value that the message is about.
    pub path: ConfigPath,
    /// What was expected and what was found.
    pub message: String,
}

impl ConfigProblem {
    /// Creates a problem with the value at `path`.
    pub fn new(path: ConfigPath, message: impl Into<String>) -> Self {
        Self {
            path,
            message: message.into(),
        }
    }

    /// Creates a problem that has no place in the file; the message names what it is about.
    pub fn without_path(message: impl Into<String>) -> Self {
        Self::new(ConfigPath::root(), message)
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_root() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// The problems and warnings that were found so far.
#[derive(Debug, Default)]
pub(super) struct ProblemReport {
    pub(super) problems: Vec<ConfigProblem>,
    pub(super) warnings: Vec<ConfigProblem>,
}

impl ProblemReport {
    pub(super) fn problem(&mut self, path: ConfigPath, message: impl Into<String>) {
        self.problems.push(ConfigProblem::new(path, message));
    }

    pub(super) fn warning(&mut self, path: ConfigPath, message: impl Into<String>) {
        self.warnings.push(ConfigProblem::new(path, message));
    }
}
