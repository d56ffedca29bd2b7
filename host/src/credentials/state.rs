//! What is known about a credential, and how events change it.
//!
//! Owns the transitions; every one takes the time as an argument. Does not know about locks, files
//! or waiting. Invariant: usage and polls are about the account of the last identity that was
//! loaded; another account starts with new ones.

mod account_usage;
mod entries;
mod poll_schedule;
mod recent_requests;
mod refresh_schedule;
mod unsent_attempts;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::auth_file::AuthFileError;
use super::identity::{CredentialKind, SecretFingerprint, UpstreamIdentity};
use super::refresh::RefreshOutcome;
use crate::config::WindowCaps;
use crate::values::clock::Timestamp;
use crate::values::credential::candidate::BalancerCandidate;
use crate::values::credential::windows::{WindowKind, WindowReading};
use account_usage::{AccountUsage, rate_limit_end};
use entries::{LoginEntries, LoginEntry};
use poll_schedule::{PollSchedule, back_off};
use recent_requests::RecentRequests;
use refresh_schedule::RefreshSchedule;
use unsent_attempts::UnsentAttempts;

pub(super) use entries::EntrySignals;
pub(super) use poll_schedule::RequestsSincePoll;

/// How often a file is read again for requests that find its credential unavailable.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// How long a credential whose token upstream rejected is avoided, unless its file gets another
/// token.
const TOKEN_REJECTED_PAUSE: Duration = Duration::from_secs(60);

/// Threads see slightly different times; a step back by more than this means that the clock was set
/// back.
const CLOCK_STEP_MIN: Duration = Duration::from_secs(1);

/// Why a credential is not loaded. The operator must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialLoadError {
    /// Its file was not read yet.
    #[error("not read yet")]
    NotRead,
    /// Its auth.json cannot be used.
    #[error(transparent)]
    AuthFile(#[from] AuthFileError),
    /// The token of another gateway has characters that no header field may hold.
    #[error("token: expected visible ASCII characters, found others")]
    ExternalToken,
    /// The other gateway is not connected, and cannot be reached otherwise.
    #[error("reverse connection not established")]
    NotConnected,
}

/// The SHA-256 of a file's text.
pub(super) type AuthFileDigest = [u8; 32];

/// What a credential's source contained when it was read.
pub(super) struct LoadedSource {
    pub(super) identity: Result<Arc<UpstreamIdentity>, CredentialLoadError>,
    /// `None` if there is no text.
    pub(super) digest: Option<AuthFileDigest>,
}

/// What a change means for those that watch the credential.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct StateChange {
    /// Balancers compute the credential's weight again.
    pub(super) plan_changed: bool,
    /// The entries that became unusable: requests that wait for a response with them can be sent
    /// with another credential.
    pub(super) became_unusable: Vec<Arc<EntrySignals>>,
}

/// What a request can present to upstream.
pub(super) enum IdentityAvailability {
    Ready(Arc<UpstreamIdentity>),
    /// A refresh that is due or running can give an identity.
    AwaitingRefresh,
    Unavailable,
}

/// A poll that has begun, and what was known then.
#[derive(Debug)]
pub struct StartedPoll {
    presented: Arc<UpstreamIdentity>,
    observations: u64,
    account_generation: u64,
}

impl StartedPoll {
    /// Returns what the poll presents to upstream.
    pub fn presented(&self) -> &UpstreamIdentity {
        &self.presented
    }
}

/// What a poll reports.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UsageReport {
    /// The rate-limit windows that the report names.
    pub reading: WindowReading,
    /// The plan, if it is named.
    pub plan: Option<String>,
    /// The weight of the capacity, if the account reports one: another gateway does.
    pub own_weight: Option<f64>,
}

