//! The scanners of messages: whatever is sent, in whatever pieces, means the same, message after message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::meter::{Create, CreateScan, Event, EventScan};
use tollgate::values::clock::Timestamp;
use tollgate::values::exchange::Metered;

const NOW: Timestamp = Timestamp(1_000_000_000);

/// Stands between messages; no UTF-8 has it.
const BETWEEN: u8 = 0xff;

fn read(messages: &[u8], size: usize) -> Vec<(Event, Option<Metered>, Option<Create>)> {
    let (mut events, mut creates) = (EventScan::default(), CreateScan::default());
    let each = messages.split(|byte| *byte == BETWEEN).map(|message| {
        events.begin();
        creates.begin();
        for piece in message.chunks(size) {
            events.feed(piece);
            creates.feed(piece);
        }
        let event = events.end(|| NOW);
        // As the relay does: with what ends a response goes what was found of it.
        let ended = matches!(event, Event::Ended(_) | Event::Error { .. });
        (event, ended.then(|| events.take_metered()), creates.end())
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
