//! What the frame reader must find in the bytes of one side, with tungstenite's parser of headers.
//! The fuzz target and the tests share this file.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tollgate::frames::{
    BrokenInput, FramePart, FrameReader, FrameSender, INVALID_PAYLOAD, MessageKind, PROTOCOL_ERROR,
    ReadControl, TOO_BIG,
};

/// Small, so that inputs often reach the limit.
const MESSAGE_BYTES_MAX: u64 = 1024;

/// What was found, with the pieces of a message put together.
#[derive(Debug, Clone, PartialEq)]
enum FoundPart {
    Begin(MessageKind),
    Data(Vec<u8>),
    End,
    Ping,
    Pong,
    Close(Option<u16>),
}

/// The parts of an input, and the code of the violation that ends them.
#[derive(Debug, Clone, PartialEq, Default)]
struct FoundParts {
    parts: Vec<FoundPart>,
    violation: Option<u16>,
}

impl FoundParts {
    fn push(&mut self, part: FoundPart) {
        match (self.parts.last_mut(), part) {
            (Some(FoundPart::Data(data)), FoundPart::Data(piece)) => data.extend(piece),
            (_, FoundPart::Data(piece)) if piece.is_empty() => {}
            (_, part) => self.parts.push(part),
        }
    }
}

/// Checks that the reader finds what the oracle finds in `input`, and the same in pieces of `size`.
///
/// # Panics
/// Panics if it does not.
pub(crate) fn check(sender: FrameSender, input: &[u8], size: usize) {
    let whole = read(sender, input, usize::MAX);
    let pieces = read(sender, input, size);
    assert_eq!(pieces.violation, whole.violation, "in pieces of {size}");
    let expected = oracle(sender, input);
    match (&expected.violation, &whole.violation) {
        // How much of a broken frame is passed on depends on the pieces.
        (Some(expected), Some(found)) => assert_eq!(found, expected),
        (None, None) => {
            assert_eq!(whole.parts, expected.parts);
            assert_eq!(pieces.parts, expected.parts);
        }
        // tungstenite does not look at a header before it is complete.
        (None, Some(code)) => {
            assert_eq!(*code, PROTOCOL_ERROR);
            assert!(ends_within_header(sender, input), "only the reader rejects");
        }
        (Some(_), None) => panic!("only the oracle rejects: {expected:?}"),
    }
}

/// Reads `input` with the reader, in pieces of `size`, with pauses.
fn read(sender: FrameSender, input: &[u8], size: usize) -> FoundParts {
    let mut reader = FrameReader::new(sender, MESSAGE_BYTES_MAX);
    let mut found = FoundParts::default();
    for piece in input.chunks(size.max(1)) {
        let mut rest = piece;
        // A pause leaves the rest of a piece.
        while !rest.is_empty() && !reader.is_closed() {
            match reader.read(rest, |part| record(&mut found, part)) {
                Ok(progress) => {
                    assert!(progress.read > 0 && progress.read <= rest.len());
                    assert!(progress.message_at <= progress.read, "{progress:?}");
                    rest = &rest[progress.read..];
                }
                Err(BrokenInput {
                    valid_bytes,
                    violation,
                }) => {
                    assert!(valid_bytes < rest.len(), "{valid_bytes} of {}", rest.len());
                    found.violation = Some(violation.code);
                    return found;
                }
            }
        }
    }
    found
}

fn record(found: &mut FoundParts, part: FramePart<'_>) -> ReadControl {
    let (part, control) = match part {
        FramePart::Begin(kind) => (FoundPart::Begin(kind), ReadControl::Continue),
        FramePart::Data(piece) => (FoundPart::Data(piece.to_vec()), ReadControl::Continue),
        FramePart::Ping => (FoundPart::Ping, ReadControl::Continue),
        FramePart::Pong => (FoundPart::Pong, ReadControl::Continue),
        FramePart::End => (FoundPart::End, ReadControl::Pause),
        FramePart::Close { code } => (FoundPart::Close(code), ReadControl::Pause),
    };
    found.push(part);
    control
}

/// Whether what is left of `input` after its complete frames is too short for a header.
fn ends_within_header(sender: FrameSender, input: &[u8]) -> bool {
    let mut rest = input;
    loop {
        let mut cursor = Cursor::new(rest);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => return true,
            Err(_) => return false,
            Ok(Some((header, length))) => {
                if check_header(sender, &header, length, cursor.position()).is_err() {
                    return false;
                }
                let at = cursor.position().saturating_add(length);
                let Some(next) = usize::try_from(at).ok().and_then(|at| rest.get(at..)) else {
                    return false;
                };
                rest = next;
            }
        }
    }
}

