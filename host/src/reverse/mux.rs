//! A session: many streams over one connection, in the protocol of hashicorp/yamux, version 0.
//!
//! The crate `yamux` is not used. It acknowledges a stream with its first byte, and a peer that
//! uses the original library ends the session if a stream is not acknowledged within 75 seconds,
//! while the head of a response may take minutes. It also ends the session, with all of its
//! streams, once the peer announces that it accepts no more of them, and it never pings an idle
//! peer.
//!
//! Owns the frames, the credit of each stream, and the end of a session. Invariant: the peer can
//! make this side store at most [`bounds::WINDOW_BYTES`] for each stream, and
//! [`bounds::CONTROL_FRAMES`] frames.

mod bounds;
mod driver;
mod end;
mod header;
mod session;
mod state;
mod stream;
mod stream_state;
#[cfg(test)]
mod tests;

pub use bounds::MuxLimits;
pub use driver::multiplex;
pub use end::MuxEnd;
pub use session::{MuxOpenError, MuxSession};
pub use state::MuxSide;
pub use stream::{MuxStream, StreamRefused};
