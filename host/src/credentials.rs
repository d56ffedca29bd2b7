//! Credentials: what upstream accepts, and how much of it is left.
//!
//! Owns the auth.json files and what upstream says of each credential's windows; refuses to know how one is chosen.
//! Invariant: an access token or key leaves this module only as an `Authorization` value that is marked sensitive.

mod auth_file;
mod standing;

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::Notify;

pub use auth_file::{Identity, IdentityKind};
pub use standing::Standing;

use crate::config::{Caps, CredentialConfig};
use crate::values::candidate::Candidate;
use crate::values::clock::Millis;
use crate::values::windows::{Reading, Span};

/// How often a file is read again for requests that find its credential unavailable.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// A credential whose token upstream refused steps back for so long, or until its file has another token.
const TOKEN_REFUSED_FOR: Duration = Duration::from_secs(60);

/// A refusal by 429 whose end nobody tells, or that is said to be over already, lasts so long.
const REFUSED_FOR: Duration = Duration::from_secs(5 * 60);

/// A credential.
pub struct Credential {
    config: CredentialConfig,
    in_flight: AtomicU32,
    /// Counts the changes of its plan.
    plan_version: AtomicU64,
    /// Wakes who waits for it to turn unusable.
    unusable: Notify,
    state: Mutex<State>,
}

impl State {
    fn is_suspect(&self, now: Millis) -> bool {
        self.suspect_until.is_some_and(|until| until > now)
    }
}

struct State {
    identity: Result<Arc<Identity>, Unavailable>,
    read_at: Option<Millis>,
    /// Upstream refused its token: it steps back until then.
    suspect_until: Option<Millis>,
    standing: Standing,
}

/// Why a credential is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("tag", &self.config.tag).finish_non_exhaustive()
    }
}

impl Credential {
    /// A credential that is not read yet.
    pub fn new(config: CredentialConfig) -> Self {
        let state = State {
            identity: Err(Unavailable("not read yet".to_owned())),
            read_at: None,
            suspect_until: None,
            standing: Standing::default(),
        };
        Self {
            config,
            in_flight: AtomicU32::new(0),
            plan_version: AtomicU64::new(0),
            unusable: Notify::new(),
            state: Mutex::new(state),
        }
    }

    /// Its name.
    pub fn tag(&self) -> &str {
        &self.config.tag
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.config.path
    }

    /// Its usage file.
    pub fn usages_path(&self) -> Option<&Path> {
        self.config.usages_path.as_deref()
    }

    /// At how many percent of its windows it pauses.
    pub fn caps(&self) -> Caps {
        self.config.caps
    }

    /// Reads its file. Blocks on the disk.
    ///
    /// # Errors
    /// Why it is unavailable.
    pub fn read(&self, now: Millis) -> Result<Arc<Identity>, Unavailable> {
        let read = auth_file::read(&self.config.path).map(Arc::new).map_err(Unavailable);
        let mut state = self.state();
        state.read_at = Some(now);
        if let (Ok(new), Ok(old)) = (&read, &state.identity)
            && new.authorization != old.authorization
        {
            state.suspect_until = None;
        }
        if let Ok(identity) = &read
            && let Some(plan) = &identity.plan
            && *plan != state.standing.plan
        {
            state.standing.plan.clone_from(plan);
            self.plan_version.fetch_add(1, Ordering::Release);
        }
        state.identity = read.clone();
        read
    }

    /// Whether its file should be read again by whoever asks: it is unavailable or its token was refused, and the last
    /// reading is some time ago. One that is told so counts as the reader: others are not told for a while.
    pub fn claim_reading(&self, now: Millis) -> bool {
        let mut state = self.state();
        let due = state.read_at.is_none_or(|read| now.since(read) >= READ_AGAIN);
        let wanted = due && (state.identity.is_err() || state.is_suspect(now));
        if wanted {
            state.read_at = Some(now);
        }
        wanted
    }

