//! How much of a credential's account is used: from responses, refusals and polls to what balancers
//! see.
//!
//! Does not know how a poll is sent. Invariant: what is reported about one account never changes
//! what is known about another one.

use std::time::Duration;

use tokio::time::timeout;

use super::credential::Credential;
use super::identity::UpstreamIdentity;
use super::state::{PollFailure, StartedPoll, UsageReport};
use crate::values::clock::Timestamp;
use crate::values::credential::candidate::BalancerCandidate;
use crate::values::credential::windows::{WindowKind, WindowReading};

/// The weight of another gateway that reports none: that of sing-box.
const EXTERNAL_WEIGHT: f64 = 10.0;

impl Credential {
    /// Returns what a balancer sees of it, except what concerns one request. The windows of an API
    /// key are unknown.
    pub fn candidate(&self, now: Timestamp) -> BalancerCandidate {
        let mut candidate = self.state_at(now).candidate(self.signals(), now);
        candidate.in_flight = self.in_flight();
        candidate.own_weight = self.or_external_weight(candidate.own_weight);
        candidate
    }

    /// Whether it has no room: upstream rate-limits it, or its use reached a cap.
    pub fn is_used_up(&self, now: Timestamp) -> bool {
        self.state_at(now).is_used_up(self.signals(), now)
    }

    /// Returns when it is usable again, if it is loaded and rate-limited or over a cap.
    pub fn usable_again_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.state_at(now).usable_again_at(self.signals(), now)
    }

    /// Returns its plan; empty while unknown.
    pub fn plan(&self) -> String {
        self.state().usage().plan().to_owned()
    }

    /// Returns the weight of its capacity, if it is another gateway.
    pub fn own_weight(&self) -> Option<f64> {
        let reported = self.state().usage().own_weight();
        self.or_external_weight(reported)
    }

    fn or_external_weight(&self, reported: Option<f64>) -> Option<f64> {
        reported.or_else(|| self.is_external().then_some(EXTERNAL_WEIGHT))
    }

    /// Returns the start of its week, in Unix seconds.
    pub fn week_start_unix(&self, now: Timestamp) -> Option<u64> {
        self.state().usage().windows().week_start_unix(now)
    }

    /// Returns when a window resets, if that is known.
    pub fn reset_at(&self, window: WindowKind, now: Timestamp) -> Option<Timestamp> {
        self.state().usage().windows().reset_at(window, now)
    }

    /// Returns the used shares of its windows, in percent: 5-hour and weekly.
    pub fn used(&self, now: Timestamp) -> (f64, f64) {
        let windows = *self.state().usage().windows();
        (
            windows.used(WindowKind::FiveHour, now),
            windows.used(WindowKind::Weekly, now),
        )
    }
}

impl Credential {
    /// Records the windows that a response to `presented` reports. Those of another gateway are
    /// ignored: they are about one of its credentials.
    pub fn observe(&self, presented: &UpstreamIdentity, reading: &WindowReading, now: Timestamp) {
        if self.is_external() || reading.is_empty() {
            return;
        }
        let change = self.state_at(now).observe(presented, reading, now);
        self.publish(change);
    }

    /// Records a refusal of `presented` by 429, and returns when it ends. An end that is past or
    /// unknown counts as five minutes.
    pub fn record_rate_limit(
        &self,
        presented: &UpstreamIdentity,
        until: Option<Timestamp>,
        window: Option<WindowKind>,
        now: Timestamp,
    ) -> Timestamp {
        let (until, change) = self.state_at(now).limit(presented, until, window, now);
        self.publish(change);
        until
    }

    /// Records a failed attempt.
    pub fn record_failure(&self, now: Timestamp) {
        self.state().record_failure(self.signals(), now);
    }

    /// Records that upstream responded, and how long the response's head took.
    pub fn record_response(&self, latency: Duration) {
        self.state().record_response(self.signals(), latency);
    }

    /// Records why a request could not be sent: there is no connection to upstream.
    pub fn record_unreachable(&self, reason: String) {
        self.state().record_unreachable(self.signals(), reason);
    }

    /// Records that its reverse connection was made.
    pub fn record_reversed(&self) {
        self.state().record_reversed(self.signals(), None);
    }

    /// Records why its reverse connection could not be made.
    pub fn record_not_reversed(&self, reason: String) {
        self.state().record_reversed(self.signals(), Some(reason));
    }
}

impl Credential {
    /// Waits until a poll is due, and starts it: one is due at start, and one an interval while
    /// there are requests.
    pub async fn wait_until_poll_due(&self) -> StartedPoll {
        loop {
            let now = Timestamp::now();
            let due =
                self.state_at(now)
                    .poll_due_at(self.signals(), self.requests_since_poll(), now);
            match due {
                Some(due) if due <= now => {
                    if let Some(poll) = self.start_poll() {
                        return poll;
                    }
                }
                Some(due) => drop(timeout(due.since(now), self.poll_needed().notified()).await),
                None => self.poll_needed().notified().await,
            }
        }
    }

    /// Starts a poll, if the credential is loaded. Requests from now on ask for the next one.
    pub fn start_poll(&self) -> Option<StartedPoll> {
        let mut state = self.state();
        self.login().reset_requests_since_poll();
        state.start_poll(Timestamp::now())
    }

    /// Records what a poll reports. Its windows replace the known ones, unless a response reported
    /// windows since the poll began.
    pub fn record_poll(&self, poll: &StartedPoll, report: &UsageReport, now: Timestamp) {
        let change = self
            .state_at(now)
            .record_poll(self.signals(), poll, report, now);
        self.publish(change);
    }

    /// Records that a poll failed.
    pub fn record_poll_failure(&self, poll: &StartedPoll, failure: PollFailure, now: Timestamp) {
        self.state()
            .record_poll_failure(self.signals(), poll, failure, now);
        // After a poll that was not sent, another entry may poll.
        self.login().request_polls();
    }
}
