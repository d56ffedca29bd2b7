//! When a credential's tokens are refreshed next, given how earlier refreshes ended.
//!
//! Owns the times and the reasons. Does not know how a refresh is done. Invariant: while one runs,
//! none is due.

use std::time::Duration;

use uuid::Uuid;

use crate::credentials::identity::{SecretFingerprint, UpstreamIdentity};
use crate::credentials::refresh::RefreshOutcome;
use crate::values::clock::Timestamp;

/// Tokens with less than this left are refreshed. Codex does the same, without holding the file's
/// lock while it asks.
const EXPIRY_LEAD: Duration = Duration::from_secs(5 * 60);

/// How much earlier than Codex the gateway refreshes: if Codex uses the same file, the new tokens
/// are there before it looks. Two processes that present one refresh token at the same moment lose
/// the login, and no lock would help.
const AHEAD_OF_CODEX: Duration = Duration::from_secs(45);

/// The most that a credential is refreshed earlier at random: credentials that were created
/// together should not all be refreshed together.
const JITTER_MAX: Duration = Duration::from_secs(50);

/// The age at which tokens without an expiry are refreshed, as Codex does.
const AGE_MAX: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// The least time between a refresh and another one because upstream rejects the new token.
const REJECTED_PAUSE: Duration = Duration::from_secs(60);

/// The pauses after consecutive failures; the last one repeats.
const BACK_OFF: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(300),
];

/// The longest pause that a token endpoint's `Retry-After` can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// The pause while another process holds the lock.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// What is known about a credential's refreshes.
#[derive(Debug)]
pub(crate) struct RefreshSchedule {
    /// Chosen once, for the life of the process.
    jitter: Duration,
    is_running: bool,
    /// The access token that upstream rejected.
    rejected: Option<SecretFingerprint>,
    /// Failures since the last success.
    failures: usize,
    /// No refresh before this.
    paused_until: Option<Timestamp>,
    issued: Option<IssuedToken>,
    obstacle: Option<RefreshObstacle>,
}

/// The access token that the last refresh issued, to this process or to another
/// process that uses the same file.
#[derive(Debug)]
struct IssuedToken {
    token: SecretFingerprint,
    expires_at: Option<Timestamp>,
    at: Timestamp,
}

impl IssuedToken {
    fn of(identity: &UpstreamIdentity, now: Timestamp) -> Self {
        Self {
            token: identity.fingerprint(),
            expires_at: identity.expires_at(),
            at: now,
        }
    }
}

/// Why the last refresh did not give new tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RefreshObstacle {
    /// The operator must log in again, as long as the file has this access token.
    LoginNeeded {
        token: SecretFingerprint,
        reason: String,
    },
    /// The attempt failed; another one follows.
    Failed { reason: String },
}

impl RefreshSchedule {
    pub(crate) fn new() -> Self {
        let random = u64::from(Uuid::new_v4().as_fields().0);
        let jitter = Duration::from_millis(random % (JITTER_MAX.as_millis() as u64 + 1));
        Self {
            jitter,
            is_running: false,
            rejected: None,
            failures: 0,
            paused_until: None,
            issued: None,
            obstacle: None,
        }
    }

    /// Returns when the tokens of `identity` are to be refreshed; `None` if not before the file
    /// changes.
    pub(crate) fn due_at(&self, identity: &UpstreamIdentity, now: Timestamp) -> Option<Timestamp> {
        if !identity.is_refreshable() || self.is_running || self.login_reason(identity).is_some() {
            return None;
        }
        let by_expiry = identity
            .expires_at()
            .map(|expires_at| self.due_by_expiry(identity, expires_at));
        let by_age = identity
            .refreshed_at()
            .map_or(Timestamp::default(), |refreshed| refreshed.after(AGE_MAX));
        let by_rejection = self
            .is_rejected(identity)
            .then(|| self.due_by_rejection(identity));
        let due = [Some(by_age), by_expiry, by_rejection]
            .into_iter()
            .flatten()
            .min()?;
        // A pause that ends later than any that was ever set: the clock was set back.
        let paused_until = self
            .paused_until
            .filter(|until| until.since(now) <= RETRY_AFTER_MAX);
        Some(due.max(paused_until.unwrap_or_default()))
    }

    /// A token that this gateway was issued is used for at least half its life, however short that
    /// is: with a clock that is ahead, or an endpoint that issues tokens for minutes, refreshes
    /// would follow each other at once.
    fn due_by_expiry(&self, identity: &UpstreamIdentity, expires_at: Timestamp) -> Timestamp {
        let due = expires_at.before(EXPIRY_LEAD + AHEAD_OF_CODEX + self.jitter);
        let Some(issued_at) = self.issued_at(identity) else {
            return due;
        };
        let life = expires_at.since(issued_at);
        if life.is_zero() {
            return due.max(issued_at.after(AGE_MAX));
        }
        due.max(issued_at.after(life / 2))
    }

    fn due_by_rejection(&self, identity: &UpstreamIdentity) -> Timestamp {
        self.issued_at(identity)
            .map_or(Timestamp::default(), |issued| issued.after(REJECTED_PAUSE))
    }

