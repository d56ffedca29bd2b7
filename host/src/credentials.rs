//! Credentials: what upstream accepts, and how much of it is left.
//!
//! Owns the auth.json files, how their tokens are refreshed, and what upstream says of each credential's windows;
//! refuses to know how one is chosen. Invariant: an access token or key leaves this module only as an `Authorization`
//! value that is marked sensitive, and a refresh token only in the body of its one refresh.

mod auth_file;
mod health;
mod journal;
mod polling;
mod refresh;
mod renewal;
mod standing;
mod write_back;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Uri};
use sha2::{Digest, Sha256};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

pub use auth_file::{Fingerprint, Identity, IdentityKind};
pub use health::{Condition, Health, WindowHealth};
pub use refresh::{Answer, Job, NoAnswer, Outcome, refresh, take_up};
pub use standing::Standing;

use crate::config::{Caps, CredentialConfig, CredentialSource};
use crate::values::candidate::Candidate;
use crate::values::clock::Timestamp;
use crate::values::windows::{Reading, Span};

use polling::Polling;
use renewal::Renewal;

/// How often a file is read again for requests that find its credential unavailable.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// A credential whose token upstream refused steps back for so long, or until its file has another token.
const TOKEN_REFUSED_FOR: Duration = Duration::from_secs(60);

/// Threads see the clock a little apart; further back than this, it was put back.
const CLOCK_PUT_BACK: Duration = Duration::from_secs(1);

/// A refusal by 429 whose end nobody tells, or that is said to be over already, lasts so long.
const REFUSED_FOR: Duration = Duration::from_secs(5 * 60);

/// A refusal by 429 lasts no longer than this, whatever is told: no window is longer than a week.
const REFUSED_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// A credential.
pub struct Credential {
    name: Arc<str>,
    source: CredentialSource,
    in_flight: AtomicU32,
    /// Counts the changes of its plan and weight.
    plan_version: AtomicU64,
    /// There were requests since the last poll.
    traffic: AtomicBool,
    /// Wakes who waits for it to turn unusable.
    unusable: Notify,
    /// Wakes its refresher.
    refresh_wanted: Notify,
    /// Wakes its poller.
    poll_wanted: Notify,
    /// Counts the refreshes that are over.
    refreshes: watch::Sender<u64>,
    state: Mutex<State>,
}

struct State {
    caps: Caps,
    poll_interval: Duration,
    identity: Result<Arc<Identity>, Unavailable>,
    /// The account that is known best; the standing is its.
    account: Option<HeaderValue>,
    /// How many there were before.
    accounts: u64,
    /// The digest of the text that `identity` was read from.
    digest: Option<[u8; 32]>,
    read_at: Option<Timestamp>,
    /// Upstream refused its token: it steps back until then.
    suspect_until: Option<Timestamp>,
    /// What the clock showed when this was looked at last.
    seen_at: Timestamp,
    standing: Standing,
    renewal: Renewal,
    polling: Polling,
}

impl State {
    /// Whether what is known is of the account that `shown` belongs to.
    fn is_of(&self, shown: &Identity) -> bool {
        self.account == shown.account_id
    }

    /// What lasts for a while lasts no longer where the clock is put back. Windows end when upstream says.
    fn clock_shows(&mut self, now: Timestamp) {
        let back = self.seen_at.since(now);
        if back >= CLOCK_PUT_BACK {
            for until in [&mut self.standing.limited_until, &mut self.suspect_until]
                .into_iter()
                .flatten()
            {
                *until = until.before(back);
            }
        }
        if back >= CLOCK_PUT_BACK || now > self.seen_at {
            self.seen_at = now;
        }
    }

    fn is_suspect(&self, now: Timestamp) -> bool {
        self.suspect_until.is_some_and(|until| until > now)
    }

    /// Whether a request can be sent with it, at once or after a refresh.
    fn can_serve(&self, now: Timestamp) -> bool {
        let Ok(identity) = &self.identity else {
            return false;
        };
        !self.renewal.is_expired(identity, now) || self.renewal.may_help(identity, now)
    }
}

/// Why a credential is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// What a look at a credential's file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// What is known already.
    Same,
    /// Something new, which is taken in.
    New(Result<(), Unavailable>),
    /// A file that is there and broken, perhaps because somebody is writing it: what is known stays.
    Unfinished,
}

/// A poll under way, and what was known when it began.
#[derive(Debug, Clone, Copy)]
pub struct PollBegun {
    observations: u64,
    /// Counts the accounts.
    account: u64,
}

