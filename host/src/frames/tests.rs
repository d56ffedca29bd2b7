use proptest::prelude::*;

use super::mask::apply_mask;
use super::*;

/// Reads the bytes of one side in pieces of `size`, and returns what the reader found.
fn read(sender: FrameSender, bytes: &[u8], size: usize) -> Result<Vec<String>, ProtocolViolation> {
    let mut frames = FrameReader::new(sender, 1 << 20);
    let mut found: Vec<String> = Vec::new();
    let mut text = Vec::new();
    for piece in bytes.chunks(size.max(1)) {
        let mut at = 0;
        while at < piece.len() && !frames.is_closed() {
            let progress = frames.read(&piece[at..], |part| {
                match part {
                    FramePart::Begin(MessageKind::Text) => found.push("text".to_owned()),
                    FramePart::Begin(MessageKind::Binary) => found.push("binary".to_owned()),
                    FramePart::Data(data) => text.extend_from_slice(data),
                    FramePart::End => {
                        found.push(String::from_utf8_lossy(&std::mem::take(&mut text)).into_owned())
                    }
                    FramePart::Ping => found.push("ping".to_owned()),
                    FramePart::Pong => found.push("pong".to_owned()),
                    FramePart::Close { code } => found.push(format!("close {code:?}")),
                }
                ReadControl::Continue
            })?;
            at += progress.read;
        }
    }
    Ok(found)
}

/// Returns a frame from a server.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        medium @ 126..=0xffff => {
            frame.push(126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// Returns the same frame from a client.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame(first, payload);
    let at = frame.len() - payload.len();
    let mask = [0x12, 0x34, 0x56, 0x78];
    apply_mask(&mut frame[at..], mask, 0);
    frame[1] |= 0x80;
    frame.splice(at..at, mask);
    frame
}

#[track_caller]
fn check(bytes: &[u8], expected: &[&str]) {
    for size in [1, 2, 3, 7, 64, 1 << 20] {
        assert_eq!(
            read(FrameSender::Server, bytes, size).expect("valid frames"),
            expected,
            "in pieces of {size}"
        );
    }
}

#[track_caller]
fn check_wrong(sender: FrameSender, bytes: &[u8], code: u16) {
    for size in [1, 3, 1 << 20] {
        let violation = read(sender, bytes, size).expect_err("a violation");
        assert_eq!(violation.code, code, "{violation}, in pieces of {size}");
    }
}

#[test]
fn messages_are_complete_and_in_order_in_any_pieces() {
    let long = "x".repeat(70_000);
    let all = [
        frame(0x81, b"hello"),
        frame(0x82, b""),
        frame(0x01, b"a"),
        frame(0x89, b"ping"),
        frame(0x00, "\u{e9}".as_bytes()),
        frame(0x8a, b""),
        frame(0x80, b"c"),
        frame(0x81, &b"m".repeat(200)),
        frame(0x81, long.as_bytes()),
        frame(0x88, &[0x03, 0xe8, b'b', b'y', b'e']),
        frame(0x81, b"after the end"),
    ]
    .concat();
    let medium = "m".repeat(200);
    check(
        &all,
        &[
            "text",
            "hello",
            "binary",
            "",
            "text",
            "ping",
            "pong",
            "aéc",
            "text",
            &medium,
            "text",
            &long,
            "close Some(1000)",
        ],
    );
}

#[test]
fn frames_from_a_client_are_unmasked() {
    let text = "masked, and longer than one piece: ".repeat(100);
    let all = [
        masked(0x01, text.as_bytes()),
        masked(0x80, b"!"),
        masked(0x88, b""),
    ]
    .concat();
    for size in [1, 5, 1000, 1 << 20] {
        let found = read(FrameSender::Client, &all, size).expect("valid frames");
        assert_eq!(
            found,
            [
                "text".to_owned(),
                format!("{text}!"),
                "close None".to_owned()
            ]
        );
    }
}

