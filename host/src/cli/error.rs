//! Why a command fails, as a person reads it.

use std::fmt;

/// The message of a failed command, without the program's name.
#[derive(Debug)]
pub(crate) struct CommandFailure(String);

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CommandFailure {}

impl From<String> for CommandFailure {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for CommandFailure {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}
