//! The frame reader: whatever is sent, in whatever pieces, is read the same, and what it lets through is valid_bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::frames::{
    BrokenInput, FramePart, FrameReader, FrameSender, MessageKind, ProtocolViolation, ReadControl,
};

/// Small, so that the bound is met often.
const MESSAGE_BYTES_MAX: u64 = 1024;

/// What was read, with a message's pieces put together.
#[derive(Debug, PartialEq)]
enum Found {
    Begun(MessageKind),
    Data(Vec<u8>),
    Ended,
    Ping,
    Pong,
    Closed(Option<u16>),
}

fn read(sender: FrameSender, input: &[u8], size: usize) -> (Vec<Found>, Option<ProtocolViolation>) {
    let mut frames = FrameReader::new(sender, MESSAGE_BYTES_MAX);
    let mut found = Vec::new();
    for piece in input.chunks(size) {
        let mut rest = piece;
        // A pause leaves the rest, which goes on where it stopped.
        while !rest.is_empty() && !frames.is_closed() {
            let progress = match frames.read(rest, |part| note(&mut found, part)) {
                Ok(progress) => progress,
                Err(BrokenInput { valid_bytes, violation }) => {
                    assert!(valid_bytes < rest.len(), "{valid_bytes} of {}", rest.len());
                    return (found, Some(violation));
                }
            };
            assert!(
                progress.read > 0 && progress.read <= rest.len(),
                "{progress:?} of {}",
                rest.len()
            );
            assert!(progress.message_at <= progress.read, "{progress:?}");
            rest = &rest[progress.read..];
        }
    }
    (found, None)
}

fn note(found: &mut Vec<Found>, part: FramePart<'_>) -> ReadControl {
    match part {
        FramePart::Begin(kind) => found.push(Found::Begun(kind)),
        FramePart::Data(piece) => match found.last_mut() {
            Some(Found::Data(data)) => data.extend_from_slice(piece),
            _ if piece.is_empty() => {}
            _ => found.push(Found::Data(piece.to_vec())),
        },
        FramePart::End => found.push(Found::Ended),
        FramePart::Ping => found.push(Found::Ping),
        FramePart::Pong => found.push(Found::Pong),
        FramePart::Close { code } => found.push(Found::Closed(code)),
    }
    match part {
        FramePart::End | FramePart::Close { .. } => ReadControl::Pause,
        FramePart::Begin(_) | FramePart::Data(_) | FramePart::Ping | FramePart::Pong => ReadControl::Continue,
    }
}

/// Messages begin and end in turn, keep to their bound, and those of text are UTF-8.
fn check(found: &[Found]) {
    let mut message: Option<(bool, Vec<u8>)> = None;
    for part in found {
        match part {
            Found::Begun { text } => assert!(
                message.replace((*text, Vec::new())).is_none(),
                "begun twice"
            ),
            Found::Data(data) => message
                .as_mut()
                .expect("data of a message")
                .1
                .extend_from_slice(data),
            Found::Ended => {
                let (text, data) = message.take().expect("the end of a message");
                assert!(
                    data.len() as u64 <= MESSAGE_BYTES_MAX,
                    "{} bytes",
                    data.len()
                );
                assert!(!text || std::str::from_utf8(&data).is_ok(), "{data:?}");
            }
            Found::Ping | Found::Pong | Found::Closed(_) => {}
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, size, frames @ ..] = input else {
        return;
    };
    let sender = if choice & 1 == 0 {
        FrameSender::Client
    } else {
        FrameSender::Server
    };
    let whole = read(sender, frames, usize::MAX);
    check(&whole.0);
    let (pieces, violation) = read(sender, frames, usize::from(*size).max(1));
    // What is told of a broken message before it is found broken depends on the pieces.
    assert_eq!(violation, whole.1);
    if violation.is_none() {
        assert_eq!(pieces, whole.0);
    }
});
