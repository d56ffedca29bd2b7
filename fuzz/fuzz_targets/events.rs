//! The scanners of messages: any input means the same in any pieces, message after message.
//!
//! `cargo +nightly fuzz run events` runs it in the root of the repository.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::meter::{ClientMessageScan, ResponseCreate, UpstreamMessage, UpstreamMessageScan};
use tollgate::values::clock::Timestamp;
use tollgate::values::exchange::MeteredResponse;

const NOW: Timestamp = Timestamp(1_000_000_000);

/// Separates messages; UTF-8 does not contain it.
const BETWEEN: u8 = 0xff;

fn read(
    messages: &[u8],
    size: usize,
) -> Vec<(
    UpstreamMessage,
    Option<MeteredResponse>,
    Option<ResponseCreate>,
)> {
    let (mut events, mut creates) = (UpstreamMessageScan::default(), ClientMessageScan::default());
    let each = messages.split(|byte| *byte == BETWEEN).map(|message| {
        events.begin();
        creates.begin();
        for piece in message.chunks(size) {
            events.feed(piece);
            creates.feed(piece);
        }
        let event = events.end(|| NOW);
        // As the relay does: the end of a response takes what was found out about it.
        let ended = matches!(
            event,
            UpstreamMessage::Ended(_) | UpstreamMessage::Error { .. }
        );
        (
            event,
            ended.then(|| events.finish_response()),
            creates.end(),
        )
    });
    each.collect()
}

fuzz_target!(|input: &[u8]| {
    let [size, messages @ ..] = input else { return };
    assert_eq!(
        read(messages, usize::from(*size).max(1)),
        read(messages, usize::MAX)
    );
});
