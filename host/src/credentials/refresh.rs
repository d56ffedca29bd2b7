//! A refresh: one refresh token is spent for new tokens (RFC 6749, section 6).
//!
//! OpenAI's refresh tokens can be used once, and presenting a spent one revokes its whole family. A
//! refresh is therefore a transaction: lock the file, read it again, note in the journal which
//! token is about to be spent, present it, note the new tokens in the journal, write them to
//! auth.json, remove the journal. Owns that order and its recovery; does not know how the request
//! is sent. Invariant: no refresh token is presented twice, and its successor is on disk before it
//! is used. Blocks.

mod error;
mod journal;
mod lock;
mod new_tokens;
mod token_response;
mod write_back;

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::auth_file::{self, AuthFileError};
use super::identity::SecretFingerprint;
use crate::files::{FileSettling, check_replaceable, io_reason, replace};
use journal::RefreshJournal;
use lock::AuthFileLock;
use new_tokens::NewTokens;
use token_response::TokenVerdict;
use write_back::with_tokens;

pub use error::RefreshFileError;
pub use token_response::{TokenRequestError, TokenResponse};

/// The client id that Codex is registered with (public in Codex's source).
const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
const SCOPE: &str = "openid profile email";

/// An auth.json with new tokens is assumed not to be larger than this: so much room is required
/// before a token is spent.
const ROOM_BYTES: usize = 64 * 1024;

/// One refresh to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefreshJob {
    /// The auth.json whose tokens are refreshed.
    pub path: PathBuf,
    /// The access token that is due. If the file has another one, nothing is spent.
    pub due: SecretFingerprint,
    /// How long another process may hold the lock.
    pub lock_timeout: Duration,
}

