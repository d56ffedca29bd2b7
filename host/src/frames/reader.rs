//! The reader of one side's frames: where messages begin and end, and whether the sender keeps the
//! protocol.

use super::control::ControlPayload;
use super::header::{FrameHeader, FrameOpcode, FrameSender, HEADER_BYTES_MAX};
use super::mask::apply_mask;
use super::utf8::Utf8Check;
use super::violation::ProtocolViolation;

/// A masked payload is unmasked in pieces of this size.
const UNMASKED_BYTES: usize = 1024;

/// Whether a message is text or binary (RFC 6455, section 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// A text message: its payload must be UTF-8.
    Text,
    /// A binary message: its payload may be anything.
    Binary,
}

/// What a reader finds in its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramePart<'a> {
    /// The header of a message's first frame was read.
    Begin(MessageKind),
    /// A piece of a message, unmasked.
    Data(&'a [u8]),
    /// The message is complete.
    End,
    /// A complete ping frame.
    Ping,
    /// A complete pong frame.
    Pong,
    /// A close frame: its sender sends nothing more.
    Close {
        /// The code, if the frame has one.
        code: Option<u16>,
    },
}

/// Whether a reader continues after a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadControl {
    /// The reader continues with the next part of its input.
    Continue,
    /// The reader stops and leaves the rest of its input. It obeys after a part that ends a frame.
    Pause,
}

/// How far a reader came in its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameProgress {
    /// The number of bytes that were read.
    pub read: usize,
    /// Where in the input the open message began, or the last one if none is open; 0 if it began
    /// before the input.
    pub message_at: usize,
}

/// An input that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenInput {
    /// The number of valid bytes before the frame that breaks the protocol.
    pub valid_bytes: usize,
    /// What is wrong with that frame.
    pub violation: ProtocolViolation,
}

impl From<BrokenInput> for ProtocolViolation {
    fn from(broken: BrokenInput) -> Self {
        broken.violation
    }
}

/// A reader of the frames that one side sends.
#[derive(Debug)]
pub struct FrameReader {
    sender: FrameSender,
    message_bytes_max: u64,
    state: ReaderState,
    control: ControlPayload,
    message: Option<OpenMessage>,
    /// The sender's close frame was read.
    is_closed: bool,
    /// Set at the first violation. Nothing is read after it.
    violation: Option<ProtocolViolation>,
}

#[derive(Debug)]
struct OpenMessage {
    bytes: u64,
    /// Present for a text message.
    utf8: Option<Utf8Check>,
}

#[derive(Debug)]
enum ReaderState {
    /// Within a header, of which `len` bytes have arrived; between two frames if there are none.
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        len: usize,
    },
    Payload(OpenPayload),
}

impl ReaderState {
    fn new() -> Self {
        Self::Header {
            bytes: [0; HEADER_BYTES_MAX],
            len: 0,
        }
    }
}

#[derive(Debug)]
struct OpenPayload {
    opcode: FrameOpcode,
    is_final: bool,
    bytes_left: u64,
    mask: Option<[u8; 4]>,
    /// The offset of the next byte in the mask.
    mask_offset: usize,
}

impl FrameReader {
    /// Creates a reader of what `sender` sends, in messages of at most `message_bytes_max`.
    pub fn new(sender: FrameSender, message_bytes_max: u64) -> Self {
        Self {
            sender,
            message_bytes_max,
            state: ReaderState::new(),
            control: ControlPayload::new(),
            message: None,
            is_closed: false,
            violation: None,
        }
    }

    /// Whether the sender's close frame was read.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether the sender broke the protocol: nothing that it sends can be understood any more.
    pub fn is_broken(&self) -> bool {
        self.violation.is_some()
    }

