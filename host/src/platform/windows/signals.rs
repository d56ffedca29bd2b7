//! The console's events in the place of signals.

use std::future::pending;
use std::io;

use tokio::signal::windows::{CtrlBreak, CtrlC, ctrl_break, ctrl_c};

/// An event that this process handles from now on.
pub(crate) enum ProcessSignal {
    /// The console asks the process to stop what it does.
    CtrlC(CtrlC),
    /// The console asks the process to end.
    CtrlBreak(CtrlBreak),
    /// A signal that this system does not have.
    None,
}

impl ProcessSignal {
    /// Waits for the next event.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        match self {
            Self::CtrlC(events) => events.recv().await,
            Self::CtrlBreak(events) => events.recv().await,
            Self::None => pending().await,
        }
    }
}

/// Returns the events of Ctrl-Break.
///
/// # Errors
/// The system refuses.
pub(crate) fn terminate() -> io::Result<ProcessSignal> {
    ctrl_break().map(ProcessSignal::CtrlBreak)
}

/// Returns the events of Ctrl-C.
///
/// # Errors
/// The system refuses.
pub(crate) fn interrupt() -> io::Result<ProcessSignal> {
    ctrl_c().map(ProcessSignal::CtrlC)
}

/// Never: the configuration is read again when its file changes.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn hang_up() -> io::Result<ProcessSignal> {
    Ok(ProcessSignal::None)
}

/// Never: no process succeeds another.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn upgrade() -> io::Result<ProcessSignal> {
    Ok(ProcessSignal::None)
}

/// Handles every event of the console.
pub(crate) fn all_signals() -> Vec<ProcessSignal> {
    [terminate(), interrupt()].into_iter().flatten().collect()
}