    /// What upstream is shown, where it is loaded.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.state().identity.as_ref().ok().cloned()
    }

    /// Why it is not loaded, where it is not.
    pub fn unavailable(&self) -> Option<Unavailable> {
        self.state().identity.as_ref().err().cloned()
    }

    /// Its plan; empty while unknown.
    pub fn plan(&self) -> String {
        self.state().standing.plan.clone()
    }

    /// Changes whenever its plan does.
    pub fn plan_version(&self) -> u64 {
        self.plan_version.load(Ordering::Acquire)
    }

    /// How it stands, as a balancer sees it. An API key has no windows; where it is `excluded` it may not be chosen.
    pub fn candidate(&self, now: Millis, excluded: bool) -> Candidate {
        let state = self.state();
        let mut candidate = state.standing.candidate(self.config.caps, now);
        candidate.in_flight = self.in_flight.load(Ordering::Relaxed);
        candidate.usable &= !excluded && state.identity.is_ok();
        candidate
    }

    /// Whether upstream refused its token of late.
    pub fn is_suspect(&self, now: Millis) -> bool {
        self.state().is_suspect(now)
    }

    /// Waits until it turns unusable: upstream refuses it, or its use reaches a cap.
    pub async fn turns_unusable(&self) {
        self.unusable.notified().await;
    }

    /// When it will be usable again, where it is loaded and paused: by a refusal or by its caps.
    pub fn usable_again_at(&self, now: Millis) -> Option<Millis> {
        let state = self.state();
        state.identity.as_ref().ok()?;
        state.standing.usable_again_at(self.config.caps, now)
    }

    /// The start of its week, in Unix seconds.
    pub fn week_start_unix(&self, now: Millis) -> Option<u64> {
        self.state().standing.windows.week_start_unix(now)
    }

    /// The used parts of its windows, in percent: 5-hour and weekly.
    pub fn used(&self, now: Millis) -> (f64, f64) {
        let windows = self.state().standing.windows;
        (windows.used(Span::FiveHour, now), windows.used(Span::Weekly, now))
    }

    /// Takes in what a response's headers say.
    pub fn observe(&self, reading: &Reading, now: Millis) {
        let mut state = self.state();
        let usable = |state: &State| state.standing.candidate(self.config.caps, now).usable;
        let before = usable(&state);
        state.standing.windows.observe(reading, now);
        let turned = before && !usable(&state);
        drop(state);
        if turned {
            self.unusable.notify_waiters();
        }
    }

    /// Takes in a refusal by 429 until that time. A time that is past, or not told, counts as five minutes.
    pub fn refused(&self, until: Option<Millis>, now: Millis) -> Millis {
        let until = until.filter(|until| *until > now).unwrap_or_else(|| now.after(REFUSED_FOR));
        self.state().standing.limited_until = Some(until);
        self.unusable.notify_waiters();
        until
    }

    /// Takes in that upstream refused the token that it was shown.
    pub fn token_refused(&self, shown: &Identity, now: Millis) {
        let mut state = self.state();
        // A late answer to an old token says nothing about the new one.
        if state.identity.as_ref().is_ok_and(|known| known.authorization == shown.authorization) {
            state.suspect_until = Some(now.after(TOKEN_REFUSED_FOR));
        }
    }

    /// Takes in a failed attempt.
    pub fn failed(&self, now: Millis) {
        self.state().standing.failed(now);
    }

    /// Takes in how long a response's head took.
    pub fn answered(&self, latency: Duration) {
        self.state().standing.answered(latency);
    }

    /// Counts a request under way, for as long as the guard lives.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { credential: Arc::clone(self) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave these plain figures half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way on a credential.
#[derive(Debug)]
pub struct InFlight {
    credential: Arc<Credential>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.credential.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The fields by which upstream knows a credential.
impl Identity {
    /// The `Authorization` field, marked sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// The `ChatGPT-Account-Id` field.
    pub fn account_id(&self) -> Option<&HeaderValue> {
        self.account_id.as_ref()
    }
}
