//! Notifications of the service manager (systemd), if there is one: `sd_notify(3)`.
//!
//! A service manager that cannot be reached does not disturb the gateway.

use std::future::pending;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::files::io_reason;

/// All listeners accept connections, or a reload has ended.
pub(super) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read again.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(error = io_reason(&error), "no monotonic clock"),
    }
}

/// The gateway is shutting down.
pub(super) fn notify_stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The process `id` succeeds this one.
pub(super) fn notify_successor(id: u32) {
    notify(&[NotifyState::MainPid(id)]);
}

/// Tells the service manager's watchdog that the runtime works, twice in its interval, for ever.
pub(super) async fn ping_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return pending().await;
    };
    let mut ticks = interval(limit / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = io_reason(&error), "service manager not notified");
    }
}
