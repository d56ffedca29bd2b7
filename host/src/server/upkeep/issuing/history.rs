//! What the orders of a certificate came to, over all services that present it.
//!
//! Owns when the next order may begin; reloads and other services do not change that. Does not order
//! anything. Invariant: at most one order of a certificate is open, because an order holds the
//! certificate's history.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as TurnMutex, MutexGuard as TurnGuard};

use crate::config::AcmeConfig;
use crate::values::limits::{ACME_RENEWAL_MIN, ACME_RETRY_MAX, ACME_RETRY_MIN};

/// The histories of all certificates, by their files.
#[derive(Clone, Default)]
pub(in crate::server::upkeep) struct OrderHistories(
    Arc<Mutex<HashMap<PathBuf, Arc<CertificateOrders>>>>,
);

/// The orders of one certificate.
pub(in crate::server::upkeep) struct CertificateOrders {
    issued: AtomicU64,
    history: TurnMutex<OrderHistory>,
}

/// How the last orders ended.
pub(super) struct OrderHistory {
    /// The section that the orders were made for.
    config: AcmeConfig,
    /// The pause after the next failure.
    pause: Duration,
    /// The pause after the next certificate that must be renewed soon.
    renewal_pause: Duration,
    /// When the next order may begin, if that is not now.
    next_at: Option<Instant>,
    /// Why the last order failed, if it did.
    failure: Option<String>,
}

impl OrderHistories {
    /// Returns the orders of the certificate of `config`. What was ordered otherwise does not delay
    /// it.
    pub(in crate::server::upkeep) fn of(&self, config: &AcmeConfig) -> Arc<CertificateOrders> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(CertificateOrders::new(config));
        let path = config.certificate_path.clone();
        let orders = Arc::clone(all.entry(path).or_insert_with(new));
        // A history that is held belongs to an order in progress.
        if let Ok(mut history) = orders.history.try_lock()
            && history.config != *config
        {
            *history = OrderHistory::new(config);
        }
        orders
    }
}

impl CertificateOrders {
    fn new(config: &AcmeConfig) -> Self {
        Self {
            issued: AtomicU64::new(0),
            history: TurnMutex::new(OrderHistory::new(config)),
        }
    }

    /// Returns the number of certificates that were issued.
    pub(super) fn issued(&self) -> u64 {
        self.issued.load(Ordering::Acquire)
    }

    /// Counts a certificate that was issued. Returns the number.
    pub(super) fn count_issued(&self) -> u64 {
        self.issued.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Waits until no order is open.
    pub(super) async fn turn(&self) -> TurnGuard<'_, OrderHistory> {
        self.history.lock().await
    }
}

impl OrderHistory {
    fn new(config: &AcmeConfig) -> Self {
        Self {
            config: config.clone(),
            pause: ACME_RETRY_MIN,
            renewal_pause: ACME_RENEWAL_MIN,
            next_at: None,
            failure: None,
        }
    }

    /// Returns when the next order may begin, if that is later.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.next_at.filter(|at| *at > Instant::now())
    }

    /// Returns why the last order failed, if it did.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Notes that an order failed. Returns the pause that follows, at least `pause_min`.
    pub(super) fn fail(&mut self, reason: &str, pause_min: Duration) -> Duration {
        let pause = self.pause.max(pause_min);
        self.pause = (pause * 2).min(ACME_RETRY_MAX);
        self.next_at = Some(Instant::now() + pause);
        self.failure = Some(reason.to_owned());
        pause
    }

    /// Notes that a certificate is in use that must be renewed in `remaining`.
    pub(super) fn succeed(&mut self, remaining: Duration) {
        self.pause = ACME_RETRY_MIN;
        self.failure = None;
        if remaining >= ACME_RETRY_MIN {
            self.renewal_pause = ACME_RENEWAL_MIN;
            self.next_at = None;
        } else {
            // The clock may be wrong: then the next certificate must be renewed soon, too.
            self.next_at = Some(Instant::now() + self.renewal_pause);
            self.renewal_pause = (self.renewal_pause * 2).min(ACME_RETRY_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AcmeChallenge, CertificateKeyType, ConfigPath};

    fn config(email: &str) -> AcmeConfig {
        AcmeConfig {
            field: ConfigPath::root(),
            domains: vec!["a.example".to_owned()],
            directory_url: "https://acme.example".to_owned(),
            email: Some(email.to_owned()),
            account_key: None,
            external_account: None,
            key_type: CertificateKeyType::P256,
            challenges: vec![AcmeChallenge::TlsAlpn { port: None }],
            account_path: PathBuf::from("account.json"),
            certificate_path: PathBuf::from("a.pem"),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_last_at_least_as_long_as_asked_for() {
        let mut history = OrderHistory::new(&config("a"));
        let mut fail = |pause_min_s: u64| {
            history
                .fail("no", Duration::from_secs(pause_min_s))
                .as_secs()
        };
        assert_eq!([fail(0), fail(0), fail(600)], [60, 120, 600]);
        assert_eq!([fail(0), fail(0), fail(0)], [1200, 2400, 3600]);
        assert_eq!([fail(86_400), fail(0)], [86_400, 3600]);
        assert!(history.next_at().is_some());
        history.succeed(ACME_RETRY_MIN);
        assert_eq!((history.next_at(), history.failure()), (None, None));
        assert_eq!(history.fail("no", Duration::ZERO), ACME_RETRY_MIN);
    }

    #[test]
    fn certificates_that_are_soon_due_are_ordered_further_and_further_apart() {
        let mut history = OrderHistory::new(&config("a"));
        for expected_s in [5, 10, 20] {
            history.succeed(Duration::from_secs(1));
            let next_at = history.next_at().expect("a pause");
            let pause = next_at.saturating_duration_since(Instant::now());
            let expected = Duration::from_secs(expected_s);
            assert!(pause <= expected && pause > expected / 2, "{pause:?}");
        }
    }

    #[tokio::test]
    async fn only_a_changed_section_forgets_a_failure() {
        let histories = OrderHistories::default();
        let fail = histories.of(&config("a"));
        fail.turn().await.fail("no", Duration::ZERO);
        let again = histories.of(&config("a"));
        assert_eq!(again.turn().await.failure(), Some("no"));
        let changed = histories.of(&config("b"));
        assert_eq!(changed.turn().await.failure(), None);
    }
}
