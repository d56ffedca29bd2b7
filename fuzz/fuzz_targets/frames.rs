//! The frame reader: whatever is sent, in whatever pieces, is read the same, and what it lets through is sound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::frames::{Broken, Frames, Next, Part, Sender, Violation};

/// Small, so that the bound is met often.
const MESSAGE_BYTES_MAX: u64 = 1024;

/// What was read, with a message's pieces put together.
#[derive(Debug, PartialEq)]
enum Found {
    Begun { text: bool },
    Data(Vec<u8>),
    Ended,
    Ping,
    Pong,
    Closed(Option<u16>),
}

fn read(sender: Sender, input: &[u8], size: usize) -> (Vec<Found>, Option<Violation>) {
    let mut frames = Frames::new(sender, MESSAGE_BYTES_MAX);
    let mut found = Vec::new();
    for piece in input.chunks(size) {
        let mut rest = piece;
        // A pause leaves the rest, which goes on where it stopped.
        while !rest.is_empty() && !frames.is_closed() {
            let progress = match frames.read(rest, |part| note(&mut found, part)) {
                Ok(progress) => progress,
                Err(Broken { sound, violation }) => {
                    assert!(sound < rest.len(), "{sound} of {}", rest.len());
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

fn note(found: &mut Vec<Found>, part: Part<'_>) -> Next {
    match part {
        Part::Begin { text } => found.push(Found::Begun { text }),
        Part::Data(piece) => match found.last_mut() {
            Some(Found::Data(data)) => data.extend_from_slice(piece),
            _ if piece.is_empty() => {}
            _ => found.push(Found::Data(piece.to_vec())),
        },
        Part::End => found.push(Found::Ended),
        Part::Ping => found.push(Found::Ping),
        Part::Pong => found.push(Found::Pong),
        Part::Close { code } => found.push(Found::Closed(code)),
    }
    match part {
        Part::End | Part::Close { .. } => Next::Pause,
        Part::Begin { .. } | Part::Data(_) | Part::Ping | Part::Pong => Next::Go,
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
        Sender::Client
    } else {
        Sender::Server
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
