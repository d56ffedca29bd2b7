//! Upstreams that break the protocol.

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tollgate_tests::EchoScene;
use tollgate_tests::frames::{
    BINARY, CLOSE, CONTINUATION, FIN, Length, PING, PONG, TEXT, header, served, text,
};
use tollgate_tests::upstream::{Gate, SocketReply};

use super::{BOUND, LONGEST, WAIT_MAX, closed, echo, in_order, read_exactly};

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_frames_reach_the_client_byte_for_byte() {
    let cases = [
        served(FIN | TEXT, b"whole"),
        served(FIN | BINARY, &[0xfe; 70_000]),
        [
            served(TEXT, b"in "),
            served(FIN | PING, b"?"),
            served(FIN | CONTINUATION, b"parts"),
        ]
        .concat(),
        [
            served(TEXT, b""),
            served(CONTINUATION, "\u{b5}".as_bytes()),
            served(FIN | CONTINUATION, b""),
        ]
        .concat(),
        [
            served(TEXT, b"\xce"),
            served(FIN | CONTINUATION, b"\xba"),
            served(FIN | PONG, LONGEST),
        ]
        .concat(),
    ];
    let mut scene = EchoScene::new().await;
    for sent in cases {
        let at_once = SocketReply::silent().raw(sent.clone());
        let dribbled = sent
            .iter()
            .take(2_000)
            .fold(SocketReply::silent(), |reply, byte| reply.raw(vec![*byte]));
        for (greeting, length) in [(at_once, sent.len()), (dribbled, sent.len().min(2_000))] {
            let mut client = scene.greeted(greeting).await.into_raw();
            assert_eq!(read_exactly(&mut client, length).await, sent[..length]);
        }
    }
    scene.end().await;
}

/// All that comes before the end, be it FIN or RST.
async fn read_to_end(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = timeout(WAIT_MAX, from.read_to_end(&mut read))
        .await
        .expect("an end in time");
    read
}

/// What only upstream can break, and what both can.
fn broken_by_upstream() -> Vec<(&'static str, Vec<u8>)> {
    let two_bytes = header(FIN | TEXT, 0, Length::Two(5));
    let top_bit = header(FIN | BINARY, 0, Length::Eight(1 << 63));
    let past = header(FIN | BINARY, 0, Length::Eight(BOUND as u64 + 1));
    vec![
        ("masked", text("hello")),
        ("a reserved bit", served(FIN | 0x40 | TEXT, b"hello")),
        ("a reserved data opcode", served(FIN | 0x3, b"")),
        ("a reserved control opcode", served(FIN | 0xb, b"")),
        ("a length of 5 in two bytes", two_bytes),
        ("the top bit of a length", top_bit),
        ("a message past the bound", past),
        ("a ping that is too long", served(FIN | PING, &[0; 126])),
        ("a ping in fragments", served(PING, b"")),
        (
            "a continuation of nothing",
            served(FIN | CONTINUATION, b"hello"),
        ),
        (
            "a message within a message",
            [served(TEXT, b"one"), served(FIN | TEXT, b"two")].concat(),
        ),
        ("a text that is no UTF-8", served(FIN | TEXT, b"\xff")),
        (
            "a text that ends within a character",
            served(FIN | TEXT, b"\xc3"),
        ),
        (
            "a close without half its code",
            served(FIN | CLOSE, b"\x03"),
        ),
        (
            "a close with the code 1005",
            served(FIN | CLOSE, &1005_u16.to_be_bytes()),
        ),
        (
            "a close whose reason is no UTF-8",
            served(FIN | CLOSE, b"\x03\xe8\xff"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn any_protocol_error_of_upstream_is_1011_for_the_client() {
    let mut scene = EchoScene::with(json!({ "websocket_message_bytes": BOUND })).await;
    let mut failed = Vec::new();
    for (name, bytes) in broken_by_upstream() {
        let gate = Gate::new();
        let mut socket = scene
            .greeted(SocketReply::silent().text("sound").hold(&gate).raw(bytes))
            .await;
        assert_eq!(socket.next().await, echo("sound"));
        gate.open();
        let found = in_order(&[socket.next().await]);
        if found != [closed(1011)] {
            failed.push((name, found));
        }
    }
    assert!(failed.is_empty(), "expected a close with 1011: {failed:#?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_inserted_into_an_incomplete_frame_to_the_client() {
    let mut scene = EchoScene::new().await;
    let cases: [(&str, &[u8], &[u8]); 4] = [
        (
            "a text that ends within a character",
            b"\x81\x05four",
            b"\xc3",
        ),
        ("a text that is no UTF-8", b"\x81\x05four", b"\xff"),
        ("a close with half a code more", b"\x88\x02\x03", b"\xed"),
        ("a header that ends in a mask", b"\x81", b"\x80"),
    ];
    for (name, first, rest) in cases {
        let gate = Gate::new();
        let reply = SocketReply::silent().raw(first).hold(&gate).raw(rest);
        let mut client = scene.greeted(reply).await.into_raw();
        assert_eq!(
            read_exactly(&mut client, first.len()).await,
            first,
            "{name}"
        );
        gate.open();
        assert_eq!(
            read_to_end(&mut client).await,
            b"",
            "{name}: what came behind {first:?}"
        );
    }
    scene.end().await;
}
