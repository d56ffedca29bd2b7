//! A refresh: one refresh token is spent for new tokens (RFC 6749, section 6), and none is ever spent twice.
//!
//! Refresh tokens of OpenAI's are used once, and showing a spent one revokes its whole family. So whoever refreshes
//! holds the file's lock, looks at the file again under it, and notes in the journal what it is about to spend, before
//! it asks. Blocks; the request itself is given from above.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::auth_file::{self, Fingerprint};
use super::journal::{Entry, Journal, NewTokens};
use super::write_back::with_tokens;
use crate::files::{beside, plain, replace, try_replace};

/// The client that Codex is registered as (public in the source of Codex).
const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
const SCOPE: &str = "openid profile email";

/// An auth.json with new tokens is not larger than this, as far as is known: there must be room for so much.
const ROOM_BYTES: usize = 64 * 1024;

/// How often a lock that another process holds is tried.
const LOCK_STEP: Duration = Duration::from_millis(20);

/// How often, and how far apart, a file that somebody else is writing is read again after a refresh.
const SETTLE_TRIES: u32 = 10;
const SETTLE_STEP: Duration = Duration::from_millis(100);

/// What is to be refreshed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The auth.json.
    pub path: PathBuf,
    /// The access token that is due. Where the file has another, nothing is spent.
    pub due: Fingerprint,
    /// For how long another process may hold the lock.
    pub lock_timeout: Duration,
}

/// What the token endpoint answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The body, in a bound.
    pub body: Zeroizing<Vec<u8>>,
}

/// The token endpoint did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The request was not sent: nothing is spent.
    NotSent(String),
    /// It may have been: the token may be spent.
    Lost(String),
}

/// What came of a refresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The file has new tokens.
    Refreshed {
        /// The access token among them.
        token: Fingerprint,
    },
    /// The file has other tokens than those that were due: somebody else was there first.
    Newer,
    /// Nothing can be refreshed until somebody logs in again.
    LoginNeeded {
        /// Why.
        reason: String,
    },
    /// Nothing was spent, and it is worth trying again.
    Failed {
        /// Why.
        reason: String,
        /// Not before.
        retry_after: Option<Duration>,
    },
    /// New tokens could not be kept, so none were asked for.
    NotWritable {
        /// Why.
        reason: String,
    },
    /// Another process holds the lock.
    Busy,
}

