//! The parsers of what peers send find what other implementations find. The fuzz targets share the
//! oracles.

use proptest::collection::vec;
use proptest::prelude::*;
use tollgate::frames::FrameSender;

#[path = "../../../../fuzz/oracles/frames.rs"]
mod frames_oracle;
#[path = "../../../../fuzz/oracles/json.rs"]
mod json_oracle;

/// A key: wanted, longer, escaped, or any other.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(vec!["a", "bb", "c", "d", "e"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["aa", "b", "", "\\u0061", "c\\n"]).prop_map(str::to_owned),
        1 => "[a-e]{0,3}",
    ]
}

/// A value that is neither an object nor a list.
fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "true", "false", "null", "-0", "1.5e3", "1e400", "12.0"
        ])
        .prop_map(str::to_owned),
        any::<u64>().prop_map(|number| number.to_string()),
        "[a-c {}:,é]{0,8}".prop_map(|text| format!("\"{text}\"")),
        prop::sample::select(vec!["\\\"", "\\\\", "\\u00e9", "\\ud800", "}\\\"]"])
            .prop_map(|text| format!("\"{text}\"")),
        (250_usize..262).prop_map(|length| format!("\"{}\"", "x".repeat(length))),
    ]
}

/// The text of a JSON value, with white space here and there.
fn value() -> impl Strategy<Value = String> {
    scalar().prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            2 => vec((key(), inner.clone()), 0..5).prop_map(|members| object(&members)),
            1 => vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
        ]
    })
}

fn object(members: &[(String, String)]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|(key, value)| format!("\"{key}\"\t: {value} "))
        .collect();
    format!("{{ {}}}", members.join(","))
}

/// The bytes of a frame, mostly of a valid one.
fn frame() -> impl Strategy<Value = (u8, bool, Vec<u8>)> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81_u8, 0x01, 0x00, 0x80, 0x82, 0x88, 0x89, 0x8a]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        vec(any::<u8>(), 0..20),
        "[a-zé𝄞]{0,90}".prop_map(String::into_bytes),
        (100_usize..700).prop_map(|length| vec![b'x'; length]),
        prop::sample::select(vec![1000_u16, 1005, 3000, 5000])
            .prop_map(|code| code.to_be_bytes().to_vec()),
    ];
    (first, prop::bool::weighted(0.95), payload)
}

fn frame_bytes(
    sender: FrameSender,
    (first, follows_masking, payload): &(u8, bool, Vec<u8>),
) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let is_masked = (sender == FrameSender::Client) == *follows_masking;
    let mask_bit = if is_masked { 0x80 } else { 0 };
    let mut bytes = vec![*first];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => bytes.push(mask_bit | length as u8),
        Ok(length) => {
            bytes.push(mask_bit | 126);
            bytes.extend(length.to_be_bytes());
        }
        Err(_) => unreachable!("payloads are short"),
    }
    if is_masked {
        bytes.extend(MASK);
    }
    let mask = if is_masked { MASK } else { [0; 4] };
    let masked = payload
        .iter()
        .enumerate()
        .map(|(index, byte)| byte ^ mask[index % 4]);
    bytes.extend(masked);
    bytes
}

proptest! {
    #[test]
    fn the_json_scanner_finds_what_serde_json_finds(
        members in vec((key(), value()), 0..6),
        size in 1_usize..20,
        cut in any::<prop::sample::Index>(),
    ) {
        let text = object(&members);
        json_oracle::check(text.as_bytes(), size);
        // An object that breaks off.
        json_oracle::check(&text.as_bytes()[..cut.index(text.len())], size);
    }

    #[test]
    fn the_frame_reader_finds_what_an_oracle_finds(
        frames in vec(frame(), 0..8),
        tail in vec(any::<u8>(), 0..20),
        size in 1_usize..20,
    ) {
        for sender in [FrameSender::Client, FrameSender::Server] {
            let mut bytes: Vec<u8> = frames
                .iter()
                .flat_map(|frame| frame_bytes(sender, frame))
                .collect();
            frames_oracle::check(sender, &bytes, size);
            bytes.extend(&tail);
            frames_oracle::check(sender, &bytes, size);
        }
    }
}
