//! Files, whose access is that of their folder: a user's profile is private.

use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions};
use std::io;
use std::path::Path;

use crate::platform::terms::FixedFile;

/// How a file is opened.
pub(crate) trait AccessOptions {
    /// Without effect: a file has the access that its folder gives it.
    fn private(&mut self) -> &mut Self;

    /// Without effect: no path leads to a FIFO.
    fn without_waiting(&mut self) -> &mut Self;

    /// Without effect: a link is followed.
    fn without_waiting_or_links(&mut self) -> &mut Self;
}

impl AccessOptions for OpenOptions {
    fn private(&mut self) -> &mut Self {
        self
    }

    fn without_waiting(&mut self) -> &mut Self {
        self
    }

    fn without_waiting_or_links(&mut self) -> &mut Self {
        self
    }
}

/// Creates the folder at `path`, and those above it.
///
/// # Errors
/// It cannot be created.
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)
}

/// Not known: no file counts as replaced by another one.
pub(crate) fn file_identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

/// Never: there are no Unix sockets.
pub(crate) fn is_socket(_: FileType) -> bool {
    false
}

/// Not known. Compiled code is loaded only from a folder of which it is known.
pub(crate) fn is_writable_by_us_only(_: &Metadata) -> bool {
    false
}

/// Without effect: the new file has the access that its folder gives it.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn keep_access(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

/// # Errors
/// There are no modes.
pub(crate) fn set_mode(_: &Path, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not known: an attempt to replace the file fails.
pub(crate) fn may_replace(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Not known: an attempt to replace the file fails.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn check_attributes(_: &Path) -> Result<(), FixedFile> {
    Ok(())
}

/// Not known, if there is a folder: an attempt to create a file fails.
pub(crate) fn is_writable_folder(folder: &Path) -> bool {
    folder.is_dir()
}

/// Without effect: a folder cannot be opened as a file, and NTFS has a journal of its names.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
