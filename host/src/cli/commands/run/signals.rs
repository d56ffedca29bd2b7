//! The signals that stop the gateway.

use std::io;
use std::time::{Duration, Instant};

use crate::platform::{ProcessSignal, interrupt, terminate};

/// The signals SIGTERM and SIGINT.
pub(super) struct StopSignals {
    terminate: ProcessSignal,
    interrupt: ProcessSignal,
}

/// Signals this soon after the first count as the same one: `timeout` and shells signal a process
/// and its group.
const REPEATED_SIGNAL: Duration = Duration::from_millis(50);

impl StopSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: terminate()?,
            interrupt: interrupt()?,
        })
    }

    /// Waits for a signal, and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for a signal that does not repeat the last one.
    pub(super) async fn next_after_repeats(&mut self) -> &'static str {
        let last = Instant::now();
        loop {
            let name = self.next().await;
            if last.elapsed() >= REPEATED_SIGNAL {
                return name;
            }
        }
    }
}
