//! The files of accounts and certificates: how they are written.

use std::io;
use std::path::Path;

use super::error::AcmeError;
use crate::files::{io_reason, parent_folder, replace_private};
use crate::platform::create_private_folder;

/// Writes a file that only its owner may read, in a folder that may not exist yet.
pub(super) fn store(path: &Path, content: &[u8]) -> Result<(), AcmeError> {
    create_private_folder(parent_folder(path))
        .and_then(|()| replace_private(path, content))
        .map_err(|error: io::Error| AcmeError::file(path, io_reason(&error)))
}
