//! Reads and replaces files: never more than the caller expects, and never half.
//!
//! Owns the rules for opening, bounding and durably replacing a file. Knows nothing of what a file
//! contains.

mod settling;

pub(crate) use self::settling::FileSettling;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::platform::{
    AccessOptions, FixedFile, check_attributes, keep_access, may_replace, sync_folder,
};

/// The suffix of a new file until it is renamed to the name of the file that it replaces.
const TEMPORARY_SUFFIX: &str = ".tollgate-new";

/// Why a file cannot be read. Does not name the file: the caller knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileReadError {
    /// The operating system refused, for this reason.
    #[error("{0}")]
    Io(String),
    /// The path leads to a folder.
    #[error("expected a file, found a folder")]
    Folder,
    /// The path leads to a folder, a FIFO, a socket or a device.
    #[error("expected a file, found something else")]
    NotRegular,
    /// The file is larger than the caller expects.
    #[error("expected at most {bytes_max} bytes, found more")]
    TooLarge {
        /// What the caller expects.
        bytes_max: u64,
    },
}

impl From<io::Error> for FileReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(io_reason(&error))
    }
}

/// Why a file could not be replaced. Does not name the file: the caller knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileReplaceError {
    /// The operating system refused, for this reason.
    #[error("{0}")]
    Io(String),
    /// The new file could not be written beside the old one.
    #[error("{}: {reason}", path.display())]
    Temporary {
        /// The temporary file, in the folder of the file to replace.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The file itself is a mount point.
    #[error("it is a mount point and cannot be replaced: mount its folder instead")]
    Mounted,
    /// The file is immutable or append-only.
    #[error("it is marked as immutable or append-only: see lsattr and chattr")]
    Immutable,
    /// The file belongs to another user, and its folder is sticky.
    #[error("it belongs to another user, and only they may replace it in this folder")]
    Sticky,
}

impl From<io::Error> for FileReplaceError {
    fn from(error: io::Error) -> Self {
        Self::Io(io_reason(&error))
    }
}

impl From<FixedFile> for FileReplaceError {
    fn from(fixed: FixedFile) -> Self {
        match fixed {
            FixedFile::Mounted => Self::Mounted,
            FixedFile::Immutable => Self::Immutable,
        }
    }
}

/// Reads a file of at most `bytes_max` bytes, which may be a pipe.
///
/// # Errors
/// The file cannot be read, or is larger.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileReadError> {
    if fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
        return Err(FileReadError::Folder);
    }
    read_all(File::open(path)?, bytes_max)
}

/// Reads a regular file of at most `bytes_max` bytes. Anything else is refused: opening a FIFO
/// could block for ever.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger.
pub(crate) fn read_regular(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileReadError> {
    if fs::metadata(path)?.is_dir() {
        return Err(FileReadError::NotRegular);
    }
    let file = OpenOptions::new().read(true).without_waiting().open(path)?;
    // The opened file decides, not the path: another file could replace it between the two looks.
    if !file.metadata()?.is_file() {
        return Err(FileReadError::NotRegular);
    }
    read_all(file, bytes_max)
}

fn read_all(file: File, bytes_max: u64) -> Result<Vec<u8>, FileReadError> {
    // Room for all of it: a buffer that grows leaves copies behind, which may be of a secret.
    let length = file.metadata()?.len().min(bytes_max) + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileReadError::TooLarge { bytes_max });
    }
    Ok(bytes)
}

/// Replaces the file at `path`: at any instant, and after a power cut, the path holds the old file
/// or the new one. A new file is readable by its owner alone; a file that replaces another keeps
/// its owner and mode. Callers that could replace one path at the same time must hold a lock.
///
/// # Errors
/// The file cannot be written, or not with the old one's owner; the old file is unchanged.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_like(path, bytes, fs::metadata(path).ok().as_ref())
}

/// Replaces the file at `path` as [`replace`] does, with a file that is readable by its owner
/// alone, whatever the old file's mode was: for files that only the gateway uses.
///
/// # Errors
/// The file cannot be written; the old file is unchanged.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_like(path, bytes, None)
}

fn replace_like(path: &Path, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let temporary = path_with_suffix(path, TEMPORARY_SUFFIX);
    // A killed process may have left one.
    remove(&temporary)?;
    let replaced = write_new(&temporary, bytes, like)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(parent_folder(path)));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// Checks whether the file at `path` could be replaced by one of `length` bytes, as far as that can
/// be known without doing it: there is room, the owner can be kept, and nothing holds the old file
/// in its place.
///
/// # Errors
/// The file could not be replaced.
pub(crate) fn check_replaceable(path: &Path, length: usize) -> Result<(), FileReplaceError> {
    let old = check_not_fixed(path)?;
    let temporary = path_with_suffix(path, TEMPORARY_SUFFIX);
    let written =
        remove(&temporary).and_then(|()| write_new(&temporary, &vec![b' '; length], Some(&old)));
    let removed = fs::remove_file(&temporary);
    written
        .and(removed)
        .map_err(|error| FileReplaceError::Temporary {
            reason: io_reason(&error),
            path: temporary,
        })
}

/// Checks whether anything but the mode of its folder keeps the file at `path` in its place. Writes
/// nothing.
///
/// # Errors
/// Something does.
pub(crate) fn check_not_fixed(path: &Path) -> Result<Metadata, FileReplaceError> {
    let old = fs::metadata(path)?;
    check_attributes(path)?;
    if !may_replace(&fs::metadata(parent_folder(path))?, &old) {
        return Err(FileReplaceError::Sticky);
    }
    Ok(old)
}

fn write_new(path: &Path, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .private()
        .open(path)?;
    if let Some(like) = like {
        keep_access(&file, like)?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes the file at `path`, durably. Succeeds if there is none.
///
/// # Errors
/// The file is still there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(parent_folder(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the folder that contains `path`.
pub(crate) fn parent_folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Returns `path` with `suffix` appended to its file name.
pub(crate) fn path_with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the reason of a file system error in words, without the error number.
pub(crate) fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}
