//! Why the files of a refresh cannot be locked, written or read. The operator must act.

use std::path::PathBuf;

use crate::credentials::auth_file::AuthFileError;

/// Why a file of a refresh cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFileError {
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {}: {reason}", path.display())]
    Lock {
        /// The path of the lock file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// auth.json or the journal cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The path of the auth.json or of the journal.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The journal cannot be removed.
    #[error("cannot remove {}: {reason}", path.display())]
    Remove {
        /// The path of the journal.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// auth.json cannot be read, or has no tokens that can be refreshed.
    #[error(transparent)]
    AuthFile(#[from] AuthFileError),
    /// auth.json has an encoding that tokens cannot be written into.
    #[error("expected UTF-8, found another encoding")]
    Encoding,
    /// auth.json has no tokens that could be replaced.
    #[error("expected tokens, found none")]
    NoTokens,
}
