//! What a session knows of one stream: what was received and not read, what was written and not
//! sent, and the credit of each direction.

use std::fmt;
use std::task::Waker;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::bounds::{CLOSE_TIMEOUT, FRAME_BYTES, INITIAL_CREDIT, SEND_BYTES, WINDOW_BYTES};
use super::end::MuxViolation;

/// An empty buffer that is larger than this is given back.
const KEPT_BYTES: usize = 64 * 1024;

/// Whether this side has closed its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendDirection {
    Open,
    /// The end follows what was written.
    Ending,
    Ended,
}

/// Whether the peer sends more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceiveDirection {
    Open,
    Ended,
    /// The peer aborted the stream, or the session ended.
    Reset,
    /// The peer did not accept the stream: it has processed nothing of it.
    Refused,
}

/// What is to be sent next on a stream.
pub(super) enum StreamOutput {
    Data(Bytes),
    End,
}

pub(super) struct MuxStreamState {
    received: BytesMut,
    /// What the peer may still send.
    window: u32,
    /// What was read and not credited to the peer yet.
    read: u32,
    pub(super) receiving: ReceiveDirection,
    written: BytesMut,
    /// What this side may still send.
    credit: u32,
    pub(super) sending: SendDirection,
    /// When this side opened it, until the peer acknowledges it.
    pub(super) unacknowledged_since: Option<Instant>,
    has_received: bool,
    has_sent: bool,
    /// When the last handle was dropped.
    pub(super) dropped_at: Option<Instant>,
    /// Whether it waits for its turn to send.
    pub(super) is_queued: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl fmt::Debug for MuxStreamState {
    /// Prints nothing of what is transferred: it has tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxStreamState")
            .field("receiving", &self.receiving)
            .field("sending", &self.sending)
            .finish_non_exhaustive()
    }
}

impl MuxStreamState {
    pub(super) fn new(credit: u32, unacknowledged_since: Option<Instant>) -> Self {
        Self {
            received: BytesMut::new(),
            window: WINDOW_BYTES,
            read: 0,
            receiving: ReceiveDirection::Open,
            written: BytesMut::new(),
            credit: INITIAL_CREDIT.saturating_add(credit),
            sending: SendDirection::Open,
            unacknowledged_since,
            has_received: false,
            has_sent: false,
            dropped_at: None,
            is_queued: false,
            reader: None,
            writer: None,
        }
    }

    /// Takes `length` bytes of the peer's credit.
    ///
    /// # Errors
    /// The peer has less.
    pub(super) fn take_window(&mut self, stream: u32, length: u32) -> Result<(), MuxViolation> {
        let Some(left) = self.window.checked_sub(length) else {
            return Err(MuxViolation::Credit {
                stream,
                credit: self.window,
                found: length,
            });
        };
        self.window = left;
        self.has_received |= length > 0;
        Ok(())
    }

    /// Stores received data, unless nothing will read it.
    pub(super) fn receive(&mut self, data: &[u8]) {
        if self.dropped_at.is_none() {
            self.received.extend_from_slice(data);
        }
    }

    /// Moves received data into `space`. Returns how much.
    pub(super) fn read_into(&mut self, space: &mut [u8]) -> usize {
        let length = self.received.len().min(space.len());
        space[..length].copy_from_slice(&self.received[..length]);
        self.received.advance(length);
        if self.received.is_empty() && self.received.capacity() > KEPT_BYTES {
            self.received = BytesMut::new();
        }
        // At most the window: the peer had credit for it.
        self.read += length as u32;
        length
    }

    /// Returns the credit that the peer is owed, if it is worth a frame.
    pub(super) fn owed_credit(&mut self) -> Option<u32> {
        if self.receiving != ReceiveDirection::Open || self.read < WINDOW_BYTES / 2 {
            return None;
        }
        let owed = std::mem::take(&mut self.read);
        self.window += owed;
        Some(owed)
    }

    /// Stores what is to be sent. Returns how much, which is nothing if there is no room.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let length = data
            .len()
            .min(SEND_BYTES.saturating_sub(self.written.len()));
        self.written.extend_from_slice(&data[..length]);
        length
    }

    pub(super) fn add_credit(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit);
    }

    /// Returns what is to be sent next, at most a frame.
    pub(super) fn next_output(&mut self) -> Option<StreamOutput> {
        let length = self
            .written
            .len()
            .min(FRAME_BYTES)
            .min(self.credit as usize);
        if length > 0 {
            self.credit -= length as u32;
            self.has_sent = true;
            return Some(StreamOutput::Data(self.written.split_to(length).freeze()));
        }
        if self.written.is_empty() && self.sending == SendDirection::Ending {
            self.sending = SendDirection::Ended;
            return Some(StreamOutput::End);
        }
        None
    }

    /// Returns whether there is something to send now.
    pub(super) fn has_output(&self) -> bool {
        (!self.written.is_empty() && self.credit > 0)
            || (self.written.is_empty() && self.sending == SendDirection::Ending)
    }

    /// Aborts both directions. What was received can still be read.
    pub(super) fn reset(&mut self) {
        self.receiving = ReceiveDirection::Reset;
        self.written = BytesMut::new();
        self.sending = SendDirection::Ended;
        self.unacknowledged_since = None;
    }

    /// Aborts both directions because the peer did. A peer that accepts a stream acknowledges it
    /// first, so that a stream which is aborted before that was refused.
    pub(super) fn reset_by_peer(&mut self) {
        let is_refused = self.unacknowledged_since.is_some() && !self.has_received;
        self.reset();
        if is_refused {
            self.receiving = ReceiveDirection::Refused;
        }
    }

    /// Aborts both directions because the session ended. What was sent may have been processed.
    pub(super) fn reset_by_end(&mut self) {
        if self.has_sent {
            self.reset();
        } else {
            self.reset_by_peer();
        }
    }

    /// Returns whether it can be forgotten: it has no handle, and neither side sends more.
    pub(super) fn is_over(&self) -> bool {
        self.dropped_at.is_some()
            && match self.receiving {
                ReceiveDirection::Open => false,
                ReceiveDirection::Ended => self.sending == SendDirection::Ended,
                ReceiveDirection::Reset | ReceiveDirection::Refused => true,
            }
    }

    /// Returns whether the peer has not closed it for too long.
    pub(super) fn is_abandoned(&self, now: Instant) -> bool {
        self.dropped_at
            .is_some_and(|at| now.saturating_duration_since(at) >= CLOSE_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_nothing_of_what_is_transferred() {
        let mut state = MuxStreamState::new(0, None);
        state.receive(b"canary");
        assert_eq!(state.write(b"canary"), 6);
        assert!(!format!("{state:?}").contains("canary"), "{state:?}");
    }
}
