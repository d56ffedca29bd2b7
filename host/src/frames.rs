//! WebSocket frames (RFC 6455): a reader that follows them while they pass, and the few that the
//! gateway sends itself.
//!
//! Owns the rules of the protocol; does not hold, copy or change a byte of the frames that pass,
//! and does not know what their messages mean. Invariant: its memory does not grow with a frame or
//! a message.

mod control;
mod handshake;
mod header;
mod mask;
mod reader;
mod utf8;
mod violation;

pub use control::{close_frame, ping_frame};
pub use handshake::{accept_of, is_key, new_key};
pub use header::FrameSender;
pub use reader::{BrokenInput, FramePart, FrameProgress, FrameReader, MessageKind, ReadControl};
pub use violation::{
    GOING_AWAY, INTERNAL_ERROR, INVALID_PAYLOAD, POLICY_VIOLATION, PROTOCOL_ERROR,
    ProtocolViolation, RESTART, TOO_BIG, TRY_LATER,
};

#[cfg(test)]
mod tests;
