//! What a request presents to upstream, and the refreshes that it waits for.
//!
//! Does not know how a refresh is done. Invariant: a request never refreshes; it waits for the one
//! refresh that is due or running, however many requests there are.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::credential::Credential;
use super::identity::{SecretFingerprint, UpstreamIdentity};
use super::refresh::RefreshOutcome;
use super::state::IdentityAvailability;
use crate::values::clock::Timestamp;

impl Credential {
    /// Whether a request can be sent with it, at once or after a refresh. Its usage is not
    /// considered.
    pub fn is_presentable(&self, now: Timestamp) -> bool {
        self.state().is_presentable(now)
    }

    /// Returns what a request presents to upstream. If its tokens are due to be refreshed, waits
    /// for that for at most `limit`; `None` if no refresh helps.
    pub async fn presentable_identity(&self, limit: Duration) -> Option<Arc<UpstreamIdentity>> {
        // The usual case subscribes to nothing.
        match self.state().availability(Timestamp::now()) {
            IdentityAvailability::Ready(identity) => return Some(identity),
            IdentityAvailability::Unavailable => return None,
            IdentityAvailability::AwaitingRefresh => {}
        }
        let availability = || self.state().availability(Timestamp::now());
        self.wait_for_identity(availability, limit).await
    }

    /// Returns what a request presents in place of `rejected`, which upstream rejected: an identity
    /// that is loaded already, or the one of a refresh within `limit`.
    pub async fn replacement_identity(
        &self,
        rejected: &UpstreamIdentity,
        limit: Duration,
    ) -> Option<Arc<UpstreamIdentity>> {
        let availability = || self.state().replace(rejected, Timestamp::now());
        self.wait_for_identity(availability, limit).await
    }

    async fn wait_for_identity(
        &self,
        availability: impl Fn() -> IdentityAvailability,
        limit: Duration,
    ) -> Option<Arc<UpstreamIdentity>> {
        // Subscribed before the first look: a refresh that ends in between is noticed.
        let mut refreshes = self.refreshes().subscribe();
        let waiting = async {
            loop {
                match availability() {
                    IdentityAvailability::Ready(identity) => return Some(identity),
                    IdentityAvailability::Unavailable => return None,
                    IdentityAvailability::AwaitingRefresh => self.login().request_refreshes(),
                }
                refreshes.changed().await.ok()?;
            }
        };
        timeout(limit, waiting).await.ok().flatten()
    }

    /// Whether upstream rejected its token recently.
    pub fn is_token_rejected(&self, now: Timestamp) -> bool {
        self.state_at(now).is_token_rejected(now)
    }

    /// Records that upstream rejected the token that it was presented.
    pub fn record_rejected_token(&self, presented: &UpstreamIdentity, now: Timestamp) {
        self.state().reject_token(presented, now);
        self.login().announce_change();
    }
}

impl Credential {
    /// Starts a refresh if one is due, and returns which access token it replaces. Until
    /// [`finish_refresh`] is called, no other one starts.
    ///
    /// [`finish_refresh`]: Self::finish_refresh
    pub fn start_refresh(&self, now: Timestamp) -> Option<SecretFingerprint> {
        self.state().start_refresh(self.signals(), now)
    }

    /// Records how the refresh of `token` ended. If it gave other tokens, the file must have been
    /// loaded before.
    pub fn finish_refresh(
        &self,
        token: &SecretFingerprint,
        outcome: &RefreshOutcome,
        now: Timestamp,
    ) {
        self.state()
            .finish_refresh(self.signals(), token, outcome, now);
        // After a refresh that was not sent, another entry may refresh.
        self.login().request_refreshes();
        self.refreshes().send_modify(|count| *count += 1);
        self.login().announce_change();
    }

    /// Whether a refresh is running.
    pub fn is_refreshing(&self) -> bool {
        self.state().refreshes().is_running()
    }

    /// Whether requests wait for a refresh: its token has expired or was rejected.
    pub fn is_refresh_urgent(&self, now: Timestamp) -> bool {
        self.state().is_refresh_urgent(now)
    }

    /// Waits until a refresh may be due, for at most `pause`.
    pub async fn wait_until_refresh_due(&self, pause: Duration) {
        let now = Timestamp::now();
        let due = self.state().refresh_due_at(self.signals(), now);
        let pause = due.map_or(pause, |due| due.since(now).min(pause));
        // A timeout and a notification have the same consequence: the caller looks again.
        let _ = timeout(pause, self.refresh_needed().notified()).await;
    }

    /// Waits until a request needs a refresh, or the file changes.
    pub async fn wait_until_refresh_needed(&self) {
        self.refresh_needed().notified().await;
    }
}
