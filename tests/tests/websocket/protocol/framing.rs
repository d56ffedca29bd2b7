//! Cases 1 to 5: framing, pings and pongs, reserved bits and opcodes, fragments.

use tollgate_tests::frames::{
    BINARY, CLOSE, CONTINUATION, FIN, Length, PING, PONG, TEXT, fragments, fragments_with, frame,
    lying, served, text,
};
use tollgate_tests::upstream::{SeenSocket, SocketReply};
use tollgate_tests::{EchoScene, Event};

use super::{Case, LONGEST, case, check, closed, echo};

// Cases

fn pong(payload: &'static [u8]) -> Event {
    Event::Pong(payload.into())
}

// 1: framing

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_form_of_length_come_back() {
    let lengths = [0, 1, 124, 125, 126, 127, 128, 65_535, 65_536];
    let cases = lengths.into_iter().flat_map(|length| {
        let (words, bytes) = ("*".repeat(length), vec![0xfe; length]);
        [
            case(format!("1.1, text of {length}")).then(text(&words), [echo(words)]),
            case(format!("1.2, binary of {length}"))
                .then(frame(FIN | BINARY, &bytes), [Event::Binary(bytes.into())]),
        ]
    });
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_not_in_its_shortest_form_is_1002() {
    let lengths = [
        ("0 in two bytes", Length::Two(0)),
        ("125 in two bytes", Length::Two(125)),
        ("5 in eight bytes", Length::Eight(5)),
        ("65535 in eight bytes", Length::Eight(65_535)),
        ("the top bit", Length::Eight(1 << 63 | 200_000)),
        ("all bits", Length::Eight(u64::MAX)),
    ];
    let kinds = [TEXT, BINARY];
    let cases = lengths.into_iter().flat_map(|(name, length)| {
        kinds.map(|kind| {
            Case::broken(
                format!("{name}, opcode {kind}"),
                lying(FIN | kind, length, b"hello"),
                1002,
            )
        })
    });
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_unmasked_frame_is_1002() {
    let opcodes = [TEXT, BINARY, PING, PONG, CLOSE];
    let cases = opcodes.into_iter().map(|opcode| {
        Case::broken(
            format!("opcode {opcode}, unmasked"),
            served(FIN | opcode, b""),
            1002,
        )
    });
    check(EchoScene::new().await, cases).await;
}

// 2: pings and pongs

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_by_upstream_and_pongs_are_not() {
    let ping = |payload| frame(FIN | PING, payload);
    let unasked = frame(FIN | PONG, b"unasked");
    let mut cases = vec![
        case("2.1").then(ping(b""), [pong(b"")]),
        case("2.2").then(ping(b"hello"), [pong(b"hello")]),
        case("2.3").then(
            ping(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
            [pong(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")],
        ),
        case("2.4").then(ping(LONGEST), [pong(LONGEST)]),
        Case::broken("2.5", ping(&[0xfe; 126]), 1002),
        Case::broken(
            "2.5, 64 bits",
            lying(FIN | PING, Length::Eight(1 << 40), b""),
            1002,
        ),
        case("2.7").then(frame(FIN | PONG, b""), []),
        case("2.8").then(unasked.clone(), []),
        case("2.9").then([unasked, ping(b"asked")].concat(), [pong(b"asked")]),
    ];
    let each: [&'static [u8]; 5] = [b"one", b"two", b"three", b"four", b"five"];
    cases.push(each.into_iter().fold(case("2.10"), |case, payload| {
        case.then(ping(payload), [pong(payload)])
    }));
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_pongs_reach_the_other_end_with_their_payload() {
    let mut scene = EchoScene::new().await;
    let mut socket = scene
        .greeted(SocketReply::silent().ping("from upstream").pong("unasked"))
        .await;
    assert_eq!(socket.next().await, Event::Ping("from upstream".into()));
    assert_eq!(socket.next().await, Event::Pong("unasked".into()));
    socket.send_raw(frame(FIN | PING, b"from the client")).await;
    assert_eq!(socket.next().await, pong(b"from the client"));
    let came = |seen: &[SeenSocket]| {
        seen[1].pings == ["from the client"] && seen[1].pongs == ["from upstream"]
    };
    scene
        .rig
        .upstream
        .wait_until_sockets("a ping and a pong", came)
        .await;
    drop(socket);
    scene.end().await;
}

// 3 and 4: reserved bits and opcodes

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_bit_is_1002() {
    let kinds = [TEXT, TEXT, TEXT, TEXT, BINARY, PING, CLOSE];
    let cases = (1..).zip(kinds).flat_map(|(bits, kind)| {
        let sent = frame(FIN | bits << 4 | kind, b"");
        let ping = frame(FIN | PING, b"");
        [
            case(format!("3.{bits}, first")).then(sent.clone(), [closed(1002)]),
            Case::broken(format!("3.{bits}, later"), [sent, ping].concat(), 1002),
        ]
    });
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_opcode_is_1002() {
    let opcodes = (0x3..=0x7).chain(0xb..=0xf);
    let cases = opcodes.flat_map(|opcode| {
        let payloads: [&[u8]; 2] = [b"", b"reserved"];
        payloads.map(|payload| {
            Case::broken(
                format!("4, opcode {opcode}"),
                frame(FIN | opcode, payload),
                1002,
            )
        })
    });
    check(EchoScene::new().await, cases).await;
}

// 5: fragments

fn sound_fragments() -> Vec<Case> {
    let (pieces, ping): ([&[u8]; 2], _) = ([b"one", b"two"], frame(FIN | PING, b"within"));
    let five: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
    let (both, within) = (
        [pong(b"within"), echo("onetwo")],
        fragments_with(TEXT, pieces, &ping),
    );
    vec![
        case("5.3").then(fragments(TEXT, pieces), [echo("onetwo")]),
        case("5.3, binary").then(fragments(BINARY, pieces), [Event::Binary("onetwo".into())]),
        case("5.6").then(within.clone(), both.clone()),
        case("5.7, twice")
            .then(within.clone(), both.clone())
            .then(within, both),
        case("5.19")
            .then(frame(TEXT, b"a"), [])
            .then(
                [frame(CONTINUATION, b"b"), ping.clone()].concat(),
                [pong(b"within")],
            )
            .then(
                [frame(CONTINUATION, b"c"), ping].concat(),
                [pong(b"within")],
            )
            .then(
                [frame(CONTINUATION, b"d"), frame(FIN | CONTINUATION, b"e")].concat(),
                [echo("abcde")],
            ),
        case("5.20").then(
            fragments_with(TEXT, five, &frame(FIN | PONG, b"")),
            [echo("abcde")],
        ),
        case("two messages").then(
            [fragments(TEXT, pieces), text("three")].concat(),
            [echo("onetwo"), echo("three")],
        ),
    ]
}

fn broken_fragments() -> Vec<Case> {
    let mut cases = vec![
        Case::broken(
            "5.1",
            [frame(PING, b"one"), frame(FIN | CONTINUATION, b"two")].concat(),
            1002,
        ),
        Case::broken(
            "5.2",
            [frame(PONG, b"one"), frame(FIN | CONTINUATION, b"two")].concat(),
            1002,
        ),
        Case::broken(
            "a close in fragments",
            frame(CLOSE, &1000_u16.to_be_bytes()),
            1002,
        ),
        Case::broken("5.18", [frame(TEXT, b"one"), text("two")].concat(), 1002),
        Case::broken(
            "5.18, binary",
            [frame(TEXT, b"one"), frame(BINARY, b"two")].concat(),
            1002,
        ),
    ];
    for (name, first) in [
        ("5.9 to 5.11", FIN | CONTINUATION),
        ("5.12 to 5.17", CONTINUATION),
    ] {
        let sent = [frame(first, b"continues nothing"), text("sound")].concat();
        cases.push(case(name).then(sent.clone(), [closed(1002)]));
        cases.push(Case::broken(format!("{name}, later"), sent, 1002));
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_make_one_message_and_invalid_ones_are_1002() {
    check(
        EchoScene::new().await,
        sound_fragments().into_iter().chain(broken_fragments()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_1000_fragments_of_a_byte_comes_back() {
    let words = "0123456789".repeat(100);
    let sent = fragments(TEXT, words.as_bytes().chunks(1));
    check(
        EchoScene::new().await,
        [case("1000 fragments").then(sent, [echo(words)])],
    )
    .await;
}
