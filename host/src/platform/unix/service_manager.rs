//! systemd, if this process is one of its services.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use super::sockets::Descriptor;
use crate::platform::terms::ServiceNotice;

/// Tells the service manager, if there is one.
///
/// # Errors
/// It cannot be reached.
pub(crate) fn notify(state: ServiceNotice) -> io::Result<()> {
    match state {
        ServiceNotice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        ServiceNotice::Reloading => {
            sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
        }
        ServiceNotice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        ServiceNotice::Successor(id) => sd_notify::notify(&[NotifyState::MainPid(id)]),
        ServiceNotice::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}

/// Returns how often the service manager's watchdog must hear from this process.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// Takes the sockets that the service manager hands over to this process, with their names
/// (`sd_listen_fds(3)`). Must be called once, before this process opens files.
///
/// # Errors
/// The environment does not describe them in the right way.
pub(crate) fn inherited_sockets() -> io::Result<Vec<(String, Descriptor)>> {
    let sockets = sd_notify::listen_fds_with_names()?.map(|(number, name)| {
        // SAFETY: the service manager opened it for this process, and nothing else uses it: this
        // is called once.
        (name, unsafe { OwnedFd::from_raw_fd(number) })
    });
    Ok(sockets.collect())
}
