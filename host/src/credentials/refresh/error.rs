//! Why the files of a refresh cannot be locked, written or read. The operator must act.

use std::path::PathBuf;

use crate::credentials::auth_file::AuthFileError;

/// Why a file of a refresh cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFileError {
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {}: {reason}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// auth.json or the journal cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The journal cannot be removed.
    #[error("cannot remove {}: {reason}", path.display())]
    Remove {
        /// The journal.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// auth.json is unusable.
    #[error(transparent)]
    AuthFile(#[from] AuthFileError),
    /// auth.json has an encoding that tokens cannot be written into.
    #[error("expected UTF-8, found another encoding")]
    Encoding,
    /// auth.json has no tokens that could be replaced.
    #[error("expected tokens, found none")]
    NoTokens,
}