/// Reads `input` as RFC 6455 says, frame by frame.
fn oracle(sender: FrameSender, input: &[u8]) -> FoundParts {
    let mut found = FoundParts::default();
    let mut message = None;
    let mut rest = input;
    while !rest.is_empty() {
        match frame(sender, rest, &mut message, &mut found) {
            Ok(Some(next)) => rest = next,
            Ok(None) => break,
            Err(code) => {
                found.violation = Some(code);
                break;
            }
        }
    }
    found
}

struct OracleMessage {
    kind: MessageKind,
    announced_bytes: u64,
    data: Vec<u8>,
}

/// Reads one frame. Returns what follows it, and `None` if the frame is incomplete or the last one.
fn frame<'a>(
    sender: FrameSender,
    input: &'a [u8],
    message: &mut Option<OracleMessage>,
    found: &mut FoundParts,
) -> Result<Option<&'a [u8]>, u16> {
    let mut cursor = Cursor::new(input);
    let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|_| PROTOCOL_ERROR)?
    else {
        return Ok(None);
    };
    check_header(sender, &header, length, cursor.position())?;
    let rest = &input[cursor.position() as usize..];
    let available = usize::try_from(length).map_or(rest.len(), |length| length.min(rest.len()));
    let mut payload = rest[..available].to_vec();
    if let Some(mask) = header.mask {
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[index % 4];
        }
    }
    let is_complete = available as u64 == length;
    match header.opcode {
        OpCode::Control(control) => {
            if !is_complete {
                return Ok(None);
            }
            match control {
                Control::Ping => found.push(FoundPart::Ping),
                Control::Pong => found.push(FoundPart::Pong),
                Control::Close | Control::Reserved(_) => {
                    found.push(FoundPart::Close(close_code(&payload)?));
                    return Ok(None);
                }
            }
        }
        OpCode::Data(data) => {
            begin_data(data, length, message, found)?;
            let open = message.as_mut().ok_or(PROTOCOL_ERROR)?;
            open.data.extend_from_slice(&payload);
            let is_end = is_complete && header.is_final;
            check_text(open, is_end)?;
            found.push(FoundPart::Data(payload));
            if is_end {
                *message = None;
                found.push(FoundPart::End);
            }
        }
    }
    Ok(is_complete.then_some(&rest[available..]))
}

fn check_header(
    sender: FrameSender,
    header: &FrameHeader,
    length: u64,
    header_bytes: u64,
) -> Result<(), u16> {
    let is_control = matches!(header.opcode, OpCode::Control(_));
    let is_valid = !header.rsv1
        && !header.rsv2
        && !header.rsv3
        && header.mask.is_some() == (sender == FrameSender::Client)
        && header_bytes == header.len(length) as u64
        && length >> 63 == 0
        && (!is_control || header.is_final && length <= 125);
    if is_valid {
        Ok(())
    } else {
        Err(PROTOCOL_ERROR)
    }
}

fn begin_data(
    data: Data,
    length: u64,
    message: &mut Option<OracleMessage>,
    found: &mut FoundParts,
) -> Result<(), u16> {
    let kind = match data {
        Data::Text => Some(MessageKind::Text),
        Data::Binary => Some(MessageKind::Binary),
        Data::Continue | Data::Reserved(_) => None,
    };
    if kind.is_some() == message.is_some() {
        return Err(PROTOCOL_ERROR);
    }
    if let Some(kind) = kind {
        found.push(FoundPart::Begin(kind));
        *message = Some(OracleMessage {
            kind,
            announced_bytes: 0,
            data: Vec::new(),
        });
    }
    if let Some(message) = message {
        message.announced_bytes = message.announced_bytes.saturating_add(length);
        if message.announced_bytes > MESSAGE_BYTES_MAX {
            return Err(TOO_BIG);
        }
    }
    Ok(())
}

/// Checks that the text so far can be part of a valid one, and that it is one at its end.
fn check_text(message: &OracleMessage, is_end: bool) -> Result<(), u16> {
    if message.kind == MessageKind::Binary {
        return Ok(());
    }
    match std::str::from_utf8(&message.data) {
        Ok(_) => Ok(()),
        Err(error) if error.error_len().is_none() && !is_end => Ok(()),
        Err(_) => Err(INVALID_PAYLOAD),
    }
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, u16> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(PROTOCOL_ERROR),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(PROTOCOL_ERROR),
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(INVALID_PAYLOAD),
    }
}
