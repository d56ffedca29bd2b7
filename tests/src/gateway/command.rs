//! The binary as a command: its output and its exit code.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::gateway::program::binary;

/// A command's output and exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Said {
    /// Returns its standard output as JSON.
    ///
    /// # Panics
    /// Panics if it failed, or did not print JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (Some(0), ""),
            "{}",
            self.stdout
        );
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// Runs `tollgate` with these arguments until it ends.
///
/// # Panics
/// Panics if it cannot be run.
pub fn tollgate<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Said {
    let output = Command::new(binary())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    Said {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