/// How a refresh ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum RefreshOutcome {
    /// The file has new tokens.
    Refreshed {
        /// The new access token.
        token: SecretFingerprint,
    },
    /// The file has other tokens than those that were due: another process refreshed them or logged
    /// in.
    Newer,
    /// Nothing can be refreshed until the operator logs in again.
    LoginNeeded {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// Nothing was spent, or the new tokens are safe in the journal: a later attempt can succeed.
    Failed {
        /// A sentence for the operator, without any secret.
        reason: String,
        /// How long to wait before the next attempt.
        retry_after: Option<Duration>,
    },
    /// There was no connection to the token endpoint, so nothing was spent. Over another route, an
    /// attempt can succeed at once.
    Unreachable {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// New tokens could not have been stored, so none were requested.
    NotWritable {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// Another process holds the lock.
    Busy,
}

impl RefreshOutcome {
    fn login_needed(reason: impl Into<String>) -> Self {
        Self::LoginNeeded {
            reason: reason.into(),
        }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

impl From<RefreshFileError> for RefreshOutcome {
    fn from(error: RefreshFileError) -> Self {
        Self::NotWritable {
            reason: error.to_string(),
        }
    }
}

/// Refreshes the tokens of a file. `post` sends a JSON body to the token endpoint, once.
pub fn refresh_tokens(
    job: &RefreshJob,
    post: impl FnOnce(Zeroizing<Vec<u8>>) -> Result<TokenResponse, TokenRequestError>,
) -> RefreshOutcome {
    let transaction = match RefreshTransaction::begin(job) {
        Ok(transaction) => transaction,
        Err(outcome) => return outcome,
    };
    if let Err(error) = transaction.record_intent() {
        return error.into();
    }
    match post(request_body(&transaction.refresh_token)) {
        Ok(response) => transaction.apply(&response),
        Err(TokenRequestError::NotSent(reason)) => {
            transaction.end(RefreshOutcome::Unreachable { reason })
        }
        Err(TokenRequestError::Lost(reason)) => transaction.leave_uncertain(&reason),
    }
}

/// Completes a refresh whose process was killed after the token endpoint had issued tokens. If
/// another process holds the lock, it does so itself.
///
/// # Errors
/// A file cannot be locked or written.
pub fn recover_tokens(path: &Path) -> Result<(), RefreshFileError> {
    let Ok(auth_file) = path.canonicalize() else {
        return Ok(());
    };
    if !RefreshJournal::of(&auth_file).exists() {
        return Ok(());
    }
    match AuthFileLock::acquire(&auth_file, Duration::ZERO)? {
        Some(lock) => recover_locked(&auth_file, &lock),
        None => Ok(()),
    }
}

fn recover_locked(auth_file: &Path, _lock: &AuthFileLock) -> Result<(), RefreshFileError> {
    let journal = RefreshJournal::of(auth_file);
    let Some(entry) = journal.read() else {
        return Ok(());
    };
    let Ok(stored) = StoredTokens::read(auth_file) else {
        return Ok(());
    };
    if stored.refresh_fingerprint().as_ref() == Some(&entry.spent) {
        let Some(tokens) = &entry.tokens else {
            // The token may be spent: the journal says so until the file has another one.
            return Ok(());
        };
        write_tokens(auth_file, tokens, &entry.at)?;
    }
    journal.remove()
}

/// A refresh between its lock and its end.
struct RefreshTransaction {
    /// The file itself, past all links.
    auth_file: PathBuf,
    journal: RefreshJournal,
    refresh_token: Zeroizing<String>,
    /// The fingerprint of `refresh_token`.
    spent: SecretFingerprint,
    _lock: AuthFileLock,
}

impl RefreshTransaction {
    /// Locks the file and checks, under the lock, that its token is still due, unspent and
    /// replaceable.
    fn begin(job: &RefreshJob) -> Result<Self, RefreshOutcome> {
        // Past links: the file itself is replaced, and other processes that use it lock the same
        // name.
        let auth_file = job
            .path
            .canonicalize()
            .map_err(|_| RefreshOutcome::failed("the file does not exist"))?;
        let lock = AuthFileLock::acquire(&auth_file, job.lock_timeout)?;
        let lock = lock.ok_or(RefreshOutcome::Busy)?;
        recover_locked(&auth_file, &lock)?;
        let stored = StoredTokens::read(&auth_file)
            .map_err(|error| RefreshOutcome::failed(error.to_string()))?;
        if stored.access != job.due {
            return Err(RefreshOutcome::Newer);
        }
        let Some(refresh_token) = stored.refresh else {
            return Err(RefreshOutcome::login_needed(
                "the file has no refresh token",
            ));
        };
        let transaction = Self {
            journal: RefreshJournal::of(&auth_file),
            spent: SecretFingerprint::of(refresh_token.as_bytes()),
            auth_file,
            refresh_token,
            _lock: lock,
        };
        transaction.check_unspent()?;
        transaction.check_replaceable()?;
        Ok(transaction)
    }

    fn check_unspent(&self) -> Result<(), RefreshOutcome> {
        match self.journal.read() {
            Some(entry) if entry.spent == self.spent => {
                Err(self.leave_uncertain("an earlier refresh was interrupted"))
            }
            _ => Ok(()),
        }
    }

    /// Before anything is spent: the new tokens must have a place.
    fn check_replaceable(&self) -> Result<(), RefreshFileError> {
        check_replaceable(&self.auth_file, ROOM_BYTES).map_err(|error| RefreshFileError::Write {
            path: self.auth_file.clone(),
            reason: error.to_string(),
        })
    }

    /// Notes that the token is about to be spent.
    fn record_intent(&self) -> Result<(), RefreshFileError> {
        self.journal.write_intent(&self.spent, &now_rfc3339())
    }

    fn apply(&self, response: &TokenResponse) -> RefreshOutcome {
        match response.verdict() {
            TokenVerdict::Issued(tokens) => self.store(&tokens),
            TokenVerdict::Uncertain { reason } => self.leave_uncertain(&reason),
            TokenVerdict::Rejected { reason } => self.end(RefreshOutcome::LoginNeeded { reason }),
            TokenVerdict::Unspent { reason } => self.end(RefreshOutcome::Failed {
                reason,
                retry_after: response.retry_after,
            }),
        }
    }

    /// Stores new tokens. The old refresh token is spent: from here on the new ones must not be
    /// lost.
    fn store(&self, tokens: &NewTokens) -> RefreshOutcome {
        let issued_at = now_rfc3339();
        let journaled = self.journal.write_issued(&self.spent, &issued_at, tokens);
        let written = match self.read_auth_file_again() {
            FoundAuthFile::SameToken => write_tokens(&self.auth_file, tokens, &issued_at),
            FoundAuthFile::OtherToken | FoundAuthFile::Removed => {
                return self.end(RefreshOutcome::Newer);
            }
            FoundAuthFile::Unusable(error) => Err(error.into()),
        };
        let Err(error) = written else {
            return self.end(RefreshOutcome::Refreshed {
                token: tokens.access_fingerprint(),
            });
        };
        // What prevented the journal's first write may be over.
        let journaled =
            journaled.or_else(|_| self.journal.write_issued(&self.spent, &issued_at, tokens));
        match journaled {
            Ok(()) => RefreshOutcome::failed(format!(
                "the new tokens are still in {}: {error}",
                self.journal.path().display()
            )),
            Err(_) => RefreshOutcome::login_needed(format!(
                "the new tokens could not be written and are lost: {error}"
            )),
        }
    }

    /// Reads the file again, since it may have changed during the request; repeatedly if it is
    /// unusable, since another process may be writing it.
    fn read_auth_file_again(&self) -> FoundAuthFile {
        let mut settling = FileSettling::new();
        loop {
            let error = match StoredTokens::read(&self.auth_file) {
                Ok(stored) if stored.refresh_fingerprint().as_ref() == Some(&self.spent) => {
                    return FoundAuthFile::SameToken;
                }
                Ok(_) => return FoundAuthFile::OtherToken,
                Err(error) => error,
            };
            match settling.pause_after(error.clone()) {
                Some(pause) => sleep(pause),
                // A file that cannot be seen at the moment is not gone.
                None if matches!(self.auth_file.try_exists(), Ok(false)) => {
                    return FoundAuthFile::Removed;
                }
                None => return FoundAuthFile::Unusable(error),
            }
        }
    }

    /// Ends the transaction: the journal has nothing more to say.
    fn end(&self, outcome: RefreshOutcome) -> RefreshOutcome {
        if let Err(error) = self.journal.remove() {
            tracing::warn!(%error, "refresh journal not removed");
        }
        outcome
    }

    /// Ends the transaction with a token that may be spent. The journal stays, so that the token is
    /// not presented again: if it is spent, that would revoke its family.
    fn leave_uncertain(&self, reason: &str) -> RefreshOutcome {
        let journal = self.journal.path().display();
        RefreshOutcome::login_needed(format!(
            "{reason}, and the refresh token may be spent: log in again, or remove {journal} to try the token once more"
        ))
    }
}

/// What auth.json contains after the token endpoint's response.
enum FoundAuthFile {
    /// The refresh token that was spent.
    SameToken,
    /// Another refresh token: the operator logged in during the refresh, perhaps with another
    /// account.
    OtherToken,
    /// Nothing: the operator logged out during the refresh.
    Removed,
    /// Something that is not a usable auth.json.
    Unusable(AuthFileError),
}

/// What a refresh needs of an auth.json.
struct StoredTokens {
    access: SecretFingerprint,
    refresh: Option<Zeroizing<String>>,
}

impl StoredTokens {
    fn read(auth_file: &Path) -> Result<Self, AuthFileError> {
        let text = auth_file::read(auth_file)?;
        let identity = auth_file::parse(&text)?;
        Ok(Self {
            access: identity.fingerprint(),
            refresh: auth_file::refresh_token(&text),
        })
    }

    fn refresh_fingerprint(&self) -> Option<SecretFingerprint> {
        let token = self.refresh.as_ref()?;
        Some(SecretFingerprint::of(token.as_bytes()))
    }
}

/// Replaces the tokens in `auth_file`, and nothing else in it.
fn write_tokens(
    auth_file: &Path,
    tokens: &NewTokens,
    issued_at: &str,
) -> Result<(), RefreshFileError> {
    let text = auth_file::read(auth_file)?;
    let text = std::str::from_utf8(&text).map_err(|_| RefreshFileError::Encoding)?;
    let edited = with_tokens(text, tokens, issued_at).ok_or(RefreshFileError::NoTokens)?;
    replace(auth_file, edited.as_bytes()).map_err(|error| RefreshFileError::Write {
        path: auth_file.to_owned(),
        reason: io_reason(&error),
    })
}

fn request_body(refresh_token: &str) -> Zeroizing<Vec<u8>> {
    let body = json!({
        "client_id": CLIENT_ID,
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": SCOPE,
    });
    Zeroizing::new(body.to_string().into_bytes())
}

/// Returns the time in RFC 3339 with nanoseconds, as Codex writes it.
fn now_rfc3339() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