/// What a request finds.
enum Presentable {
    Ready(Arc<Identity>),
    /// A refresh is due or under way.
    Wait,
    Never,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("tag", &self.name)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// A credential that is not read yet.
    pub fn new(config: CredentialConfig) -> Self {
        let state = State {
            caps: config.caps,
            poll_interval: config.poll_interval,
            identity: Err(Unavailable("not read yet".to_owned())),
            account: None,
            accounts: 0,
            digest: None,
            read_at: None,
            suspect_until: None,
            seen_at: Timestamp::default(),
            standing: Standing::default(),
            renewal: Renewal::new(),
            polling: Polling::default(),
        };
        Self {
            name: config.tag.into(),
            source: config.source,
            in_flight: AtomicU32::new(0),
            plan_version: AtomicU64::new(0),
            traffic: AtomicBool::new(false),
            unusable: Notify::new(),
            refresh_wanted: Notify::new(),
            poll_wanted: Notify::new(),
            refreshes: watch::Sender::new(0),
            state: Mutex::new(state),
        }
    }

    /// Its name.
    pub fn tag(&self) -> &str {
        &self.name
    }

    /// Its name, to be kept.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it is what `config` describes, whatever the terms that it serves on.
    pub fn is_of(&self, config: &CredentialConfig) -> bool {
        *self.name == *config.tag && self.source == config.source
    }

    /// Serves on the terms of `config` from now on: other caps, and polls at other times.
    pub fn change_terms(&self, config: &CredentialConfig) {
        let mut state = self.state();
        state.caps = config.caps;
        state.poll_interval = config.poll_interval;
        drop(state);
        self.poll_wanted.notify_one();
    }

