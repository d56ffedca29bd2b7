//! Standard output.

use std::io::{self, Write};

use super::error::CommandFailure;
use crate::files::io_reason;

/// Prints `text` and a line break. A reader may close the pipe before the end.
///
/// # Errors
/// The text cannot be written.
pub(super) fn print(text: &str) -> Result<(), CommandFailure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {}", io_reason(&error)).into())
        }
        _ => Ok(()),
    }
}
