//! Control frames: what a peer's close frame says, and the frames that the gateway itself sends.

use super::header::{CONTROL_BYTES_MAX, FrameOpcode, FrameSender};
use super::mask::apply_mask;
use super::violation::ProtocolViolation;

/// The payload of a control frame, as far as it has arrived.
#[derive(Debug)]
pub(super) struct ControlPayload {
    bytes: [u8; CONTROL_BYTES_MAX],
    len: usize,
}

impl ControlPayload {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; CONTROL_BYTES_MAX],
            len: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a piece.
    ///
    /// # Panics
    /// Panics if the payload exceeds [`CONTROL_BYTES_MAX`], which its header cannot announce.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes[self.len..][..piece.len()].copy_from_slice(piece);
        self.len += piece.len();
    }

    /// Returns the code of a close frame, if it has one (RFC 6455, sections 5.5.1 and 7.4).
    ///
    /// # Errors
    /// The payload is not that of a close frame.
    pub(super) fn close_code(
        &mut self,
        mask: Option<[u8; 4]>,
    ) -> Result<Option<u16>, ProtocolViolation> {
        let payload = &mut self.bytes[..self.len];
        if let Some(mask) = mask {
            apply_mask(payload, mask, 0);
        }
        match payload {
            [] => Ok(None),
            [_] => Err(ProtocolViolation::protocol(
                "a close frame has an incomplete code",
            )),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return Err(ProtocolViolation::protocol(
                        "a close frame has a code that must not be sent",
                    ));
                }
                if std::str::from_utf8(reason).is_err() {
                    return Err(ProtocolViolation::INVALID_UTF8);
                }
                Ok(Some(code))
            }
        }
    }
}

/// Returns a close frame from `sender`. A reason that is too long is cut off.
pub fn close_frame(sender: FrameSender, code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    control_frame(
        sender,
        FrameOpcode::Close,
        &[&code.to_be_bytes(), reason.as_bytes()].concat(),
    )
}

/// Returns a ping without a payload from `sender`.
pub fn ping_frame(sender: FrameSender) -> Vec<u8> {
    control_frame(sender, FrameOpcode::Ping, &[])
}

fn control_frame(sender: FrameSender, opcode: FrameOpcode, payload: &[u8]) -> Vec<u8> {
    let first = 0x80 | opcode.bits();
    let length = payload.len() as u8;
    match sender {
        FrameSender::Server => [&[first, length], payload].concat(),
        FrameSender::Client => {
            let random = uuid::Uuid::new_v4();
            let mut mask = [0; 4];
            mask.copy_from_slice(&random.as_bytes()[..4]);
            let mut payload = payload.to_vec();
            apply_mask(&mut payload, mask, 0);
            [&[first, 0x80 | length], mask.as_slice(), &payload].concat()
        }
    }
}
