//! When a credential's tokens are due to be refreshed, and what came of it when they were.

use std::time::Duration;

use uuid::Uuid;

use super::auth_file::{Fingerprint, Identity};
use super::refresh::Outcome;
use crate::values::clock::Timestamp;

/// A token is refreshed when it has less than this left. Codex does so, too, and asks without holding the file's lock.
const LEAD: Duration = Duration::from_secs(5 * 60);

/// So much sooner: where Codex uses the same file, the new tokens are there before it looks for them. Two that ask with one
/// refresh token at the same moment lose the login, and no lock would help.
const AHEAD_OF_CODEX: Duration = Duration::from_secs(45);

/// And up to so much sooner, by chance: credentials that were made together are not refreshed together.
const JITTER: Duration = Duration::from_secs(50);

/// A token whose end nobody knows is refreshed at this age (as Codex does).
const AGE_MAX: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// Tokens that upstream refuses are refreshed no sooner than this after the last time.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// After failures, one after another; the last counts for all further ones.
const BACK_OFF: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(300),
];

/// A token endpoint that wants to be left alone for longer is asked again after this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// While another process holds the lock.
const BUSY_AGAIN: Duration = Duration::from_secs(1);

/// What is known of the refreshing of a credential.
#[derive(Debug)]
pub(super) struct Renewal {
    /// Of this credential, for as long as the process lives.
    jitter: Duration,
    running: bool,
    /// Upstream refused this access token.
    refused: Option<Fingerprint>,
    failures: usize,
    /// Not before.
    again_at: Option<Timestamp>,
    given: Option<Given>,
    obstacle: Option<Obstacle>,
}

/// What the last refresh gave, ours or that of another process with the same file.
#[derive(Debug)]
struct Given {
    /// The access token.
    token: Fingerprint,
    ends_at: Option<Timestamp>,
    at: Timestamp,
}

impl Given {
    fn now(identity: &Identity, now: Timestamp) -> Self {
        Self {
            token: identity.fingerprint(),
            ends_at: identity.expires_at,
            at: now,
        }
    }
}

/// What keeps tokens from being refreshed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Somebody must log in again, for the file has this token.
    Login { token: Fingerprint, reason: String },
    /// The last attempt failed.
    Failed(String),
}

impl Renewal {
    pub(super) fn new() -> Self {
        let chance = u64::from(Uuid::new_v4().as_fields().0);
        let jitter = Duration::from_millis(chance % (JITTER.as_millis() as u64 + 1));
        Self {
            jitter,
            running: false,
            refused: None,
            failures: 0,
            again_at: None,
            given: None,
            obstacle: None,
        }
    }

    /// When the tokens of `identity` are to be refreshed; none: not before the file changes.
    pub(super) fn due_at(&self, identity: &Identity, now: Timestamp) -> Option<Timestamp> {
        if !identity.refreshable || self.running || self.needs_login(identity) {
            return None;
        }
        let by_expiry = identity
            .expires_at
            .map(|end| self.due_by_expiry(identity, end));
        let by_age = identity
            .refreshed_at
            .map_or(Timestamp::default(), |made| made.after(AGE_MAX));
        let by_refusal = self.is_refused(identity).then(|| {
            self.given_at(identity)
                .map_or(Timestamp::default(), |at| at.after(REFUSED_AGAIN))
        });
        let due = [Some(by_age), by_expiry, by_refusal]
            .into_iter()
            .flatten()
            .min()?;
        // Further ahead than it was ever set: the clock was put back.
        let again_at = self.again_at.filter(|at| at.since(now) <= RETRY_AFTER_MAX);
        Some(due.max(again_at.unwrap_or_default()))
    }

    /// Tokens that we were given live half their life at least, however short it is: a clock that is ahead, or an
    /// endpoint that gives tokens for minutes, must not have us ask again and again.
    fn due_by_expiry(&self, identity: &Identity, end: Timestamp) -> Timestamp {
        let due = end.before(LEAD + AHEAD_OF_CODEX + self.jitter);
        let Some(given) = self.given_at(identity) else {
            return due;
        };
        let life = end.since(given);
        due.max(if life.is_zero() {
            given.after(AGE_MAX)
        } else {
            given.after(life / 2)
        })
    }