impl Outcome {
    fn login(reason: impl Into<String>) -> Self {
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

/// Refreshes the tokens of a file. `post` sends a JSON body to the token endpoint, once.
pub fn refresh(
    job: &Job,
    post: impl FnOnce(Zeroizing<Vec<u8>>) -> Result<Answer, NoAnswer>,
) -> Outcome {
    // Past links: the file itself is replaced, and whoever else uses it locks the same name.
    let Ok(file) = job.path.canonicalize() else {
        return Outcome::failed("the file is not there");
    };
    let _lock = match lock(&file, job.lock_timeout) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Outcome::Busy,
        Err(reason) => return Outcome::NotWritable { reason },
    };
    if let Err(reason) = take_up_locked(&file) {
        return Outcome::NotWritable { reason };
    }
    let tokens = match Tokens::read(&file) {
        Ok(tokens) => tokens,
        Err(reason) => return Outcome::failed(reason),
    };
    if tokens.access != job.due {
        return Outcome::Newer;
    }
    let Some(refresh_token) = &tokens.refresh else {
        return Outcome::login("the file has no refresh token");
    };
    let journal = Journal::of(&file);
    let spent = Fingerprint::of(refresh_token.as_bytes());
    if journal.read().is_some_and(|entry| entry.spent == spent) {
        return uncertain(&journal, "a refresh was cut off");
    }
    // Before anything is spent: what is given must have a place to go.
    if let Err(reason) = try_replace(&file, ROOM_BYTES) {
        return Outcome::NotWritable {
            reason: format!("cannot write {}: {reason}", file.display()),
        };
    }
    let intent = Entry {
        spent: spent.clone(),
        at: now(),
        tokens: None,
    };
    if let Err(error) = journal.write(&intent) {
        return Outcome::NotWritable {
            reason: format!(
                "cannot write {}: {}",
                journal.path().display(),
                plain(&error)
            ),
        };
    }
    match post(request(refresh_token)) {
        Ok(answer) => settle(&file, &journal, spent, &answer),
        Err(NoAnswer::NotSent(reason)) => unspent(&journal, Outcome::failed(reason)),
        Err(NoAnswer::Lost(reason)) => uncertain(&journal, &reason),
    }
}

/// Takes up what a refresh left that was killed between the token endpoint's answer and its writing. Whoever holds the
/// lock at the moment takes it up itself.
///
/// # Errors
/// It cannot be written.
pub fn take_up(path: &Path) -> Result<(), String> {
    let Ok(file) = path.canonicalize() else {
        return Ok(());
    };
    if !Journal::of(&file).exists() {
        return Ok(());
    }
    match lock(&file, Duration::ZERO)? {
        Some(_lock) => take_up_locked(&file),
        None => Ok(()),
    }
}

fn take_up_locked(file: &Path) -> Result<(), String> {
    let journal = Journal::of(file);
    let Some(entry) = journal.read() else {
        return Ok(());
    };
    let Ok(tokens) = Tokens::read(file) else {
        return Ok(());
    };
    let is_current = tokens
        .refresh
        .is_some_and(|token| Fingerprint::of(token.as_bytes()) == entry.spent);
    match &entry.tokens {
        Some(new) if is_current => write(file, new, &entry.at)?,
        // It may be spent: that stays noted until the file has another.
        None if is_current => return Ok(()),
        _ => {}
    }
    journal.remove().map_err(|error| {
        format!(
            "cannot remove {}: {}",
            journal.path().display(),
            plain(&error)
        )
    })
}

/// The lock that Codex takes, too. None where another process holds it for longer than `limit`.
fn lock(file: &Path, limit: Duration) -> Result<Option<File>, String> {
    let path = beside(file, ".lock");
    let failed = |error: io::Error| format!("cannot lock {}: {}", path.display(), plain(&error));
    // Nobody waits for the other end of a FIFO.
    let mut open = OpenOptions::new();
    open.create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK);
    let lock = open.open(&path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= limit => return Ok(None),
            Err(TryLockError::WouldBlock) => sleep(LOCK_STEP),
        }
    }
}

/// What an auth.json holds that a refresh needs.
struct Tokens {
    access: Fingerprint,
    refresh: Option<Zeroizing<String>>,
}

impl Tokens {
    fn read(file: &Path) -> Result<Self, String> {
        let text = auth_file::read(file)?;
        let identity = auth_file::parse(&text)?;
        let refresh = auth_file::refresh_token(&text);
        Ok(Self {
            access: identity.fingerprint(),
            refresh,
        })
    }
}

fn request(refresh_token: &str) -> Zeroizing<Vec<u8>> {
    let body = json!({
        "client_id": CLIENT_ID,
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": SCOPE,
    });
    Zeroizing::new(body.to_string().into_bytes())
}

fn settle(file: &Path, journal: &Journal, spent: Fingerprint, answer: &Answer) -> Outcome {
    match judge(answer) {
        Verdict::Tokens(tokens) => keep(
            file,
            journal,
            Entry {
                spent,
                at: now(),
                tokens: Some(tokens),
            },
        ),
        Verdict::Useless(reason) => uncertain(journal, &reason),
        Verdict::Refused(reason) => unspent(journal, Outcome::LoginNeeded { reason }),
        Verdict::Again(reason) => unspent(
            journal,
            Outcome::Failed {
                reason,
                retry_after: answer.retry_after,
            },
        ),
    }
}