#[test]
fn a_violation_has_the_code_that_the_rfc_demands() {
    let server = FrameSender::Server;
    check_wrong(server, &frame(0xc1, b""), 1002);
    check_wrong(server, &frame(0x83, b""), 1002);
    check_wrong(server, &frame(0x8b, b""), 1002);
    check_wrong(server, &frame(0x80, b"x"), 1002);
    check_wrong(
        server,
        &[frame(0x01, b"x"), frame(0x81, b"y")].concat(),
        1002,
    );
    check_wrong(server, &frame(0x89, &[0; 126]), 1002);
    check_wrong(server, &frame(0x09, b""), 1002);
    check_wrong(server, &masked(0x81, b"x"), 1002);
    check_wrong(FrameSender::Client, &frame(0x81, b"x"), 1002);
    check_wrong(server, &[0x81, 126, 0, 125], 1002);
    check_wrong(server, &[0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002);
    check_wrong(server, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002);
    check_wrong(server, &frame(0x88, b"x"), 1002);
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        check_wrong(server, &frame(0x88, &code.to_be_bytes()), 1002);
    }
    check_wrong(server, &frame(0x88, &[0x03, 0xe8, 0xff]), 1007);
    check_wrong(server, &frame(0x81, b"\xff"), 1007);
    check_wrong(server, &frame(0x81, b"\xc3"), 1007);
    check_wrong(server, &[0x82, 127, 0, 0, 0, 0, 0, 0x10, 0, 1], 1009);
    let parts = [
        frame(0x02, &vec![0; 1 << 19]),
        frame(0x00, &vec![0; 1 << 19]),
        frame(0x80, b"x"),
    ]
    .concat();
    check_wrong(server, &parts, 1009);
}

#[test]
fn a_message_at_its_limit_passes() {
    let found = read(
        FrameSender::Server,
        &frame(0x82, &vec![b'x'; 1 << 20]),
        4096,
    )
    .expect("not too big");
    assert_eq!(found[1].len(), 1 << 20);
}

#[test]
fn a_pause_leaves_the_rest_and_reports_where_the_message_began() {
    let input = [
        frame(0x81, b"one"),
        frame(0x81, b"two"),
        frame(0x81, b"three"),
    ]
    .concat();
    let mut frames = FrameReader::new(FrameSender::Server, 100);
    let mut ends = 0;
    let progress = frames.read(&input, |part| {
        ends += usize::from(part == FramePart::End);
        if part == FramePart::End && ends == 2 {
            ReadControl::Pause
        } else {
            ReadControl::Continue
        }
    });
    assert_eq!(
        progress,
        Ok(FrameProgress {
            read: 10,
            message_at: 5
        })
    );
    assert!(frames.is_between_frames() && !frames.is_in_message());
}

#[test]
fn the_frames_of_the_gateway_are_valid() {
    for sender in [FrameSender::Client, FrameSender::Server] {
        let found = read(
            sender,
            &[
                ping_frame(sender),
                close_frame(sender, RESTART, &"é".repeat(100)),
            ]
            .concat(),
            64,
        );
        assert_eq!(found.expect("valid frames"), ["ping", "close Some(1012)"]);
    }
}

#[test]
fn the_accept_value_of_a_key_is_that_of_the_rfc() {
    assert_eq!(
        accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="),
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    assert!(is_key(new_key().as_bytes()));
    assert!(!is_key(b"short") && !is_key(b"dGhlIHNhbXBsZSBub25jZQ"));
}

/// Bytes that resemble frames more often than random bytes do.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        Just(0x81_u8),
        Just(0x01),
        Just(0x00),
        Just(0x80),
        Just(0x82),
        Just(0x88),
        Just(0x89),
        any::<u8>()
    ];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        "[a-zé𝄞]{0,90}".prop_map(String::into_bytes)
    ];
    let valid = (first, payload, any::<bool>()).prop_map(|(first, payload, is_masked)| {
        if is_masked {
            masked(first, &payload)
        } else {
            frame(first, &payload)
        }
    });
    let any_bytes = prop::collection::vec(any::<u8>(), 0..30);
    prop::collection::vec(prop_oneof![4 => valid, 1 => any_bytes], 0..12)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_bytes_read_the_same_in_any_pieces(bytes in frame_like(), size in 1_usize..9) {
        for sender in [FrameSender::Client, FrameSender::Server] {
            let whole = read(sender, &bytes, usize::MAX).map_err(|violation| violation.code);
            let pieces = read(sender, &bytes, size).map_err(|violation| violation.code);
            prop_assert_eq!(whole, pieces);
        }
    }
}

#[test]
fn bytes_before_a_violation_are_valid_and_nothing_after_it_is_read() {
    let input = [
        frame(0x81, b"one"),
        frame(0xf1, b"two"),
        frame(0x81, b"three"),
    ]
    .concat();
    let mut frames = FrameReader::new(FrameSender::Server, 100);
    let broken = frames
        .read(&input, |_| ReadControl::Continue)
        .expect_err("reserved bits");
    assert_eq!(
        (broken.valid_bytes, broken.violation.code),
        (5, PROTOCOL_ERROR)
    );
    frames
        .read(&frame(0x81, b"x"), |_| panic!("the reader is broken"))
        .expect_err("still broken");
}
