//! Why the gateway closes a socket: the code and the text of its close frame.

use crate::frames::{GOING_AWAY, INTERNAL_ERROR, RESTART};

/// What closes a socket from here.
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
    text: "the session moves to another credential: connect again",
};
pub(super) const CHANGED: CloseReason = CloseReason {
    code: RESTART,
    text: "the gateway's configuration changed: connect again",
};
pub(super) const STOPS: CloseReason = CloseReason {
    code: RESTART,
    text: "the gateway stops: connect again",
};
pub(super) const IDLE: CloseReason = CloseReason {
    code: GOING_AWAY,
    text: "nothing was asked for a long time",
};
pub(super) const BROKE: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "upstream broke off",
};
pub(super) const SILENT: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "upstream fell silent",
};
pub(super) const NOT_RECORDED: CloseReason = CloseReason {
    code: INTERNAL_ERROR,
    text: "the ledger did not take the response's row in time",
};
