//! The header of a frame (RFC 6455, section 5.2) and the rules that it must keep.

use super::violation::ProtocolViolation;

/// The longest header: two bytes, a length of eight bytes and a mask of four.
pub(super) const HEADER_BYTES_MAX: usize = 14;

/// The longest payload of a control frame (RFC 6455, section 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// The bit of the second byte that says that the payload is masked.
const MASK_BIT: u8 = 0x80;

/// The side that sends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSender {
    /// The client, which masks its frames.
    Client,
    /// The server, which does not.
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameOpcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl FrameOpcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    pub(super) fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    pub(super) fn is_control(self) -> bool {
        match self {
            Self::Close | Self::Ping | Self::Pong => true,
            Self::Continuation | Self::Text | Self::Binary => false,
        }
    }
}

/// The fields of a header, after its rules were checked.
#[derive(Debug)]
pub(super) struct FrameHeader {
    pub(super) opcode: FrameOpcode,
    pub(super) is_final: bool,
    pub(super) payload_bytes: u64,
    pub(super) mask: Option<[u8; 4]>,
    /// The length of the header itself.
    pub(super) header_bytes: usize,
}

impl FrameHeader {
    /// Reads the header at the start of `input`. Returns `None` if `input` ends before the header
    /// does.
    ///
    /// # Errors
    /// The header breaks a rule. As much of it as is there is checked.
    pub(super) fn parse(
        input: &[u8],
        sender: FrameSender,
    ) -> Result<Option<Self>, ProtocolViolation> {
        let [first, rest @ ..] = input else {
            return Ok(None);
        };
        let opcode = parse_first_byte(*first)?;
        let is_final = first & 0x80 != 0;
        let [second, rest @ ..] = rest else {
            return Ok(None);
        };
        let is_masked = second & MASK_BIT != 0;
        check_mask_bit(*second, sender)?;
        let short = second & 0x7f;
        if opcode.is_control() && (usize::from(short) > CONTROL_BYTES_MAX || !is_final) {
            return Err(ProtocolViolation::protocol(
                "a control frame is too long or fragmented",
            ));
        }
        let Some((payload_bytes, rest)) = split_length(short, rest) else {
            return Ok(None);
        };
        check_length(short, payload_bytes)?;
        let (mask, rest) = if is_masked {
            let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
                return Ok(None);
            };
            (Some(*mask), rest)
        } else {
            (None, rest)
        };
        Ok(Some(Self {
            opcode,
            is_final,
            payload_bytes,
            mask,
            header_bytes: input.len() - rest.len(),
        }))
    }
}

fn parse_first_byte(first: u8) -> Result<FrameOpcode, ProtocolViolation> {
    if first & 0x70 != 0 {
        return Err(ProtocolViolation::protocol("a reserved bit is set"));
    }
    FrameOpcode::from_bits(first & 0x0f).ok_or(ProtocolViolation::protocol("an opcode is reserved"))
}

/// Checks the mask bit in the second byte: a client masks its frames, a server does not.
fn check_mask_bit(second: u8, sender: FrameSender) -> Result<(), ProtocolViolation> {
    match (sender, second & MASK_BIT) {
        (FrameSender::Client, 0) => Err(ProtocolViolation::protocol(
            "a frame from the client is not masked",
        )),
        (FrameSender::Server, MASK_BIT) => Err(ProtocolViolation::protocol(
            "a frame from the server is masked",
        )),
        (FrameSender::Client | FrameSender::Server, _) => Ok(()),
    }
}

/// Splits the payload's length off `rest`. Returns `None` if it is incomplete.
fn split_length(short: u8, rest: &[u8]) -> Option<(u64, &[u8])> {
    match short {
        126 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            Some((u64::from(u16::from_be_bytes(*length)), rest))
        }
        127 => {
            let (length, rest) = rest.split_first_chunk::<8>()?;
            Some((u64::from_be_bytes(*length), rest))
        }
        short => Some((u64::from(short), rest)),
    }
}

/// Checks that the length has its shortest form, and that its highest bit is not set.
fn check_length(short: u8, length: u64) -> Result<(), ProtocolViolation> {
    let is_shortest = match short {
        126 => length > 125,
        127 => length > 0xffff && length >> 63 == 0,
        _ => true,
    };
    if is_shortest {
        Ok(())
    } else {
        Err(ProtocolViolation::protocol(
            "a length is not in its shortest form",
        ))
    }
}
