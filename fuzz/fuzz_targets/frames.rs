//! The frame reader: it finds what an oracle with tungstenite's parser of headers finds, in any
//! pieces.
//!
//! `cargo +nightly fuzz run frames` runs it in the root of the repository.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::frames::FrameSender;

#[path = "../oracles/frames.rs"]
mod oracle;

fuzz_target!(|input: &[u8]| {
    let [choice, size, frames @ ..] = input else {
        return;
    };
    let sender = if choice & 1 == 0 {
        FrameSender::Client
    } else {
        FrameSender::Server
    };
    oracle::check(sender, frames, usize::from(*size));
});
