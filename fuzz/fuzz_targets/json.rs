//! The JSON scanner: it finds what serde_json finds, in any pieces.
//!
//! `cargo +nightly fuzz run json` runs it in the root of the repository.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../oracles/json.rs"]
mod oracle;

fuzz_target!(|input: &[u8]| {
    let [size, json @ ..] = input else { return };
    oracle::check(json, usize::from(*size));
});
