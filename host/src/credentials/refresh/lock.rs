//! The lock of an auth.json, which Codex takes, too.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::RefreshFileError;
use crate::files::{io_reason, path_with_suffix};
use crate::platform::AccessOptions;

/// The suffix that the lock file's name adds to that of its auth.json.
const LOCK_SUFFIX: &str = ".lock";

/// How often a lock that another process holds is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Holds the lock until it is dropped.
pub(super) struct AuthFileLock {
    _file: File,
}

impl AuthFileLock {
    /// Locks `auth_file`. Returns `None` if another process still holds the lock after `timeout`.
    /// Blocks.
    ///
    /// # Errors
    /// The lock file cannot be opened or locked.
    pub(super) fn acquire(
        auth_file: &Path,
        timeout: Duration,
    ) -> Result<Option<Self>, RefreshFileError> {
        let path = path_with_suffix(auth_file, LOCK_SUFFIX);
        try_until(&path, timeout).map_err(|error| RefreshFileError::Lock {
            reason: io_reason(&error),
            path,
        })
    }
}

fn try_until(path: &Path, timeout: Duration) -> io::Result<Option<AuthFileLock>> {
    let file = open(path)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(AuthFileLock { _file: file })),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= timeout => return Ok(None),
            Err(TryLockError::WouldBlock) => sleep(RETRY_INTERVAL),
        }
    }
}

/// Opens the lock file, and creates it if there is none. A link is not followed: otherwise another
/// user who may write to the folder could have any file created or locked.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .private()
        .without_waiting_or_links()
        .open(path);
    let file = match opened {
        Err(_) if path.is_symlink() => {
            return Err(io::Error::other("expected a file, found a symbolic link"));
        }
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a file, found something else"));
    }
    Ok(file)
}
