//! The files of accounts and certificates: how they are written.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::error::AcmeError;
use crate::files::{io_reason, parent_folder, replace_private};

/// The mode of the folder of accounts and certificates.
const FOLDER_MODE: u32 = 0o700;

/// Writes a file that only its owner may read, in a folder that may not exist yet.
pub(super) fn store(path: &Path, content: &[u8]) -> Result<(), AcmeError> {
    let folder = DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(parent_folder(path));
    folder
        .and_then(|()| replace_private(path, content))
        .map_err(|error: io::Error| AcmeError::file(path, io_reason(&error)))
}
