//! Violations of the protocol and the codes of close frames (RFC 6455, section 7.4.1).

/// The sender goes away.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A text message is not valid UTF-8.
pub const INVALID_PAYLOAD: u16 = 1007;
/// The peer broke a rule of the gateway.
pub const POLICY_VIOLATION: u16 = 1008;
/// A message is larger than `limits.websocket_message_bytes`.
pub const TOO_BIG: u16 = 1009;
/// Something failed behind the gateway.
pub const INTERNAL_ERROR: u16 = 1011;
/// The client should connect again (IANA's registry: "Service Restart").
pub const RESTART: u16 = 1012;
/// The client should connect again later (IANA's registry: "Try Again Later").
pub const TRY_LATER: u16 = 1013;

/// Why a connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ProtocolViolation {
    /// The code of the close frame.
    pub code: u16,
    /// The public reason, which the close frame carries.
    pub reason: &'static str,
}

impl ProtocolViolation {
    pub(super) const INVALID_UTF8: Self = Self {
        code: INVALID_PAYLOAD,
        reason: "a text message is not valid UTF-8",
    };

    pub(super) const MESSAGE_TOO_BIG: Self = Self {
        code: TOO_BIG,
        reason: "a message is too big",
    };

    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self {
            code: PROTOCOL_ERROR,
            reason,
        }
    }
}
