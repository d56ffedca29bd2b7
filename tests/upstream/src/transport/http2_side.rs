//! What upstream does on an HTTP/2 connection besides serving it: frames that hyper would not
//! write, and when the connection ends.
//!
//! Knows nothing of the socket. Invariant: what is to be written in place of a frame is written
//! once.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use h2::Reason;
use tokio::io::AsyncWrite;

const GOAWAY: u8 = 7;

/// What upstream does on one HTTP/2 connection besides serving it.
#[derive(Debug, Default)]
pub(crate) struct Http2Side {
    /// How many streams the client opened; they are numbered 1, 3, 5 and so on.
    streams: AtomicU32,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Bytes to be written past hyper.
    bare: Vec<u8>,
    ending: Ending,
}

/// When the connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// When its client ends it.
    #[default]
    Open,
    /// Before anything else is written.
    Now,
    /// After everything that is to be written.
    AfterFlush,
}

impl Http2Side {
    /// Counts a stream that the client opened. Returns its number.
    pub(crate) fn opened_stream(&self) -> u32 {
        2 * self.streams.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The number of the newest stream; 0 if there was none.
    pub(crate) fn newest_stream(&self) -> u32 {
        (2 * self.streams.load(Ordering::SeqCst)).saturating_sub(1)
    }

    /// Writes these bytes in place of a frame.
    pub(crate) fn write_bare(&self, bytes: &[u8]) {
        self.plan().bare.extend_from_slice(bytes);
    }

    /// Writes a GOAWAY: streams past `last` were not processed.
    pub(crate) fn go_away(&self, last: u32, reason: Reason) {
        let mut frame = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(last.to_be_bytes());
        frame.extend(u32::from(reason).to_be_bytes());
        self.write_bare(&frame);
    }

    pub(crate) fn end(&self, ending: Ending) {
        self.plan().ending = ending;
    }

    pub(crate) fn ending(&self) -> Ending {
        self.plan().ending
    }

    /// Writes what stands in place of frames.
    pub(super) fn poll_write_bare<S: AsyncWrite + Unpin>(
        &self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut plan = self.plan();
        while !plan.bare.is_empty() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, &plan.bare))?;
            plan.bare.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no holder of the plan panics")
    }
}