    /// Whether no frame is open, so that the gateway may insert a frame.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, ReaderState::Header { len: 0, .. })
    }

    /// Whether a message is open.
    pub fn is_in_message(&self) -> bool {
        self.message.is_some()
    }

    /// Reads `input` to its end, to the sender's close frame, or until `on_part` pauses.
    ///
    /// # Errors
    /// The sender breaks the protocol, or did so before.
    pub fn read(
        &mut self,
        input: &[u8],
        on_part: impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<FrameProgress, BrokenInput> {
        // Where the open frame began in the input; 0 if it began before.
        let mut frame_at = 0;
        let read = match self.violation {
            None => self.read_frames(input, &mut frame_at, on_part),
            Some(violation) => Err(violation),
        };
        read.map_err(|violation| {
            self.violation = Some(violation);
            BrokenInput {
                valid_bytes: frame_at,
                violation,
            }
        })
    }

    fn read_frames(
        &mut self,
        input: &[u8],
        frame_at: &mut usize,
        mut on_part: impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<FrameProgress, ProtocolViolation> {
        let mut read = 0;
        let mut message_at = 0;
        while read < input.len() && !self.is_closed {
            if self.is_between_frames() {
                *frame_at = read;
                if self.message.is_none() {
                    message_at = read;
                }
            }
            if let ReaderState::Header { .. } = self.state {
                let (header, header_bytes) = self.read_header(&input[read..])?;
                read += header_bytes;
                let Some(header) = header else { continue };
                self.begin_frame(&header, &mut on_part)?;
            }
            let (control, payload_bytes) = self.read_payload(&input[read..], &mut on_part)?;
            read += payload_bytes;
            if control == ReadControl::Pause {
                break;
            }
        }
        Ok(FrameProgress { read, message_at })
    }

    /// Reads a header or a part of it from `input`, which is not empty. Returns how many bytes it
    /// took.
    fn read_header(
        &mut self,
        input: &[u8],
    ) -> Result<(Option<FrameHeader>, usize), ProtocolViolation> {
        let ReaderState::Header { bytes, len } = &mut self.state else {
            return Ok((None, 0));
        };
        // The usual case: the whole header is in the input.
        if *len == 0
            && let Some(header) = FrameHeader::parse(input, self.sender)?
        {
            let header_bytes = header.header_bytes;
            return Ok((Some(header), header_bytes));
        }
        bytes[*len] = input[0];
        *len += 1;
        Ok((FrameHeader::parse(&bytes[..*len], self.sender)?, 1))
    }

    fn begin_frame(
        &mut self,
        header: &FrameHeader,
        on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<(), ProtocolViolation> {
        match header.opcode {
            FrameOpcode::Text => self.begin_message(MessageKind::Text, on_part)?,
            FrameOpcode::Binary => self.begin_message(MessageKind::Binary, on_part)?,
            FrameOpcode::Continuation if self.message.is_none() => {
                return Err(ProtocolViolation::protocol(
                    "a continuation frame has no message to continue",
                ));
            }
            FrameOpcode::Continuation
            | FrameOpcode::Close
            | FrameOpcode::Ping
            | FrameOpcode::Pong => {}
        }
        if !header.opcode.is_control()
            && let Some(message) = &mut self.message
        {
            message.bytes = message.bytes.saturating_add(header.payload_bytes);
            if message.bytes > self.message_bytes_max {
                return Err(ProtocolViolation::MESSAGE_TOO_BIG);
            }
        }
        self.control.clear();
        self.state = ReaderState::Payload(OpenPayload {
            opcode: header.opcode,
            is_final: header.is_final,
            bytes_left: header.payload_bytes,
            mask: header.mask,
            mask_offset: 0,
        });
        Ok(())
    }

    fn begin_message(
        &mut self,
        kind: MessageKind,
        on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<(), ProtocolViolation> {
        if self.message.is_some() {
            return Err(ProtocolViolation::protocol(
                "a message began within another",
            ));
        }
        self.message = Some(OpenMessage {
            bytes: 0,
            utf8: match kind {
                MessageKind::Text => Some(Utf8Check::default()),
                MessageKind::Binary => None,
            },
        });
        on_part(FramePart::Begin(kind));
        Ok(())
    }

    /// Reads the open payload as far as it is in `input`. Returns how many bytes it took.
    fn read_payload(
        &mut self,
        input: &[u8],
        on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<(ReadControl, usize), ProtocolViolation> {
        let ReaderState::Payload(payload) = &mut self.state else {
            return Ok((ReadControl::Continue, 0));
        };
        let length = payload.bytes_left.min(input.len() as u64) as usize;
        payload.bytes_left -= length as u64;
        let is_complete = payload.bytes_left == 0;
        if payload.opcode.is_control() {
            self.control.push(&input[..length]);
        } else {
            read_data(payload, self.message.as_mut(), &input[..length], on_part)?;
        }
        let control = if is_complete {
            self.end_frame(on_part)?
        } else {
            ReadControl::Continue
        };
        Ok((control, length))
    }

    fn end_frame(
        &mut self,
        on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
    ) -> Result<ReadControl, ProtocolViolation> {
        let state = std::mem::replace(&mut self.state, ReaderState::new());
        let ReaderState::Payload(payload) = state else {
            return Ok(ReadControl::Continue);
        };
        match payload.opcode {
            FrameOpcode::Ping => Ok(on_part(FramePart::Ping)),
            FrameOpcode::Pong => Ok(on_part(FramePart::Pong)),
            FrameOpcode::Close => {
                let code = self.control.close_code(payload.mask)?;
                self.is_closed = true;
                Ok(on_part(FramePart::Close { code }))
            }
            FrameOpcode::Continuation | FrameOpcode::Text | FrameOpcode::Binary
                if payload.is_final =>
            {
                let utf8 = self.message.take().and_then(|message| message.utf8);
                if utf8.is_some_and(|utf8| !utf8.is_complete()) {
                    return Err(ProtocolViolation::INVALID_UTF8);
                }
                Ok(on_part(FramePart::End))
            }
            FrameOpcode::Continuation | FrameOpcode::Text | FrameOpcode::Binary => {
                Ok(ReadControl::Continue)
            }
        }
    }
}

/// Reads a piece of a message's payload.
fn read_data(
    payload: &mut OpenPayload,
    message: Option<&mut OpenMessage>,
    piece: &[u8],
    on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
) -> Result<(), ProtocolViolation> {
    let mut utf8 = message.and_then(|message| message.utf8.as_mut());
    let Some(mask) = payload.mask else {
        return pass_data(piece, &mut utf8, on_part);
    };
    let mut buffer = [0; UNMASKED_BYTES];
    for piece in piece.chunks(UNMASKED_BYTES) {
        let unmasked = &mut buffer[..piece.len()];
        unmasked.copy_from_slice(piece);
        payload.mask_offset = apply_mask(unmasked, mask, payload.mask_offset);
        pass_data(unmasked, &mut utf8, on_part)?;
    }
    Ok(())
}

fn pass_data(
    data: &[u8],
    utf8: &mut Option<&mut Utf8Check>,
    on_part: &mut impl FnMut(FramePart<'_>) -> ReadControl,
) -> Result<(), ProtocolViolation> {
    if let Some(utf8) = utf8
        && !utf8.feed(data)
    {
        return Err(ProtocolViolation::INVALID_UTF8);
    }
    on_part(FramePart::Data(data));
    Ok(())
}