    /// Whether the access token of `identity` is of no use any more, as far as our clock can tell: one that had expired
    /// when we were given it shows that it cannot.
    pub(super) fn is_expired(&self, identity: &Identity, now: Timestamp) -> bool {
        identity.is_expired(now)
            && !self
                .given_at(identity)
                .is_some_and(|given| identity.is_expired(given))
    }

    pub(super) fn is_due(&self, identity: &Identity, now: Timestamp) -> bool {
        self.due_at(identity, now).is_some_and(|due| due <= now)
    }

    /// Whether waiting for a refresh can give better tokens than those of `identity`.
    pub(super) fn may_help(&self, identity: &Identity, now: Timestamp) -> bool {
        self.running || self.is_due(identity, now)
    }

    /// Whether upstream refused the access token of `identity`.
    pub(super) fn is_refused(&self, identity: &Identity) -> bool {
        self.refused.as_ref() == Some(&identity.fingerprint())
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    pub(super) fn begins(&mut self) {
        self.running = true;
    }

    /// Upstream refused the access token of `identity`.
    pub(super) fn refused(&mut self, identity: &Identity) {
        self.refused = Some(identity.fingerprint());
    }

    /// When the last refresh gave the access token of `identity`, where it did.
    fn given_at(&self, identity: &Identity) -> Option<Timestamp> {
        self.given
            .as_ref()
            .filter(|given| given.token == identity.fingerprint())
            .map(|given| given.at)
    }

    /// A refresh of `token` is over, and the file has `found`.
    pub(super) fn ended(
        &mut self,
        token: &Fingerprint,
        outcome: &Outcome,
        found: Option<&Identity>,
        now: Timestamp,
    ) {
        self.running = false;
        let (obstacle, again_at) = match outcome {
            Outcome::Refreshed { token } => {
                self.failures = 0;
                // What stands there may be another's already: then it was not given to us.
                let given = found.filter(|found| found.fingerprint() == *token);
                self.given = given
                    .map(|given| Given::now(given, now))
                    .or(self.given.take());
                (None, None)
            }
            Outcome::Newer => {
                self.failures = 0;
                (None, None)
            }
            Outcome::LoginNeeded { reason } => (
                Some(Obstacle::Login {
                    token: token.clone(),
                    reason: reason.clone(),
                }),
                None,
            ),
            Outcome::Failed {
                reason,
                retry_after,
            } => (
                Some(Obstacle::Failed(reason.clone())),
                Some(now.after(retry_after.map_or(self.back_off(), |told| {
                    told.clamp(BACK_OFF[0], RETRY_AFTER_MAX)
                }))),
            ),
            Outcome::NotWritable { reason } => (
                Some(Obstacle::Failed(reason.clone())),
                Some(now.after(self.back_off())),
            ),
            Outcome::Busy => (self.obstacle.take(), Some(now.after(BUSY_AGAIN))),
        };
        if obstacle.is_some() && !matches!(outcome, Outcome::Busy) {
            self.failures += 1;
        }
        self.obstacle = obstacle;
        self.again_at = again_at;
    }

    /// The file has another access token, that of `found`: what was wrong with the old one is over.
    pub(super) fn file_changed(&mut self, found: &Identity, now: Timestamp) {
        // One that ends later than what we were given is what another process was given instead.
        let ends_later = self.given.as_ref().is_some_and(|given| {
            found
                .expires_at
                .zip(given.ends_at)
                .is_some_and(|(found, known)| found >= known)
        });
        if ends_later {
            self.given = Some(Given::now(found, now));
        }
        self.refused = None;
        self.obstacle = None;
        self.again_at = None;
        self.failures = 0;
    }

    fn back_off(&self) -> Duration {
        BACK_OFF[self.failures.min(BACK_OFF.len() - 1)] + self.jitter / 20
    }

    pub(super) fn needs_login(&self, identity: &Identity) -> bool {
        self.login_reason(identity).is_some()
    }

    /// Why somebody must log in again.
    pub(super) fn login_reason(&self, identity: &Identity) -> Option<&str> {
        match &self.obstacle {
            Some(Obstacle::Login { token, reason }) if *token == identity.fingerprint() => {
                Some(reason)
            }
            _ => None,
        }
    }

    /// Why the last attempt failed.
    pub(super) fn failure(&self) -> Option<&str> {
        match &self.obstacle {
            Some(Obstacle::Failed(reason)) => Some(reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth_file::parse;
    use super::*;

    const NOW: Timestamp = Timestamp(2_000_000_000_000);

    fn identity(life_s: i64, age_days: u64) -> Identity {
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

    fn given(identity: &Identity) -> Outcome {
        Outcome::Refreshed {
            token: identity.fingerprint(),
        }
    }

    #[test]
    fn tokens_are_due_five_minutes_ahead_and_by_age() {
        let renewal = Renewal::new();
        assert!(renewal.is_due(&identity(299, 0), NOW));
        assert!(!renewal.is_due(&identity(400, 0), NOW));
        assert!(!renewal.is_due(&identity(86_400, 7), NOW));
        assert!(renewal.is_due(&identity(86_400, 8), NOW));
    }

    #[test]
    fn tokens_without_a_date_are_due_and_those_without_a_refresh_token_never() {
        let parsed = |text: &str| parse(text.as_bytes()).expect("tokens");
        let renewal = Renewal::new();
        assert!(renewal.is_due(
            &parsed(r#"{"tokens": {"access_token": "a", "refresh_token": "r"}}"#),
            NOW
        ));
        assert!(!renewal.is_due(&parsed(r#"{"tokens": {"access_token": "a"}}"#), NOW));
        assert!(!renewal.is_due(&parsed(r#"{"OPENAI_API_KEY": "sk"}"#), NOW));
    }

    #[test]
    fn a_refused_token_is_refreshed_and_not_again_at_once() {
        let mut renewal = Renewal::new();
        let token = identity(86_400, 0);
        renewal.refused(&token);
        assert!(renewal.is_due(&token, NOW));
        renewal.ended(&token.fingerprint(), &given(&token), Some(&token), NOW);
        assert!(!renewal.is_due(&token, NOW));
        assert!(renewal.is_due(&token, NOW.after(REFUSED_AGAIN)));
    }

    #[test]
    fn failures_back_off_and_a_login_ends_it() {
        let mut renewal = Renewal::new();
        let token = identity(0, 0);
        let failed = Outcome::Failed {
            reason: "500".to_owned(),
            retry_after: None,
        };
        renewal.ended(&token.fingerprint(), &failed, None, NOW);
        assert!(
            !renewal.is_due(&token, NOW)
                && renewal.is_due(&token, NOW.after(Duration::from_secs(10)))
        );
        assert_eq!(renewal.failure(), Some("500"));
        let told = Outcome::Failed {
            reason: "429".to_owned(),
            retry_after: Some(Duration::from_secs(90)),
        };
        renewal.ended(&token.fingerprint(), &told, None, NOW);
        assert_eq!(
            renewal.due_at(&token, NOW),
            Some(NOW.after(Duration::from_secs(90)))
        );
        let login = Outcome::LoginNeeded {
            reason: "reused".to_owned(),
        };
        renewal.ended(&token.fingerprint(), &login, None, NOW);
        assert!(renewal.needs_login(&token) && renewal.due_at(&token, NOW).is_none());
        assert!(
            renewal.is_due(&identity(1, 0), NOW),
            "the file has other tokens"
        );
    }

    #[test]
    fn a_clock_that_is_ahead_or_put_back_asks_neither_again_and_again_nor_never() {
        let mut renewal = Renewal::new();
        let born_expired = identity(-3600, 0);
        renewal.ended(
            &born_expired.fingerprint(),
            &given(&born_expired),
            Some(&born_expired),
            NOW,
        );
        assert!(!renewal.is_due(&born_expired, NOW) && !renewal.is_expired(&born_expired, NOW));
        let short = identity(120, 0);
        assert!(renewal.is_due(&short, NOW), "a token that another gave");
        renewal.ended(
            &born_expired.fingerprint(),
            &given(&short),
            Some(&short),
            NOW,
        );
        assert!(
            !renewal.is_due(&short, NOW)
                && renewal.is_due(&short, NOW.after(Duration::from_secs(61)))
        );
        let failed = Outcome::Failed {
            reason: "500".to_owned(),
            retry_after: None,
        };
        let mut renewal = Renewal::new();
        renewal.ended(&short.fingerprint(), &failed, None, NOW.after(AGE_MAX));
        assert!(
            renewal.is_due(&short, NOW),
            "the clock was put back by days"
        );
    }
}
