//! The journal of a refresh: a file beside auth.json that names the refresh token that is being
//! spent, and then holds the tokens that were issued for it. A process that is killed at any point
//! leaves what the next one needs.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::RefreshFileError;
use super::new_tokens::NewTokens;
use crate::credentials::identity::SecretFingerprint;
use crate::files::{io_reason, path_with_suffix, read_regular, remove, replace_private};
use crate::values::limits::AUTH_FILE_BYTES;

/// The suffix that the journal's name adds to that of its auth.json.
const JOURNAL_SUFFIX: &str = ".refresh-journal";

/// The content of a journal.
#[derive(Deserialize)]
pub(super) struct JournalEntry {
    /// The refresh token that was presented, or is about to be.
    pub(super) spent: SecretFingerprint,
    /// When its successors were issued, RFC 3339.
    pub(super) at: String,
    /// The tokens that were issued for it; `None` until a response came.
    pub(super) tokens: Option<NewTokens>,
}

/// A [`JournalEntry`] on its way to the disk.
#[derive(Serialize)]
struct EntryText<'a> {
    spent: &'a SecretFingerprint,
    at: &'a str,
    tokens: Option<&'a NewTokens>,
}

/// The journal of one auth.json. Only the holder of the file's lock writes it.
pub(super) struct RefreshJournal {
    path: PathBuf,
}

impl RefreshJournal {
    /// Returns the journal of `auth_file`, which may not exist yet.
    pub(super) fn of(auth_file: &Path) -> Self {
        Self {
            path: path_with_suffix(auth_file, JOURNAL_SUFFIX),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the entry. A file that cannot be parsed counts as no journal: the gateway replaces
    /// its journals atomically, so another program wrote it.
    pub(super) fn read(&self) -> Option<JournalEntry> {
        let bytes = read_regular(&self.path, AUTH_FILE_BYTES)
            .map(Zeroizing::new)
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Notes that the refresh token is about to be spent.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub(super) fn write_intent(
        &self,
        spent: &SecretFingerprint,
        at: &str,
    ) -> Result<(), RefreshFileError> {
        let tokens = None;
        self.write(&EntryText { spent, at, tokens })
    }

    /// Notes the tokens that were issued for the refresh token.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub(super) fn write_issued(
        &self,
        spent: &SecretFingerprint,
        at: &str,
        tokens: &NewTokens,
    ) -> Result<(), RefreshFileError> {
        let tokens = Some(tokens);
        self.write(&EntryText { spent, at, tokens })
    }

    fn write(&self, entry: &EntryText<'_>) -> Result<(), RefreshFileError> {
        let written = serde_json::to_vec(entry)
            .map_err(io::Error::other)
            .map(Zeroizing::new)
            .and_then(|text| replace_private(&self.path, &text));
        written.map_err(|error| RefreshFileError::Write {
            path: self.path.clone(),
            reason: io_reason(&error),
        })
    }

    /// # Errors
    /// The journal is still there.
    pub(super) fn remove(&self) -> Result<(), RefreshFileError> {
        remove(&self.path).map_err(|error| RefreshFileError::Remove {
            path: self.path.clone(),
            reason: io_reason(&error),
        })
    }
}
