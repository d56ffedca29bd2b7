//! Notifications of the service manager (systemd), if there is one: `sd_notify(3)`.
//!
//! A service manager that cannot be reached does not disturb the gateway.

use std::future::pending;

use tokio::time::{MissedTickBehavior, interval};

use crate::files::io_reason;
use crate::platform::{self, ServiceNotice, watchdog_interval};

/// All listeners accept connections, or a reload has ended.
pub(super) fn notify_ready() {
    notify(ServiceNotice::Ready);
}

/// The configuration is being read again.
pub(super) fn notify_reloading() {
    notify(ServiceNotice::Reloading);
}

/// The gateway is shutting down.
pub(super) fn notify_stopping() {
    notify(ServiceNotice::Stopping);
}

/// The process `id` succeeds this one.
pub(super) fn notify_successor(id: u32) {
    notify(ServiceNotice::Successor(id));
}

/// Tells the service manager's watchdog that the runtime works, twice in its interval, for ever.
pub(super) async fn ping_watchdog() {
    let Some(limit) = watchdog_interval() else {
        return pending().await;
    };
    let mut ticks = interval(limit / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notify(ServiceNotice::Alive);
    }
}

fn notify(state: ServiceNotice) {
    if let Err(error) = platform::notify(state) {
        tracing::warn!(error = io_reason(&error), "service manager not notified");
    }
}
