//! The signals that a gateway handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that this process handles from now on. `recv` waits for the next one.
pub(crate) type ProcessSignal = Signal;

/// SIGTERM.
///
/// # Errors
/// The system refuses.
pub(crate) fn terminate() -> io::Result<ProcessSignal> {
    signal(SignalKind::terminate())
}

/// SIGINT.
///
/// # Errors
/// The system refuses.
pub(crate) fn interrupt() -> io::Result<ProcessSignal> {
    signal(SignalKind::interrupt())
}

/// SIGHUP.
///
/// # Errors
/// The system refuses.
pub(crate) fn hang_up() -> io::Result<ProcessSignal> {
    signal(SignalKind::hangup())
}

/// SIGUSR2.
///
/// # Errors
/// The system refuses.
pub(crate) fn upgrade() -> io::Result<ProcessSignal> {
    signal(SignalKind::user_defined2())
}