    /// Whether the access token of `identity` has expired, as far as the clock can tell: a token
    /// that had expired when it was issued shows that the clock cannot.
    pub(crate) fn is_expired(&self, identity: &UpstreamIdentity, now: Timestamp) -> bool {
        let expired_when_issued = self
            .issued_at(identity)
            .is_some_and(|issued_at| identity.is_expired(issued_at));
        identity.is_expired(now) && !expired_when_issued
    }

    /// Whether upstream rejected the access token of `identity`.
    pub(crate) fn is_rejected(&self, identity: &UpstreamIdentity) -> bool {
        self.rejected.as_ref() == Some(&identity.fingerprint())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    pub(crate) fn start(&mut self) {
        self.is_running = true;
    }

    /// Records that upstream rejected the access token of `identity`.
    pub(crate) fn reject(&mut self, identity: &UpstreamIdentity) {
        self.rejected = Some(identity.fingerprint());
    }

    /// Returns when the access token of `identity` was issued, if the last refresh issued it.
    fn issued_at(&self, identity: &UpstreamIdentity) -> Option<Timestamp> {
        self.issued
            .as_ref()
            .filter(|issued| issued.token == identity.fingerprint())
            .map(|issued| issued.at)
    }

    /// Records how the refresh of `token` ended. `found` is what the file contains now.
    pub(crate) fn finish(
        &mut self,
        token: &SecretFingerprint,
        outcome: &RefreshOutcome,
        found: Option<&UpstreamIdentity>,
        now: Timestamp,
    ) {
        self.is_running = false;
        match outcome {
            RefreshOutcome::Refreshed { token } => {
                // The file may have yet another token, which this refresh did not issue.
                if let Some(found) = found.filter(|found| found.fingerprint() == *token) {
                    self.issued = Some(IssuedToken::of(found, now));
                }
                self.clear_failures();
            }
            RefreshOutcome::Newer => self.clear_failures(),
            RefreshOutcome::LoginNeeded { reason } => {
                self.paused_until = None;
                self.fail(RefreshObstacle::LoginNeeded {
                    token: token.clone(),
                    reason: reason.clone(),
                });
            }
            RefreshOutcome::Failed {
                reason,
                retry_after,
            } => {
                let pause = match retry_after {
                    Some(pause) => (*pause).clamp(BACK_OFF[0], RETRY_AFTER_MAX),
                    None => self.back_off(self.failures),
                };
                self.pause_and_fail(pause, reason, now);
            }
            RefreshOutcome::NotWritable { reason } => {
                self.pause_and_fail(self.back_off(self.failures), reason, now);
            }
            // Nothing was spent: an entry with another route may try at once.
            RefreshOutcome::Unreachable { .. } => {}
            RefreshOutcome::Busy => self.paused_until = Some(now.after(BUSY_PAUSE)),
        }
    }

    fn pause_and_fail(&mut self, pause: Duration, reason: &str, now: Timestamp) {
        self.paused_until = Some(now.after(pause));
        let reason = reason.to_owned();
        self.fail(RefreshObstacle::Failed { reason });
    }

    fn fail(&mut self, obstacle: RefreshObstacle) {
        self.obstacle = Some(obstacle);
        self.failures += 1;
    }

    fn clear_failures(&mut self) {
        self.obstacle = None;
        self.paused_until = None;
        self.failures = 0;
    }

    /// Records that the file has another access token, that of `found`: the old one's failures no
    /// longer matter.
    pub(crate) fn file_changed(&mut self, found: &UpstreamIdentity, now: Timestamp) {
        // A token that expires later than the last issued one was issued to another process.
        let expires_later = self.issued.as_ref().is_some_and(|issued| {
            found
                .expires_at()
                .zip(issued.expires_at)
                .is_some_and(|(found, issued)| found >= issued)
        });
        if expires_later {
            self.issued = Some(IssuedToken::of(found, now));
        }
        self.rejected = None;
        self.clear_failures();
    }

    /// Returns the pause after `failures` consecutive failures and one more.
    pub(crate) fn back_off(&self, failures: usize) -> Duration {
        BACK_OFF[failures.min(BACK_OFF.len() - 1)] + self.jitter / 20
    }

    /// Returns why the operator must log in again, if they must.
    pub(crate) fn login_reason(&self, identity: &UpstreamIdentity) -> Option<&str> {
        match self.obstacle.as_ref()? {
            RefreshObstacle::LoginNeeded { token, reason } => {
                (*token == identity.fingerprint()).then_some(reason)
            }
            RefreshObstacle::Failed { .. } => None,
        }
    }

    /// Returns why the last attempt failed, if another one follows.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self.obstacle.as_ref()? {
            RefreshObstacle::LoginNeeded { .. } => None,
            RefreshObstacle::Failed { reason } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::auth_file::parse;

    const NOW: Timestamp = Timestamp(2_000_000_000_000);

    fn identity(life_s: i64, age_days: u64) -> UpstreamIdentity {
        use base64::Engine;
        let end = NOW.unix() as i64 + life_s;
        let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"exp": {end}}}"#));
        let made = NOW
            .before(Duration::from_secs(age_days * 24 * 60 * 60))
            .rfc3339();
        let file = format!(
            r#"{{"tokens": {{"access_token": "x.{claims}.y", "refresh_token": "r"}}, "last_refresh": "{made}"}}"#
        );
        parse(file.as_bytes()).expect("tokens")
    }

    impl RefreshSchedule {
        fn is_due(&self, identity: &UpstreamIdentity, now: Timestamp) -> bool {
            self.due_at(identity, now).is_some_and(|due| due <= now)
        }
    }

    fn refreshed(identity: &UpstreamIdentity) -> RefreshOutcome {
        RefreshOutcome::Refreshed {
            token: identity.fingerprint(),
        }
    }

    #[test]
    fn tokens_are_due_five_minutes_before_expiry_and_at_eight_days() {
        let schedule = RefreshSchedule::new();
        assert!(schedule.is_due(&identity(299, 0), NOW));
        assert!(!schedule.is_due(&identity(400, 0), NOW));
        assert!(!schedule.is_due(&identity(86_400, 7), NOW));
        assert!(schedule.is_due(&identity(86_400, 8), NOW));
    }

    #[test]
    fn tokens_without_a_date_are_due_and_tokens_without_a_refresh_token_never_are() {
        let parsed = |text: &str| parse(text.as_bytes()).expect("tokens");
        let schedule = RefreshSchedule::new();
        assert!(schedule.is_due(
            &parsed(r#"{"tokens": {"access_token": "a", "refresh_token": "r"}}"#),
            NOW
        ));
        assert!(!schedule.is_due(&parsed(r#"{"tokens": {"access_token": "a"}}"#), NOW));
        assert!(!schedule.is_due(&parsed(r#"{"OPENAI_API_KEY": "sk"}"#), NOW));
    }

    #[test]
    fn a_rejected_token_is_refreshed_but_not_twice_at_once() {
        let mut schedule = RefreshSchedule::new();
        let token = identity(86_400, 0);
        schedule.reject(&token);
        assert!(schedule.is_due(&token, NOW));
        schedule.finish(&token.fingerprint(), &refreshed(&token), Some(&token), NOW);
        assert!(!schedule.is_due(&token, NOW));
        assert!(schedule.is_due(&token, NOW.after(REJECTED_PAUSE)));
    }

    #[test]
    fn failures_back_off_and_a_needed_login_ends_the_attempts() {
        let mut schedule = RefreshSchedule::new();
        let token = identity(0, 0);
        let failed = RefreshOutcome::Failed {
            reason: "500".to_owned(),
            retry_after: None,
        };
        schedule.finish(&token.fingerprint(), &failed, None, NOW);
        assert!(
            !schedule.is_due(&token, NOW)
                && schedule.is_due(&token, NOW.after(Duration::from_secs(10)))
        );
        assert_eq!(schedule.failure(), Some("500"));
        let with_retry_after = RefreshOutcome::Failed {
            reason: "429".to_owned(),
            retry_after: Some(Duration::from_secs(90)),
        };
        schedule.finish(&token.fingerprint(), &with_retry_after, None, NOW);
        assert_eq!(
            schedule.due_at(&token, NOW),
            Some(NOW.after(Duration::from_secs(90)))
        );
        let login = RefreshOutcome::LoginNeeded {
            reason: "reused".to_owned(),
        };
        schedule.finish(&token.fingerprint(), &login, None, NOW);
        assert!(schedule.login_reason(&token).is_some() && schedule.due_at(&token, NOW).is_none());
        assert!(
            schedule.is_due(&identity(1, 0), NOW),
            "the file has other tokens"
        );
    }

    #[test]
    fn a_clock_that_is_ahead_or_set_back_causes_neither_endless_refreshes_nor_none() {
        let mut schedule = RefreshSchedule::new();
        let expired_when_issued = identity(-3600, 0);
        schedule.finish(
            &expired_when_issued.fingerprint(),
            &refreshed(&expired_when_issued),
            Some(&expired_when_issued),
            NOW,
        );
        assert!(
            !schedule.is_due(&expired_when_issued, NOW)
                && !schedule.is_expired(&expired_when_issued, NOW)
        );
        let short = identity(120, 0);
        assert!(
            schedule.is_due(&short, NOW),
            "a token that another process was issued"
        );
        schedule.finish(
            &expired_when_issued.fingerprint(),
            &refreshed(&short),
            Some(&short),
            NOW,
        );
        assert!(
            !schedule.is_due(&short, NOW)
                && schedule.is_due(&short, NOW.after(Duration::from_secs(61)))
        );
        let failed = RefreshOutcome::Failed {
            reason: "500".to_owned(),
            retry_after: None,
        };
        let mut schedule = RefreshSchedule::new();
        schedule.finish(&short.fingerprint(), &failed, None, NOW.after(AGE_MAX));
        assert!(
            schedule.is_due(&short, NOW),
            "the clock was set back by days"
        );
    }
}