/// The old refresh token is spent: from here on the new ones must not be lost.
fn keep(file: &Path, journal: &Journal, entry: Entry) -> Outcome {
    let mut noted = journal.write(&entry);
    let Some(new) = &entry.tokens else {
        return Outcome::Newer;
    };
    for attempt in 0..SETTLE_TRIES {
        match Tokens::read(file) {
            Ok(found)
                if found
                    .refresh
                    .as_ref()
                    .map(|token| Fingerprint::of(token.as_bytes()))
                    == Some(entry.spent.clone()) =>
            {
                let written = write(file, new, &entry.at);
                if written.is_err() && noted.is_err() {
                    // What stood in the way of both may have gone.
                    noted = journal.write(&entry);
                }
                return match (written, noted) {
                    (Ok(()), _) => unspent(
                        journal,
                        Outcome::Refreshed {
                            token: new.access(),
                        },
                    ),
                    (Err(reason), Ok(())) => Outcome::failed(format!(
                        "new tokens wait in {}: {reason}",
                        journal.path().display()
                    )),
                    (Err(reason), Err(_)) => {
                        Outcome::login(format!("new tokens could not be kept: {reason}"))
                    }
                };
            }
            // Somebody logged in meanwhile, perhaps with another account: that stays.
            Ok(_) => return unspent(journal, Outcome::Newer),
            // Removed: logged out. One that only cannot be seen at the moment is not gone.
            Err(_) if attempt + 1 == SETTLE_TRIES && matches!(file.try_exists(), Ok(false)) => {
                return unspent(journal, Outcome::Newer);
            }
            // Somebody else is writing it.
            Err(_) if attempt + 1 < SETTLE_TRIES => sleep(SETTLE_STEP),
            Err(_) => {}
        }
    }
    match noted {
        Ok(()) => Outcome::failed(format!(
            "the file broke during the refresh; new tokens wait in {}",
            journal.path().display()
        )),
        Err(_) => {
            Outcome::login("the file broke during the refresh, and new tokens could not be kept")
        }
    }
}

fn write(file: &Path, new: &NewTokens, at: &str) -> Result<(), String> {
    let text = auth_file::read(file)?;
    let text = std::str::from_utf8(&text)
        .map_err(|_| "expected UTF-8, found another encoding".to_owned())?;
    let edited = with_tokens(text, new, at).ok_or("expected tokens, found none")?;
    replace(file, edited.as_bytes())
        .map_err(|error| format!("cannot write {}: {}", file.display(), plain(&error)))
}

/// Nothing more is to be noted.
fn unspent(journal: &Journal, outcome: Outcome) -> Outcome {
    if let Err(error) = journal.remove() {
        tracing::warn!(path = %journal.path().display(), error = plain(&error), "the journal of a refresh is still there");
    }
    outcome
}

/// The token may be spent. It is not shown again: if it is spent, that would revoke its family.
fn uncertain(journal: &Journal, what: &str) -> Outcome {
    let path = journal.path().display();
    Outcome::login(format!(
        "{what}, and its token may be spent; log in again, or remove {path} to try it once more"
    ))
}

enum Verdict {
    Tokens(NewTokens),
    /// An answer without tokens, which may have cost one.
    Useless(String),
    /// The refresh token is of no use.
    Refused(String),
    /// The endpoint failed, and told so.
    Again(String),
}

fn judge(answer: &Answer) -> Verdict {
    let status = answer.status;
    let code = code(&answer.body);
    let told = match &code {
        Some(code) => format!("the token endpoint answered {status} {code}"),
        None => format!("the token endpoint answered {status}"),
    };
    let is_final = code.as_deref().is_some_and(|code| {
        code == "invalid_grant"
            || ["_reused", "_expired", "_invalidated"]
                .iter()
                .any(|end| code.ends_with(end))
    });
    match status {
        200..300 => NewTokens::parse(&answer.body).map_or_else(
            || Verdict::Useless(format!("{told} without tokens")),
            Verdict::Tokens,
        ),
        401 => Verdict::Refused(told),
        400..500 if is_final => Verdict::Refused(told),
        // Somebody in between answers: whether the endpoint itself saw the token, nobody tells.
        502 | 504 => Verdict::Useless(told),
        _ => Verdict::Again(told),
    }
}

/// The code of an error, in the forms of OpenAI (`{"error": {"code"}}`) and of RFC 6749 (`{"error"}`). What does not
/// look like a code is not passed on.
fn code(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error");
    let code = error
        .and_then(|error| error.get("code"))
        .or(error)
        .or_else(|| value.get("code"))?
        .as_str()?;
    let looks_like_one = code.len() <= 64
        && code
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (looks_like_one && !code.is_empty()).then(|| code.to_owned())
}

/// The time, in RFC 3339 with nanoseconds, as Codex writes it.
fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