/// Why a poll has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollFailure {
    /// It was not sent: there is no connection. Another entry of the login has another route.
    Unreachable {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// The other gateway rejects the token: no later poll can succeed until something changes.
    Rejected {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// A later poll can succeed.
    Failed {
        /// A sentence for the operator, without any secret.
        reason: String,
        /// How long to wait before the next one.
        retry_after: Option<Duration>,
    },
}

/// What is known about a login, and about the credentials that use it.
pub(super) struct CredentialState {
    entries: LoginEntries,
    /// The last identity, or why there is none.
    identity: Result<Arc<UpstreamIdentity>, CredentialLoadError>,
    /// The account that `usage` and `polls` are about: that of the last identity.
    account_id: Option<HeaderValue>,
    /// Counts the changes of `account_id`, so that a poll of an earlier account is recognised.
    account_generation: u64,
    /// The digest of the text that `identity` was read from.
    digest: Option<AuthFileDigest>,
    read_at: Option<Timestamp>,
    /// Upstream rejected the token: the credential is avoided until then.
    rejected_until: Option<Timestamp>,
    /// The latest time that was seen, to notice a clock that is set back.
    seen_at: Timestamp,
    usage: AccountUsage,
    polls: PollSchedule,
    refreshes: RefreshSchedule,
}

impl Default for CredentialState {
    fn default() -> Self {
        Self {
            entries: LoginEntries::default(),
            identity: Err(CredentialLoadError::NotRead),
            account_id: None,
            account_generation: 0,
            digest: None,
            read_at: None,
            rejected_until: None,
            seen_at: Timestamp::default(),
            usage: AccountUsage::default(),
            polls: PollSchedule::default(),
            refreshes: RefreshSchedule::new(),
        }
    }
}

impl CredentialState {
    /// Adds an entry, or replaces its settings.
    pub(super) fn set_entry(
        &mut self,
        entry: &Arc<EntrySignals>,
        caps: WindowCaps,
        poll_interval: Option<Duration>,
    ) {
        self.entries.set(entry, caps, poll_interval);
    }

    pub(super) fn remove_entry(&mut self, entry: &Arc<EntrySignals>) {
        self.entries.remove(entry);
    }

    /// Returns the signals of all entries.
    pub(super) fn signals(&self) -> Vec<Arc<EntrySignals>> {
        self.entries.signals()
    }

    pub(super) fn caps_of(&self, entry: &Arc<EntrySignals>) -> WindowCaps {
        self.entries.of(entry).caps
    }

    /// Notices a clock that was set back: pauses must not get longer by that. Windows end when
    /// upstream says.
    pub(super) fn advance_clock(&mut self, now: Timestamp) {
        let step_back = self.seen_at.since(now);
        if step_back >= CLOCK_STEP_MIN {
            self.usage.set_clock_back(step_back);
            self.rejected_until = self.rejected_until.map(|until| until.before(step_back));
        }
        if step_back >= CLOCK_STEP_MIN || now > self.seen_at {
            self.seen_at = now;
        }
    }

    pub(super) fn identity(&self) -> Result<&Arc<UpstreamIdentity>, &CredentialLoadError> {
        self.identity.as_ref()
    }

    pub(super) fn usage(&self) -> &AccountUsage {
        &self.usage
    }

    pub(super) fn polls(&self) -> &PollSchedule {
        &self.polls
    }

    pub(super) fn refreshes(&self) -> &RefreshSchedule {
        &self.refreshes
    }
}

impl CredentialState {
    /// Whether `loaded` is what is known already.
    pub(super) fn is_current(&self, loaded: &LoadedSource) -> bool {
        match (&loaded.identity, &self.identity) {
            (Ok(_), Ok(_)) => loaded.digest == self.digest,
            (Err(new), Err(known)) => new == known,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
    }

    /// Replaces what is known about the source.
    pub(super) fn apply_load(&mut self, loaded: LoadedSource, now: Timestamp) -> StateChange {
        self.read_at = Some(now);
        self.digest = loaded.digest;
        let plan_changed = match &loaded.identity {
            Ok(identity) => self.apply_identity(identity, now),
            Err(_) => false,
        };
        let became_unusable = if self.identity.is_ok() && loaded.identity.is_err() {
            self.entries.signals()
        } else {
            Vec::new()
        };
        self.identity = loaded.identity;
        StateChange {
            plan_changed,
            became_unusable,
        }
    }

    /// Updates what depends on the identity, before it replaces the known one. Returns whether the
    /// plan changed.
    fn apply_identity(&mut self, new: &Arc<UpstreamIdentity>, now: Timestamp) -> bool {
        // Also after a logout: a new login does not inherit the failures of the tokens before it.
        let has_known_token = matches!(&self.identity, Ok(known) if known.has_token_of(new));
        if !has_known_token {
            self.rejected_until = None;
            self.refreshes.file_changed(new, now);
            self.forget_unsent_refreshes();
        }
        let is_other_account = self.account_id.is_some() && !self.is_about(new);
        if is_other_account {
            self.usage = AccountUsage::default();
            self.polls = PollSchedule::default();
            for entry in self.entries.iter_mut() {
                entry.requests = RecentRequests::default();
                entry.unsent_polls = UnsentAttempts::default();
            }
            self.account_generation += 1;
        }
        self.account_id = new.account_id().cloned();
        // A poll knows the plan better than the tokens, which were issued earlier.
        let plan_changed = match new.plan() {
            Some(plan) if self.polls.succeeded_at().is_none() => self.usage.set_plan(plan),
            Some(_) | None => false,
        };
        is_other_account || plan_changed
    }

    /// Whether `usage` is about the account that `presented` belongs to.
    fn is_about(&self, presented: &UpstreamIdentity) -> bool {
        self.account_id.as_ref() == presented.account_id()
    }

    /// Returns `true` to one caller per interval if the file should be read again for requests: the
    /// credential is unavailable or its token was rejected. That caller reads the file.
    pub(super) fn claim_reload(&mut self, now: Timestamp) -> bool {
        let is_due = self
            .read_at
            .is_none_or(|read_at| read_at > now || now.since(read_at) >= RELOAD_INTERVAL);
        let is_wanted = self.identity.is_err() || self.is_token_rejected(now);
        if is_due && is_wanted {
            self.read_at = Some(now);
        }
        is_due && is_wanted
    }
}

impl CredentialState {
    pub(super) fn availability(&self, now: Timestamp) -> IdentityAvailability {
        match &self.identity {
            Ok(identity) if !self.refreshes.is_expired(identity, now) => {
                IdentityAvailability::Ready(Arc::clone(identity))
            }
            Ok(identity) if self.refresh_may_help(identity, now) => {
                IdentityAvailability::AwaitingRefresh
            }
            Ok(_) | Err(_) => IdentityAvailability::Unavailable,
        }
    }

    /// Returns what can be presented in place of `rejected`, which upstream rejected.
    pub(super) fn replace(
        &mut self,
        rejected: &UpstreamIdentity,
        now: Timestamp,
    ) -> IdentityAvailability {
        let Ok(known) = &self.identity else {
            return IdentityAvailability::Unavailable;
        };
        if !known.has_token_of(rejected) {
            return IdentityAvailability::Ready(Arc::clone(known));
        }
        self.refreshes.reject(known);
        if self.refresh_may_help(known, now) {
            IdentityAvailability::AwaitingRefresh
        } else {
            IdentityAvailability::Unavailable
        }
    }

    /// Whether a request can be sent with it, at once or after a refresh.
    pub(super) fn is_presentable(&self, now: Timestamp) -> bool {
        match self.availability(now) {
            IdentityAvailability::Ready(_) | IdentityAvailability::AwaitingRefresh => true,
            IdentityAvailability::Unavailable => false,
        }
    }

    pub(super) fn is_token_rejected(&self, now: Timestamp) -> bool {
        self.rejected_until.is_some_and(|until| until > now)
    }

    pub(super) fn reject_token(&mut self, presented: &UpstreamIdentity, now: Timestamp) {
        // A late response to an old token says nothing about the new one.
        if matches!(&self.identity, Ok(known) if known.has_token_of(presented)) {
            self.rejected_until = Some(now.after(TOKEN_REJECTED_PAUSE));
        }
    }

    /// Whether a refresh that is running, or due for any entry, can give better tokens than those
    /// of `identity`.
    fn refresh_may_help(&self, identity: &UpstreamIdentity, now: Timestamp) -> bool {
        let is_due = |entry| {
            self.refresh_due_for(entry, identity, now)
                .is_some_and(|due| due <= now)
        };
        self.refreshes.is_running() || self.entries.iter().any(is_due)
    }

    /// Returns when `entry` refreshes the tokens of `identity`; `None` if not before the file
    /// changes.
    fn refresh_due_for(
        &self,
        entry: &LoginEntry,
        identity: &UpstreamIdentity,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let due = self.refreshes.due_at(identity, now)?;
        Some(entry.unsent_refreshes.delay(due, now))
    }

    fn forget_unsent_refreshes(&mut self) {
        for entry in self.entries.iter_mut() {
            entry.unsent_refreshes = UnsentAttempts::default();
        }
    }

    /// Starts a refresh if one is due for an entry, and returns which token it refreshes.
    pub(super) fn start_refresh(
        &mut self,
        entry: &Arc<EntrySignals>,
        now: Timestamp,
    ) -> Option<SecretFingerprint> {
        let due = self.refresh_due_at(entry, now)?;
        if due > now {
            return None;
        }
        let identity = self.identity.as_ref().ok()?;
        self.refreshes.start();
        Some(identity.fingerprint())
    }

    pub(super) fn finish_refresh(
        &mut self,
        entry: &Arc<EntrySignals>,
        token: &SecretFingerprint,
        outcome: &RefreshOutcome,
        now: Timestamp,
    ) {
        let found = self.identity.as_deref().ok();
        self.refreshes.finish(token, outcome, found, now);
        match outcome {
            RefreshOutcome::Unreachable { reason } => {
                let unsent = &mut self.entries.of_mut(entry).unsent_refreshes;
                unsent.add(reason, self.refreshes.back_off(unsent.count()), now);
            }
            RefreshOutcome::Refreshed { .. } | RefreshOutcome::Newer => {
                self.forget_unsent_refreshes();
            }
            RefreshOutcome::Failed { .. } | RefreshOutcome::LoginNeeded { .. } => {
                self.entries.of_mut(entry).unsent_refreshes = UnsentAttempts::default();
            }
            RefreshOutcome::NotWritable { .. } | RefreshOutcome::Busy => {}
        }
    }

    /// Returns why the last refresh of an entry, or of its login, failed, if another one follows.
    pub(super) fn refresh_failure(&self, entry: &Arc<EntrySignals>) -> Option<&str> {
        let unsent = self.entries.of(entry).unsent_refreshes.reason();
        unsent.or_else(|| self.refreshes.failure())
    }

    pub(super) fn refresh_due_at(
        &self,
        entry: &Arc<EntrySignals>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let identity = self.identity.as_ref().ok()?;
        self.refresh_due_for(self.entries.of(entry), identity, now)
    }

    /// Whether requests wait for a refresh: the token is of no use as it is.
    pub(super) fn is_refresh_urgent(&self, now: Timestamp) -> bool {
        self.identity.as_ref().is_ok_and(|identity| {
            self.refreshes.is_expired(identity, now) || self.refreshes.is_rejected(identity)
        })
    }
}

impl CredentialState {
    /// Returns what a balancer sees of an entry, except what concerns one request.
    pub(super) fn candidate(&self, entry: &Arc<EntrySignals>, now: Timestamp) -> BalancerCandidate {
        let mut candidate = self.usage.candidate(self.caps_of(entry), now);
        candidate.usable &= self.is_presentable(now);
        let requests = &self.entries.of(entry).requests;
        candidate.recent_failures = requests.failures(now);
        candidate.recent_latency_ms = requests.latency_ms();
        candidate
    }

    /// Whether upstream refuses an entry, or its use reached a cap.
    pub(super) fn is_used_up(&self, entry: &Arc<EntrySignals>, now: Timestamp) -> bool {
        is_used_up(&self.usage, self.caps_of(entry), now)
    }

    /// Returns when an entry is usable again, if it is loaded and rate-limited or over a cap.
    pub(super) fn usable_again_at(
        &self,
        entry: &Arc<EntrySignals>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        self.identity.as_ref().ok()?;
        self.usage.usable_again_at(self.caps_of(entry), now)
    }

    /// Changes what is known about the use of the account. Returns the entries that are used up
    /// since then.
    fn change_usage(
        &mut self,
        now: Timestamp,
        change: impl FnOnce(&mut AccountUsage),
    ) -> Vec<Arc<EntrySignals>> {
        for entry in self.entries.iter_mut() {
            entry.was_used_up = is_used_up(&self.usage, entry.caps, now);
        }
        change(&mut self.usage);
        let usage = &self.usage;
        self.entries
            .iter_mut()
            .filter(|entry| !entry.was_used_up && is_used_up(usage, entry.caps, now))
            .map(|entry| Arc::clone(&entry.signals))
            .collect()
    }

    pub(super) fn observe(
        &mut self,
        presented: &UpstreamIdentity,
        reading: &WindowReading,
        now: Timestamp,
    ) -> StateChange {
        if !self.is_about(presented) {
            return StateChange::default();
        }
        let became_unusable = self.change_usage(now, |usage| usage.observe(reading, now));
        StateChange {
            plan_changed: false,
            became_unusable,
        }
    }

    /// Records a refusal of `presented` by 429. Returns when it ends.
    pub(super) fn limit(
        &mut self,
        presented: &UpstreamIdentity,
        until: Option<Timestamp>,
        window: Option<WindowKind>,
        now: Timestamp,
    ) -> (Timestamp, StateChange) {
        let until = rate_limit_end(until, now);
        if !self.is_about(presented) {
            return (until, StateChange::default());
        }
        self.usage.limit(until, window);
        let change = StateChange {
            plan_changed: false,
            became_unusable: self.entries.signals(),
        };
        (until, change)
    }

    pub(super) fn record_failure(&mut self, entry: &Arc<EntrySignals>, now: Timestamp) {
        self.entries.of_mut(entry).requests.record_failure(now);
    }

    /// Records that upstream responded to an entry.
    pub(super) fn record_response(&mut self, entry: &Arc<EntrySignals>, latency: Duration) {
        let entry = self.entries.of_mut(entry);
        entry.connect_failure = None;
        entry.requests.record_latency(latency);
    }

    pub(super) fn record_unreachable(&mut self, entry: &Arc<EntrySignals>, reason: String) {
        self.entries.of_mut(entry).connect_failure = Some(reason);
    }

    pub(super) fn connect_failure(&self, entry: &Arc<EntrySignals>) -> Option<&str> {
        self.entries.of(entry).connect_failure.as_deref()
    }

    /// Records why there is no reverse connection of an entry; `None` if there is one.
    pub(super) fn record_reversed(&mut self, entry: &Arc<EntrySignals>, failure: Option<String>) {
        self.entries.of_mut(entry).reverse_failure = failure;
    }

    pub(super) fn reverse_failure(&self, entry: &Arc<EntrySignals>) -> Option<&str> {
        self.entries.of(entry).reverse_failure.as_deref()
    }

    /// Returns when the next poll is due; `None` if not before something changes.
    pub(super) fn poll_due_at(
        &self,
        entry: &Arc<EntrySignals>,
        requests: RequestsSincePoll,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let interval = self.entries.of(entry).poll_interval?;
        let identity = self.identity.as_ref().ok()?;
        if identity.kind() == CredentialKind::ApiKey || self.refreshes.is_expired(identity, now) {
            return None;
        }
        // A credential that is used up until an unknown time gets no requests: only a poll shows
        // that it has room again.
        // The reset of another gateway is the mean of its accounts': it may have room before.
        let is_reset_known = identity.kind() != CredentialKind::External
            && self.usable_again_at(entry, now).is_some();
        let is_stuck = self.is_used_up(entry, now) && !is_reset_known;
        let requests = if is_stuck {
            RequestsSincePoll::Some
        } else {
            requests
        };
        let due = self.polls.due_at(requests, interval, now)?;
        Some(self.entries.of(entry).unsent_polls.delay(due, now))
    }

    /// Makes the next poll due at once.
    pub(super) fn poll_again(&mut self) {
        self.polls.repeat();
    }

    /// Lets polls begin again that were stopped, because the configuration was applied again.
    pub(super) fn resume_polls(&mut self) {
        if self.polls.is_stopped() {
            self.polls.repeat();
        }
    }

    /// Returns why the last poll of an entry, or of its login, failed, if it did.
    pub(super) fn poll_failure(&self, entry: &Arc<EntrySignals>) -> Option<&str> {
        let unsent = self.entries.of(entry).unsent_polls.reason();
        unsent.or_else(|| self.polls.failure())
    }

    /// Starts a poll, if the credential is loaded.
    pub(super) fn start_poll(&mut self, now: Timestamp) -> Option<StartedPoll> {
        let presented = Arc::clone(self.identity.as_ref().ok()?);
        self.polls.start(now);
        Some(StartedPoll {
            presented,
            observations: self.usage.observations(),
            account_generation: self.account_generation,
        })
    }

    pub(super) fn record_poll(
        &mut self,
        entry: &Arc<EntrySignals>,
        poll: &StartedPoll,
        report: &UsageReport,
        now: Timestamp,
    ) -> StateChange {
        if self.account_generation != poll.account_generation {
            return StateChange::default();
        }
        let became_unusable = if self.is_about(&poll.presented) {
            self.change_usage(now, |usage| {
                usage.apply_poll(&report.reading, poll.observations, now);
            })
        } else {
            Vec::new()
        };
        self.polls.succeed(now);
        self.entries.of_mut(entry).connect_failure = None;
        for entry in self.entries.iter_mut() {
            entry.unsent_polls = UnsentAttempts::default();
        }
        let plan = report.plan.as_deref();
        let plan_changed = plan.is_some_and(|plan| self.usage.set_plan(plan));
        let weight_changed = self.usage.set_own_weight(report.own_weight);
        StateChange {
            plan_changed: plan_changed || weight_changed,
            became_unusable,
        }
    }

    pub(super) fn record_poll_failure(
        &mut self,
        entry: &Arc<EntrySignals>,
        poll: &StartedPoll,
        failure: PollFailure,
        now: Timestamp,
    ) {
        if self.account_generation != poll.account_generation {
            return;
        }
        let unsent = &mut self.entries.of_mut(entry).unsent_polls;
        match failure {
            PollFailure::Unreachable { reason } => {
                unsent.add(&reason, back_off(unsent.count()), now);
                self.polls.abandon();
                return;
            }
            PollFailure::Rejected { reason } => self.polls.stop(reason, now),
            PollFailure::Failed {
                reason,
                retry_after,
            } => self.polls.fail(reason, retry_after, now),
        }
        *unsent = UnsentAttempts::default();
    }
}

fn is_used_up(usage: &AccountUsage, caps: WindowCaps, now: Timestamp) -> bool {
    !usage.candidate(caps, now).usable
}
