//! The bounds of a session: those of the protocol, those of this side, and those that an operator
//! sets.

use std::time::Duration;

use crate::values::limits::Limits;

/// The credit that each direction of a stream begins with, by the protocol.
pub(super) const INITIAL_CREDIT: u32 = 256 * 1024;

/// How much of a stream is stored until it is read.
pub(super) const WINDOW_BYTES: u32 = 512 * 1024;

/// How much of a stream is stored until it is sent.
pub(super) const SEND_BYTES: usize = 64 * 1024;

/// The most of one stream that is sent before the others have their turn.
pub(super) const FRAME_BYTES: usize = 16 * 1024;

/// Frames without data that wait to be sent. Beyond that the peer is not read until it reads.
pub(super) const CONTROL_FRAMES: usize = 1024;

/// How long the peer may take to acknowledge a stream.
pub(super) const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a stream that this side has closed waits for the peer to close it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

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
