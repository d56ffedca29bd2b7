//! A session: many streams over one connection, in the protocol of hashicorp/yamux, version 0.
//!
//! The crate `yamux` is not used. It acknowledges a stream with its first byte, and a peer that
//! uses the original library ends the session if a stream is not acknowledged within 75 seconds,
//! while the head of a response may take minutes. It also ends the session, with all of its
//! streams, once the peer announces that it accepts no more of them, and it never pings an idle
//! peer.
//!
//! Owns the frames, the credit of each stream, and the end of a session. Invariant: the peer can
//! make this side store at most [`WINDOW_BYTES`] for each stream, and [`CONTROL_FRAMES`] frames.

mod driver;
mod end;
mod header;
mod session;
mod state;
mod stream;
mod stream_state;
#[cfg(test)]
mod tests;

pub use driver::multiplex;
pub use end::MuxEnd;
pub use session::{MuxOpenError, MuxSession};
pub use state::MuxSide;
pub use stream::MuxStream;

use std::time::Duration;

use crate::values::limits::Limits;

/// The credit that each direction of a stream begins with, by the protocol.
const INITIAL_CREDIT: u32 = 256 * 1024;

/// How much of a stream is stored until it is read.
const WINDOW_BYTES: u32 = 512 * 1024;

/// How much of a stream is stored until it is sent.
const SEND_BYTES: usize = 64 * 1024;

/// The most of one stream that is sent before the others have their turn.
const FRAME_BYTES: usize = 16 * 1024;

/// Frames without data that wait to be sent. Beyond that the peer is not read until it reads.
const CONTROL_FRAMES: usize = 1024;

/// How long the peer may take to acknowledge a stream.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a stream that this side has closed waits for the peer to close it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The limits of a session that an operator can set.
#[derive(Debug, Clone, Copy)]
pub struct MuxLimits {
    /// Streams that are open at the same time.
    pub streams: usize,
    /// How often the peer is pinged.
    pub keep_alive: Duration,
    /// How long a ping may be unanswered, and how long a write may take.
    pub write_timeout: Duration,
}

impl MuxLimits {
    /// Returns those of `limits`.
    pub fn of(limits: &Limits) -> Self {
        Self {
            streams: usize::try_from(limits.reverse_streams).unwrap_or(usize::MAX),
            keep_alive: limits.reverse_keep_alive,
            write_timeout: limits.reverse_stall_timeout,
        }
    }
}
