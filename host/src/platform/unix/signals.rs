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

/// Handles every signal that an operator may send and that ends a process by default. Those that
/// cannot be handled are left out.
pub(crate) fn all_signals() -> Vec<ProcessSignal> {
    [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::alarm(),
    ]
    .into_iter()
    .filter_map(|kind| signal(kind).ok())
    .collect()
}
