//! Why the gateway closes a socket: the code and the text of its close frame.

use crate::frames::{GOING_AWAY, INTERNAL_ERROR, RESTART};

/// The reason for a close that the gateway initiates.
#[derive(Debug, Clone, Copy)]
pub(super) struct CloseReason {
    pub(super) code: u16,
    pub(super) text: &'static str,
}

pub(super) const USED_UP: CloseReason = CloseReason {
    code: RESTART,
    text: "the credential is used up: connect again",
};
pub(super) const MOVES: CloseReason = CloseReason {
    code: RESTART,
    text: "the session is moving to another credential: connect again",
};
pub(super) const CHANGED: CloseReason = CloseReason {
    code: RESTART,
    text: "the gateway's configuration changed: connect again",
};
pub(super) const STOPS: CloseReason = CloseReason {
    code: RESTART,
    text: "the gateway is shutting down: connect again",
};
pub(super) const IDLE: CloseReason = CloseReason {
    code: GOING_AWAY,
    text: "no response was requested for a long time",
};
pub(super) const BROKE: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "upstream closed the connection",
};
pub(super) const SILENT: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "upstream stopped responding",
};
pub(super) const NOT_RECORDED: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "the response could not be recorded in time",
};
