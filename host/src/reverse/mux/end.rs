//! Why a session ended.

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MuxEnd {
    /// This side closed it.
    #[error("closed")]
    Closed,
    /// The peer closed the connection between two frames.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// The connection broke, for this reason.
    #[error("{0}")]
    Broken(String),
    /// The peer violated the protocol.
    #[error("protocol error: {0}")]
    Violation(MuxViolation),
    /// The peer announced that this side violated the protocol, or that it failed itself.
    #[error("the peer ended the session with code {0}")]
    EndedByPeer(u32),
    /// The peer did not answer a ping.
    #[error("the peer did not answer a ping")]
    PingLost,
    /// The peer did not read for too long.
    #[error("the peer stopped reading")]
    WriteTimedOut,
    /// The peer did not acknowledge a stream.
    #[error("the peer did not acknowledge a stream")]
    NotAcknowledged,
}

/// What a peer did that the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MuxViolation {
    /// A frame of another version.
    #[error("expected version 0, found {0}")]
    Version(u8),
    /// A frame of an unknown type.
    #[error("expected a frame of type 0 to 3, found {0}")]
    Kind(u8),
    /// A new stream has an id that this side assigns, or that is in use.
    #[error("stream {0} cannot be opened")]
    StreamId(u32),
    /// A stream has more data than its credit allows.
    #[error("stream {stream} has a credit of {credit} bytes, found {found}")]
    Credit {
        /// The id of the stream.
        stream: u32,
        /// What the peer may send.
        credit: u32,
        /// What the peer sends instead.
        found: u32,
    },
}

impl MuxEnd {
    /// Returns the code by which the peer learns why, if it may still read.
    pub(super) fn go_away_code(&self) -> Option<u32> {
        match self {
            Self::Closed => Some(0),
            Self::Violation(_) => Some(1),
            Self::NotAcknowledged => Some(2),
            Self::ClosedByPeer
            | Self::Truncated
            | Self::Broken(_)
            | Self::EndedByPeer(_)
            | Self::PingLost
            | Self::WriteTimedOut => None,
        }
    }
}

impl From<MuxViolation> for MuxEnd {
    fn from(violation: MuxViolation) -> Self {
        Self::Violation(violation)
    }
}

impl From<std::io::Error> for MuxEnd {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Broken(error.to_string()),
        }
    }
}
