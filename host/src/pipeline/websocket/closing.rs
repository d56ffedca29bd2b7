//! Why the gateway closes a socket: the code and the text of its close frame.

use crate::frames::{GOING_AWAY, INTERNAL_ERROR, ProtocolViolation, RESTART};

/// The reason for a close that the gateway initiates.
#[derive(Debug, Clone, Copy)]
pub(super) enum CloseReason {
    CredentialUnusable,
    /// The balancer would assign the session to another credential now.
    SessionMoves,
    /// The socket has no place in the current configuration.
    ConfigurationChanged,
    ShuttingDown,
    Idle,
    UpstreamClosed,
    /// Upstream sent nothing for too long while a response was awaited.
    UpstreamSilent,
    /// The row of a response was not committed in time.
    NotRecorded,
    ClientViolation(ProtocolViolation),
}

impl CloseReason {
    /// Returns the code of the close frame.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::CredentialUnusable
            | Self::SessionMoves
            | Self::ConfigurationChanged
            | Self::ShuttingDown => RESTART,
            Self::Idle => GOING_AWAY,
            Self::UpstreamClosed | Self::UpstreamSilent | Self::NotRecorded => INTERNAL_ERROR,
            Self::ClientViolation(violation) => violation.code,
        }
    }

    /// Returns the text of the close frame.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::CredentialUnusable => "the credential is used up: connect again",
            Self::SessionMoves => "the session is moving to another credential: connect again",
            Self::ConfigurationChanged => "the gateway's configuration changed: connect again",
            Self::ShuttingDown => "the gateway is shutting down: connect again",
            Self::Idle => "no response was requested for a long time",
            Self::UpstreamClosed => "upstream closed the connection",
            Self::UpstreamSilent => "upstream stopped responding",
            Self::NotRecorded => "the response could not be recorded in time",
            Self::ClientViolation(violation) => violation.reason,
        }
    }
}