    /// Its file, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            CredentialSource::File(path) => Some(path),
            CredentialSource::Gateway { .. } => None,
        }
    }

    /// The gateway that it is, where it is one.
    pub fn gateway(&self) -> Option<&Uri> {
        match &self.source {
            CredentialSource::File(_) => None,
            CredentialSource::Gateway { url, .. } => Some(url),
        }
    }

    /// At how many percent of its windows it pauses.
    pub fn caps(&self) -> Caps {
        self.state().caps
    }

    /// Reads its file. Blocks on the disk.
    ///
    /// # Errors
    /// Why it is unavailable.
    pub fn read(&self, now: Timestamp) -> Result<(), Unavailable> {
        let (read, digest) = self.read_source();
        self.take_in(read.clone(), digest, now);
        read.map(drop)
    }

    /// Looks at its file, and takes in what is new there. A broken one is taken in only where nothing good is known, or
    /// it `stays` so. Blocks on the disk.
    pub fn look(&self, stays: bool, now: Timestamp) -> Look {
        let (read, digest) = self.read_source();
        let state = self.state();
        let same = match (&read, &state.identity) {
            (Ok(_), Ok(_)) => digest == state.digest,
            (Err(new), Err(known)) => new == known,
            _ => false,
        };
        let is_good = state.identity.is_ok();
        drop(state);
        if same {
            return Look::Same;
        }
        if read.is_err() && digest.is_some() && is_good && !stays {
            return Look::Unfinished;
        }
        self.take_in(read.clone(), digest, now);
        Look::New(read.map(drop))
    }

    fn read_source(&self) -> (Result<Arc<Identity>, Unavailable>, Option<[u8; 32]>) {
        match &self.source {
            CredentialSource::File(path) => match auth_file::read(path) {
                Ok(text) => {
                    let digest = Sha256::digest(&*text).into();
                    (
                        auth_file::parse(&text).map(Arc::new).map_err(Unavailable),
                        Some(digest),
                    )
                }
                Err(reason) => (Err(Unavailable(reason)), None),
            },
            CredentialSource::Gateway { token, .. } => {
                let identity = auth_file::external(token).map(Arc::new);
                (
                    identity.ok_or_else(|| Unavailable("its token cannot be sent".to_owned())),
                    None,
                )
            }
        }
    }

    fn take_in(
        &self,
        read: Result<Arc<Identity>, Unavailable>,
        digest: Option<[u8; 32]>,
        now: Timestamp,
    ) {
        let mut state = self.state();
        state.read_at = Some(now);
        state.digest = digest;
        // Also after a logout: whoever logs in again is not held to what the tokens before came to.
        if let Ok(new) = &read
            && state
                .identity
                .as_ref()
                .ok()
                .is_none_or(|old| new.authorization != old.authorization)
        {
            state.suspect_until = None;
            state.renewal.file_changed(new, now);
        }
        if let Ok(new) = &read {
            if state.account.is_some() && state.account != new.account_id {
                // Another account: what is known is not of it.
                state.standing = Standing::default();
                state.polling = Polling::default();
                state.accounts += 1;
                // Another plan, or none that is known yet: either way balancers are told.
                self.plan_version.fetch_add(1, Ordering::Release);
            }
            state.account.clone_from(&new.account_id);
        }
        if let Ok(identity) = &read
            && let Some(plan) = &identity.plan
            && state.polling.told_at.is_none()
            && *plan != state.standing.plan
        {
            state.standing.plan.clone_from(plan);
            self.plan_version.fetch_add(1, Ordering::Release);
        }
        let gone = state.identity.is_ok() && read.is_err();
        state.identity = read;
        drop(state);
        if gone {
            self.unusable.notify_waiters();
        }
        self.refresh_wanted.notify_one();
        self.poll_wanted.notify_one();
    }

    /// Whether its file should be read again by whoever asks: it is unavailable or its token was refused, and the last
    /// reading is some time ago. One that is told so counts as the reader: others are not told for a while.
    pub fn claim_reading(&self, now: Timestamp) -> bool {
        let mut state = self.state();
        let due = state
            .read_at
            .is_none_or(|read| read > now || now.since(read) >= READ_AGAIN);
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

    /// What upstream can be shown now. Where its tokens are due to be refreshed, that is waited for, at most for
    /// `limit`; none where nothing comes of it.
    pub async fn present(&self, limit: Duration) -> Option<Arc<Identity>> {
        match self.presentable(Timestamp::now()) {
            Presentable::Ready(identity) => return Some(identity),
            Presentable::Never => return None,
            Presentable::Wait => {}
        }
        let mut refreshes = self.refreshes.subscribe();
        let waiting = async {
            loop {
                match self.presentable(Timestamp::now()) {
                    Presentable::Ready(identity) => return Some(identity),
                    Presentable::Never => return None,
                    Presentable::Wait => self.refresh_wanted.notify_one(),
                }
                refreshes.changed().await.ok()?;
            }
        };
        timeout(limit, waiting).await.ok().flatten()
    }

    fn presentable(&self, now: Timestamp) -> Presentable {
        let state = self.state();
        match &state.identity {
            Ok(identity) if !state.renewal.is_expired(identity, now) => {
                Presentable::Ready(Arc::clone(identity))
            }
            Ok(identity) if state.renewal.may_help(identity, now) => Presentable::Wait,
            _ => Presentable::Never,
        }
    }

    /// Another identity than `shown`, which upstream refused: one that is there already, or one that a refresh gives
    /// within `limit`.
    pub async fn instead_of(&self, shown: &Identity, limit: Duration) -> Option<Arc<Identity>> {
        let mut refreshes = self.refreshes.subscribe();
        let waiting = async {
            loop {
                let waits = {
                    let mut state = self.state();
                    let known = Arc::clone(state.identity.as_ref().ok()?);
                    if known.authorization != shown.authorization {
                        return Some(known);
                    }
                    state.renewal.refused(&known);
                    state.renewal.may_help(&known, Timestamp::now())
                };
                if !waits {
                    return None;
                }
                self.refresh_wanted.notify_one();
                refreshes.changed().await.ok()?;
            }
        };
        timeout(limit, waiting).await.ok().flatten()
    }

    /// Begins a refresh where one is due. Answers which token it is of. None begins before that one has ended.
    pub fn refresh_begins(&self, now: Timestamp) -> Option<Fingerprint> {
        let mut state = self.state();
        let identity = Arc::clone(state.identity.as_ref().ok()?);
        state.renewal.is_due(&identity, now).then(|| {
            state.renewal.begins();
            identity.fingerprint()
        })
    }

    /// Whether a refresh is under way.
    pub fn is_refreshing(&self) -> bool {
        self.state().renewal.is_running()
    }

    /// Whether somebody waits for a refresh: its token is of no use as it is.
    pub fn is_refresh_urgent(&self, now: Timestamp) -> bool {
        let state = self.state();
        state.identity.as_ref().is_ok_and(|identity| {
            state.renewal.is_expired(identity, now) || state.renewal.is_refused(identity)
        })
    }

    /// The refresh of `token` is over. Where it gave others, the file has been read.
    pub fn refresh_ended(&self, token: &Fingerprint, outcome: &Outcome, now: Timestamp) {
        let mut state = self.state();
        let found = state.identity.as_ref().ok().cloned();
        state.renewal.ended(token, outcome, found.as_deref(), now);
        drop(state);
        self.refreshes.send_modify(|count| *count += 1);
    }

    /// Waits until a refresh may be due: `pause` at most.
    pub async fn refresh_may_be_due(&self, pause: Duration) {
        let now = Timestamp::now();
        let due = {
            let state = self.state();
            state
                .identity
                .as_ref()
                .ok()
                .and_then(|identity| state.renewal.due_at(identity, now))
        };
        let pause = due.map_or(pause, |due| due.since(now).min(pause));
        // Whether it ran out or was woken: the answer is to look.
        let _ = timeout(pause, self.refresh_wanted.notified()).await;
    }

    /// Waits until somebody wants a refresh.
    pub async fn refresh_is_wanted(&self) {
        self.refresh_wanted.notified().await;
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

    /// The weight of its capacity, where it tells that itself: a gateway does.
    pub fn own_weight(&self) -> Option<f64> {
        self.state().standing.own_weight
    }

    /// How it stands, as a balancer sees it. An API key has no windows; where it is `excluded` it may not be chosen.
    pub fn candidate(&self, now: Timestamp, excluded: bool) -> Candidate {
        let state = self.state_at(now);
        let mut candidate = state.standing.candidate(state.caps, now);
        candidate.in_flight = self.in_flight.load(Ordering::Relaxed);
        candidate.usable &= !excluded && state.can_serve(now);
        candidate
    }

    /// Whether a request can be sent with it, at once or after a refresh. What is used up is not looked at.
    pub fn can_serve(&self, now: Timestamp) -> bool {
        self.state().can_serve(now)
    }

    /// Whether it has no room: upstream refuses it, or its use reached a cap.
    pub fn is_used_up(&self, now: Timestamp) -> bool {
        let state = self.state_at(now);
        !state.standing.candidate(state.caps, now).usable
    }

    /// Whether upstream refused its token of late.
    pub fn is_suspect(&self, now: Timestamp) -> bool {
        self.state_at(now).is_suspect(now)
    }

    /// Waits until it turns unusable: upstream refuses it, its use reaches a cap, or its file goes.
    pub fn turns_unusable(&self) -> Notified<'_> {
        // From here on, whether it is polled yet or not: nothing that happens in between is missed.
        self.unusable.notified()
    }

    /// When it will be usable again, where it is loaded and paused: by a refusal or by its caps.
    pub fn usable_again_at(&self, now: Timestamp) -> Option<Timestamp> {
        let state = self.state_at(now);
        state.identity.as_ref().ok()?;
        state.standing.usable_again_at(state.caps, now)
    }

    /// The start of its week, in Unix seconds.
    pub fn week_start_unix(&self, now: Timestamp) -> Option<u64> {
        self.state().standing.windows.week_start_unix(now)
    }

    /// The used parts of its windows, in percent: 5-hour and weekly.
    pub fn used(&self, now: Timestamp) -> (f64, f64) {
        let windows = self.state().standing.windows;
        (
            windows.used(Span::FiveHour, now),
            windows.used(Span::Weekly, now),
        )
    }

    /// Takes in what a response to `shown` says. What a gateway's says is of one of its credentials, not of it.
    pub fn observe(&self, shown: &Identity, reading: &Reading, now: Timestamp) {
        if self.gateway().is_none() && !reading.is_empty() {
            self.change_standing(shown, now, |standing| {
                standing.windows.observe(reading, now);
                standing.observations += 1;
            });
        }
    }

    fn change_standing(
        &self,
        shown: &Identity,
        now: Timestamp,
        change: impl FnOnce(&mut Standing),
    ) {
        let mut state = self.state_at(now);
        if !state.is_of(shown) {
            // It is about the account that the file had before.
            return;
        }
        let usable = |state: &State| state.standing.candidate(state.caps, now).usable;
        let before = usable(&state);
        change(&mut state.standing);
        let turned = before && !usable(&state);
        drop(state);
        if turned {
            self.unusable.notify_waiters();
        }
    }

    /// Takes in a refusal of `shown` by 429 until that time. A time that is past, or not told, counts as five minutes.
    pub fn refused(
        &self,
        shown: &Identity,
        until: Option<Timestamp>,
        window: Option<Span>,
        now: Timestamp,
    ) -> Timestamp {
        let until = until
            .filter(|until| *until > now)
            .unwrap_or_else(|| now.after(REFUSED_FOR));
        let until = until.min(now.after(REFUSED_MAX));
        let mut state = self.state_at(now);
        if !state.is_of(shown) {
            return until;
        }
        state.standing.limited_until = Some(until);
        state.standing.limited_by = window;
        drop(state);
        self.unusable.notify_waiters();
        until
    }

    /// Takes in that upstream refused the token that it was shown.
    pub fn token_refused(&self, shown: &Identity, now: Timestamp) {
        let mut state = self.state();
        // A late answer to an old token says nothing about the new one.
        if state
            .identity
            .as_ref()
            .is_ok_and(|known| known.authorization == shown.authorization)
        {
            state.suspect_until = Some(now.after(TOKEN_REFUSED_FOR));
        }
    }

    /// Waits until a poll is due: it is one at start, and one an interval while there is traffic. Answers what to ask
    /// with. The poll has begun then: traffic from now on asks for the next.
    pub async fn poll_is_due(&self) -> (Arc<Identity>, PollBegun) {
        loop {
            let now = Timestamp::now();
            let due = {
                let state = self.state_at(now);
                let standing = &state.standing;
                // One that is used up until nobody knows when has no traffic: only asking tells that it has room again.
                let is_stuck = !standing.candidate(state.caps, now).usable
                    && standing.usable_again_at(state.caps, now).is_none();
                let traffic = is_stuck || self.traffic.load(Ordering::Relaxed);
                let polled = state.identity.as_ref().ok().filter(|identity| {
                    identity.kind != IdentityKind::ApiKey
                        && !state.renewal.is_expired(identity, now)
                });
                let due =
                    polled.and_then(|_| state.polling.due_at(traffic, state.poll_interval, now));
                match (due, polled) {
                    (Some(due), Some(identity)) if due <= now => {
                        return (Arc::clone(identity), self.poll_begins_in(&state));
                    }
                    (due, _) => due,
                }
            };
            match due {
                Some(due) => drop(timeout(due.since(now), self.poll_wanted.notified()).await),
                None => self.poll_wanted.notified().await,
            }
        }
    }

    /// A poll begins: traffic from now on asks for the next.
    pub fn poll_begins(&self) -> PollBegun {
        self.poll_begins_in(&self.state())
    }

    fn poll_begins_in(&self, state: &State) -> PollBegun {
        self.traffic.store(false, Ordering::Relaxed);
        PollBegun {
            observations: state.standing.observations,
            account: state.accounts,
        }
    }

    /// Takes in what a poll with `shown` told: the windows, which replace what is known unless a response told something meanwhile,
    /// and the plan or the weight.
    pub fn polled(
        &self,
        begun: PollBegun,
        shown: &Identity,
        reading: &Reading,
        plan: Option<&str>,
        own_weight: Option<f64>,
        now: Timestamp,
    ) {
        if self.state().accounts != begun.account {
            return;
        }
        self.change_standing(shown, now, |standing| {
            if standing.observations == begun.observations {
                standing.windows.replace(reading);
            } else {
                standing.windows.observe(reading, now);
            }
        });
        let mut state = self.state();
        state.polling.told(now);
        let standing = &mut state.standing;
        let changed =
            plan.is_some_and(|plan| plan != standing.plan) || own_weight != standing.own_weight;
        if let Some(plan) = plan {
            plan.clone_into(&mut standing.plan);
        }
        standing.own_weight = own_weight;
        if changed {
            self.plan_version.fetch_add(1, Ordering::Release);
        }
    }

    /// A poll told nothing.
    pub fn poll_failed(
        &self,
        begun: PollBegun,
        reason: String,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) {
        let mut state = self.state();
        if state.accounts == begun.account {
            state.polling.failed(reason, retry_after, now);
        }
    }

    /// Takes in a failed attempt.
    pub fn failed(&self, now: Timestamp) {
        self.state().standing.failed(now);
    }

    /// Takes in how long a response's head took.
    pub fn answered(&self, latency: Duration) {
        self.state().standing.answered(latency);
    }

    /// Counts a request under way, for as long as the guard lives.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if !self.traffic.swap(true, Ordering::Relaxed) {
            self.poll_wanted.notify_one();
        }
        InFlight {
            credential: Arc::clone(self),
        }
    }

    /// The state, as it is at `now`.
    fn state_at(&self, now: Timestamp) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.clock_shows(now);
        state
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
