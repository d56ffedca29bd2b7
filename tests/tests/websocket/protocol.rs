//! The WebSocket protocol (RFC 6455) through the gateway, byte by byte: the cases of the Autobahn test suite, by its numbers,
//! and what peers do besides. Upstream echoes; a ping is answered by the other end, a violation by the gateway.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tollgate_tests::frames::{
    BINARY, CLOSE, CONTINUATION, FIN, Length, PING, PONG, TEXT, close, fragments, fragments_with,
    frame, header, lying, served, text,
};
use tollgate_tests::upstream::{Gate, SeenSocket, SocketEnd, SocketReply};
use tollgate_tests::{EchoScene, Event, Socket};

/// No wait of these tests is longer.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Held by tests that take a whole machine: one of them beside another would run into limits of the gateway's.
static HEAVY: Mutex<()> = Mutex::const_new(());

// Cases

/// What is sent, and what comes back, one after the other.
struct Case {
    name: String,
    exchanges: Vec<(Vec<u8>, Vec<Event>)>,
}

fn case(name: impl Into<String>) -> Case {
    Case {
        name: name.into(),
        exchanges: Vec::new(),
    }
}

impl Case {
    fn then(mut self, sent: impl Into<Vec<u8>>, back: impl IntoIterator<Item = Event>) -> Self {
        self.exchanges
            .push((sent.into(), back.into_iter().collect()));
        self
    }

    /// A message that comes back, then what the gateway closes with that code.
    fn broken(name: impl Into<String>, sent: impl Into<Vec<u8>>, code: u16) -> Self {
        case(name)
            .then(text("sound"), [echo("sound")])
            .then(sent, [closed(code)])
    }

    fn closes(&self) -> bool {
        let last = self.exchanges.last().and_then(|(_, back)| back.last());
        matches!(last, Some(Event::Close(..) | Event::Gone))
    }

    fn sent_bytes(&self) -> usize {
        self.exchanges.iter().map(|(sent, _)| sent.len()).sum()
    }
}

fn echo(text: impl Into<String>) -> Event {
    Event::Text(text.into())
}

fn pong(payload: &'static [u8]) -> Event {
    Event::Pong(payload.into())
}

/// A close frame with that code; its reason is not looked at.
fn closed(code: u16) -> Event {
    Event::Close(code, String::new())
}

/// Checks each case sent at once, in pieces, and byte by byte.
async fn check(mut scene: EchoScene, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        for size in [usize::MAX, 997, 1] {
            let bytes = case.sent_bytes();
            if size == usize::MAX || (size == 997 && bytes > size) || (size == 1 && bytes < 3_000) {
                check_case(&mut scene, &case, size).await;
            }
        }
    }
    scene.end().await;
}

async fn check_case(scene: &mut EchoScene, case: &Case, size: usize) {
    let mut socket = scene.socket().await;
    for (place, (sent, back)) in case.exchanges.iter().enumerate() {
        let found = exchange(&mut socket, sent, size, back.len()).await;
        assert_eq!(
            found,
            in_order(back),
            "{}, exchange {place}, in pieces of {size}",
            case.name
        );
    }
    if !case.closes() {
        socket.send_raw(close(1000, b"over")).await;
        assert_eq!(
            socket.next().await,
            Event::Close(1000, "over".to_owned()),
            "{}",
            case.name
        );
    }
    assert_eq!(
        socket.next().await,
        Event::Gone,
        "{}, in pieces of {size}",
        case.name
    );
}

/// Sends in pieces, and returns the first events that come.
async fn exchange(socket: &mut Socket, sent: &[u8], size: usize, count: usize) -> Vec<Event> {
    for piece in sent.chunks(size) {
        socket.send_raw(piece).await;
        tokio::task::yield_now().await;
    }
    let mut found = Vec::new();
    while found.len() < count {
        found.push(socket.next().await);
    }
    in_order(&found)
}

/// Pongs first: how they and messages are mixed is up to the end that answers. Reasons are left out.
fn in_order(events: &[Event]) -> Vec<Event> {
    let plain = events.iter().map(|event| match event {
        Event::Close(code, _) => closed(*code),
        event => event.clone(),
    });
    let (mut pongs, others): (Vec<_>, Vec<_>) =
        plain.partition(|event| matches!(event, Event::Pong(_)));
    pongs.extend(others);
    pongs
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

const LONGEST: &[u8] = &[0xfe; 125];

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
async fn fragments_make_one_message_and_what_is_none_is_1002() {
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

// 6: UTF-8

/// Sections 6.2, 6.5, 6.7, 6.9, 6.11, 6.22 and 6.23.
const SOUND_TEXTS: [&str; 12] = [
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\0",
    "\u{7f}",
    "\u{80}",
    "\u{7ff}",
    "\u{800}\u{d7ff}\u{e000}",
    "\u{fffd}\u{feff}",
    "\u{fffe}\u{ffff}",
    "\u{10000}",
    "\u{1fffe}\u{10fffe}",
    "\u{10ffff}",
];

/// Sections 6.3, 6.4, 6.6, 6.8, 6.10 and 6.12 to 6.21.
const BROKEN_TEXTS: [(&str, &[u8]); 22] = [
    ("6.3, a surrogate within", b"\xce\xba\xed\xa0\x80edited"),
    (
        "6.4, past the last character",
        b"\xce\xba\xf4\x90\x80\x80edited",
    ),
    ("6.6, two of three bytes", b"\xe1\xbd"),
    ("6.8, five bytes", b"\xf8\x88\x80\x80\x80"),
    ("6.8, six bytes", b"\xfc\x84\x80\x80\x80\x80"),
    ("6.10, four bytes, too much", b"\xf7\xbf\xbf\xbf"),
    ("6.12, a continuation", b"\x80"),
    ("6.12, another", b"\xbf"),
    ("6.12, several", b"\x80\xbf\x80\xbf"),
    ("6.13, lonely starts of two", b"\xc3 \xc4 "),
    ("6.13, lonely starts of four", b"\xf0 \xf1 "),
    ("6.14, one of two bytes", b"\xc3"),
    ("6.14, three of four bytes", b"\xf0\x90\x80"),
    ("6.15, incomplete ones", b"\xc3\xe0\xa0\xf0\x90\x80"),
    ("6.16, fe", b"\xfe"),
    ("6.16, ff", b"\xff"),
    ("6.17, a long slash of two", b"\xc0\xaf"),
    ("6.17, a long slash of three", b"\xe0\x80\xaf"),
    ("6.18, the last long one of four", b"\xf0\x8f\xbf\xbf"),
    ("6.19, a long NUL", b"\xc0\x80"),
    ("6.20, a surrogate", b"\xed\xbf\xbf"),
    ("6.21, a pair of them", b"\xed\xa0\x80\xed\xb0\x80"),
];

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_utf8_come_back_however_they_are_cut() {
    let empty: [&[u8]; 3] = [b"", b"", b""];
    let middle: [&[u8]; 3] = [b"", b"middle", b""];
    let mut cases = vec![
        case("6.1.1").then(text(""), [echo("")]),
        case("6.1.2").then(fragments(TEXT, empty), [echo("")]),
        case("6.1.3").then(fragments(TEXT, middle), [echo("middle")]),
    ];
    for words in SOUND_TEXTS {
        cases.push(case(format!("6, {words:?}")).then(text(words), [echo(words)]));
        let bytes = fragments(TEXT, words.as_bytes().chunks(1));
        cases.push(case(format!("6, {words:?} in fragments")).then(bytes, [echo(words)]));
    }
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_no_utf8_is_1007() {
    let cases = BROKEN_TEXTS.into_iter().flat_map(|(name, bytes)| {
        [
            Case::broken(name, text(bytes), 1007),
            Case::broken(
                format!("{name}, in fragments"),
                fragments(TEXT, bytes.chunks(1)),
                1007,
            ),
            case(format!("{name}, binary"))
                .then(frame(FIN | BINARY, bytes), [Event::Binary(bytes.into())]),
        ]
    });
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_utf8_is_1007_before_its_message_or_frame_ends() {
    let cases = [
        case("6.4.1, a fragment")
            .then(frame(TEXT, b"\xce\xba"), [])
            .then(frame(CONTINUATION, b"\xff"), [closed(1007)]),
        case("6.4.3, a part of a frame").then(
            lying(FIN | TEXT, Length::Short(100), b"\xce\xba\xf4\x90"),
            [closed(1007)],
        ),
    ];
    check(EchoScene::new().await, cases).await;
}

// 7: closing

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_close_goes_through_and_nothing_after_it() {
    let answered = |code, reason: &str| [Event::Close(code, reason.to_owned()), Event::Gone];
    let after = |sent: Vec<u8>| [close(1000, b"over"), sent].concat();
    let mut cases = vec![
        case("7.1.1").then(text("first"), [echo("first")]),
        case("7.1.2").then(after(close(1000, b"again")), answered(1000, "over")),
        case("7.1.3").then(after(frame(FIN | PING, b"late")), answered(1000, "over")),
        case("7.1.4").then(after(text("late")), answered(1000, "over")),
        case("7.1.5").then(frame(TEXT, b"half"), []).then(
            after(frame(FIN | CONTINUATION, b"")),
            answered(1000, "over"),
        ),
        case("7.3.1").then(frame(FIN | CLOSE, b""), answered(1005, "")),
        case("7.3.3").then(close(1000, b""), answered(1000, "")),
        case("7.3.4").then(close(1000, "ende μ".as_bytes()), answered(1000, "ende μ")),
        case("7.3.5").then(close(1000, &[b'*'; 123]), answered(1000, &"*".repeat(123))),
    ];
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ] {
        cases.push(case(format!("7.7, {code}")).then(close(code, b"why"), answered(code, "why")));
    }
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_is_none_is_1002_and_a_reason_that_is_no_text_1007() {
    let codes = [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ];
    let mut cases: Vec<Case> = codes
        .into_iter()
        .map(|code| Case::broken(format!("7.9, {code}"), close(code, b"why"), 1002))
        .collect();
    cases.push(Case::broken("7.3.2", frame(FIN | CLOSE, b"\x03"), 1002));
    cases.push(Case::broken("7.3.6", close(1000, &[b'*'; 124]), 1002));
    cases.push(Case::broken(
        "7.5.1",
        close(1000, b"\xce\xba\xed\xa0\x80edited"),
        1007,
    ));
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_close_reaches_the_client_with_code_and_reason() {
    let mut scene = EchoScene::new().await;
    for (code, reason) in [
        (1000, ""),
        (1001, "bye"),
        (1012, "restart μ"),
        (4999, "own"),
        (1005, ""),
    ] {
        let mut socket = scene
            .greeted(SocketReply::silent().text("first").close(code, reason))
            .await;
        assert_eq!(socket.next().await, echo("first"));
        assert_eq!(socket.next().await, Event::Close(code, reason.to_owned()));
        assert_eq!(socket.next().await, Event::Gone, "{code}");
        let seen = scene
            .rig
            .upstream
            .wait_for_sockets_ended(scene.opened)
            .await;
        let end = SocketEnd::Closed {
            code,
            reason: reason.to_owned(),
        };
        assert_eq!(
            seen.last().expect("a socket").end,
            Some(end),
            "the client's answer"
        );
    }
    scene.end().await;
}

// 9: large messages and their bound

const BOUND: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_come_back_in_a_frame_and_in_fragments() {
    let large = "*".repeat(4 << 20);
    let mut cases = vec![case("9.1, 4 MiB").then(text(&large), [echo(large.clone())])];
    for bytes in [64 << 10, 256 << 10] {
        let words = &large[..bytes];
        cases.push(case(format!("9.1, {bytes}")).then(text(words), [echo(words)]));
        for size in [64, 256, 4096, 65_536] {
            let sent = fragments(BINARY, words.as_bytes().chunks(size));
            let back = Event::Binary(words.to_owned().into());
            cases.push(case(format!("9.4, {bytes} in fragments of {size}")).then(sent, [back]));
        }
    }
    check(EchoScene::new().await, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_its_bound_comes_back_and_one_past_it_is_1009() {
    let words = "*".repeat(BOUND + 1);
    let (at, past) = (&words[..BOUND], words.as_str());
    let control = frame(FIN | PONG, LONGEST);
    let cases = [
        case("at").then(text(at), [echo(at)]),
        case("at, in fragments").then(
            fragments_with(TEXT, at.as_bytes().chunks(1000), &control),
            [echo(at)],
        ),
        case("two at it")
            .then(text(at), [echo(at)])
            .then(text(at), [echo(at)]),
        Case::broken("past", text(past), 1009),
        Case::broken(
            "past, in fragments",
            fragments(TEXT, past.as_bytes().chunks(BOUND)),
            1009,
        ),
        Case::broken(
            "past, by its header",
            lying(FIN | BINARY, Length::Eight(u64::MAX >> 1), b""),
            1009,
        ),
    ];
    check(
        EchoScene::with(json!({ "websocket_message_bytes": BOUND })).await,
        cases,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_on_sending_past_the_bound_still_reads_why() {
    let _heavy = HEAVY.lock().await;
    let mut scene = EchoScene::with(json!({ "websocket_message_bytes": BOUND })).await;
    for _ in 0..10 {
        let mut socket = scene.socket().await;
        socket.send_raw(text("*".repeat(8 * BOUND))).await;
        assert_eq!(in_order(&[socket.next().await]), [closed(1009)]);
        assert_eq!(socket.next().await, Event::Gone);
    }
    scene.end().await;
}

// What upstream breaks

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

async fn read_exactly(from: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut read = vec![0; length];
    timeout(WAIT_MAX, from.read_exact(&mut read))
        .await
        .expect("in time")
        .expect("so many bytes");
    read
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
async fn whatever_upstream_breaks_is_1011_for_the_client() {
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
async fn a_client_in_the_middle_of_a_frame_is_sent_nothing_that_is_not_of_it() {
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

// Peers that vanish

#[derive(Clone, Copy, Debug)]
enum Vanish {
    Fin,
    Reset,
}

const WAYS: [Vanish; 2] = [Vanish::Fin, Vanish::Reset];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_takes_upstreams_socket_with_it() {
    let mut scene = EchoScene::new().await;
    let whole = text("a message");
    let cases: [(&str, &[u8]); 5] = [
        ("between messages", &whole),
        ("within a header", &whole[..3]),
        ("within a payload", &whole[..whole.len() - 1]),
        ("between fragments", &frame(TEXT, b"half")),
        (
            "a length that lies",
            &lying(FIN | BINARY, Length::Eight(1 << 20), b"a little"),
        ),
    ];
    for (name, sent) in cases {
        for way in WAYS {
            let mut socket = scene.socket().await;
            socket.send_raw(sent).await;
            match way {
                Vanish::Reset => socket.reset(),
                Vanish::Fin => {
                    socket.finish().await;
                    if sent == whole {
                        // Its echo may still come before the end.
                        while socket.next().await != Event::Gone {}
                    } else {
                        assert_eq!(socket.next().await, Event::Gone, "{name}");
                    }
                }
            }
            let seen = scene
                .rig
                .upstream
                .wait_for_sockets_ended(scene.opened)
                .await;
            let end = seen.last().and_then(|socket| socket.end.clone());
            assert_eq!(end, Some(SocketEnd::Gone), "{name}, {way:?}");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_vanishes_between_frames_is_1011_and_within_one_the_end() {
    let mut scene = EchoScene::new().await;
    let cases: [(&str, &[u8], &[Event]); 5] = [
        ("before anything", b"", &[closed(1011), Event::Gone]),
        (
            "between messages",
            b"\x81\x02hi",
            &[echo("hi"), closed(1011), Event::Gone],
        ),
        (
            "between fragments",
            b"\x01\x02hi",
            &[closed(1011), Event::Gone],
        ),
        ("within a header", b"\x81", &[Event::Gone]),
        ("within a payload", b"\x81\x7dhi", &[Event::Gone]),
    ];
    for (name, sent, expected) in cases {
        for way in WAYS {
            let reply = SocketReply::silent().raw(sent);
            let reply = match way {
                Vanish::Fin => reply.finish(),
                Vanish::Reset => reply.reset(),
            };
            let mut socket = scene.greeted(reply).await;
            let found = exchange(&mut socket, b"", 1, expected.len()).await;
            assert_eq!(found, expected, "{name}, {way:?}");
        }
    }
    scene.end().await;
}

// The handshake

/// The key and its answer of RFC 6455, section 1.3.
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const LINE: &str = "GET /v1/responses HTTP/1.1\r\n";

fn handshake(line: &str, fields: &[&str]) -> String {
    format!("{line}Host: gateway\r\n{}\r\n", fields.concat())
}

/// The answer's head, in lower case.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(from, 1).await);
    }
    String::from_utf8(head)
        .expect("an answer's head is text")
        .to_ascii_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_none_is_told_what_it_lacks() {
    let scene = EchoScene::new().await;
    let key = |key: &str| format!("Sec-WebSocket-Key: {key}\r\n");
    let (short, long, none) = (
        key("c2hvcnQ="),
        key("c2V2ZW50ZWVuIGJ5dGVzISE="),
        key("not base64, not at all"),
    );
    let version = |version: &str| format!("Sec-WebSocket-Version: {version}\r\n");
    let upgrade = "Upgrade: websocket\r\n";
    let cases = [
        (
            "HTTP/1.0",
            handshake("GET /v1/responses HTTP/1.0\r\n", &[UPGRADE, KEY, VERSION]),
            400,
        ),
        (
            "no Connection",
            handshake(LINE, &[upgrade, KEY, VERSION]),
            400,
        ),
        (
            "another Connection",
            handshake(LINE, &["Connection: close\r\n", upgrade, KEY, VERSION]),
            400,
        ),
        ("no key", handshake(LINE, &[UPGRADE, VERSION]), 400),
        (
            "a key of 5 bytes",
            handshake(LINE, &[UPGRADE, &short, VERSION]),
            400,
        ),
        (
            "a key of 17 bytes",
            handshake(LINE, &[UPGRADE, &long, VERSION]),
            400,
        ),
        (
            "a key that is no base64",
            handshake(LINE, &[UPGRADE, &none, VERSION]),
            400,
        ),
        ("no version", handshake(LINE, &[UPGRADE, KEY]), 426),
        (
            "version 8",
            handshake(LINE, &[UPGRADE, KEY, &version("8")]),
            426,
        ),
        (
            "version 12",
            handshake(LINE, &[UPGRADE, KEY, &version("12")]),
            426,
        ),
    ];
    for (name, sent, status) in cases {
        let mut stream = scene.client.raw().await;
        stream
            .write_all(sent.as_bytes())
            .await
            .expect("the service reads");
        let head = head(&mut stream).await;
        assert_eq!(
            head.split(' ').nth(1),
            Some(status.to_string().as_str()),
            "{name}: {head}"
        );
        assert_eq!(
            head.contains("sec-websocket-version: 13\r\n"),
            status == 426,
            "{name}: {head}"
        );
    }
    assert_eq!(
        scene.rig.account("a").handshake_count(),
        1,
        "upstream was asked for the bystander only"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_no_handshake_and_is_answered_as_a_post() {
    let scene = EchoScene::new().await;
    let mut stream = scene.client.raw().await;
    let length = "Content-Length: 2\r\n";
    let sent = handshake(
        "POST /v1/responses HTTP/1.1\r\n",
        &[UPGRADE, KEY, VERSION, length],
    ) + "{}";
    stream
        .write_all(sent.as_bytes())
        .await
        .expect("the service reads");
    let head = head(&mut stream).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let turns = scene.rig.upstream.wait_for_turns(1).await;
    assert!(
        turns[0].headers.keys().all(|name| name != "upgrade"),
        "upstream is asked for no other protocol"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_sound_handshake_is_taken_without_extensions() {
    let mut scene = EchoScene::new().await;
    let forms = [
        UPGRADE,
        "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n",
        "CONNECTION: keep-alive\r\nconnection: UPGRADE\r\nupgrade: WEBSOCKET\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n",
    ];
    for form in forms {
        scene.opened += 1;
        let mut stream = scene.client.raw().await;
        // The first frame comes with the handshake: it must not get lost.
        let sent = [
            handshake(LINE, &[form, KEY, VERSION]).into_bytes(),
            text("early"),
        ]
        .concat();
        stream.write_all(&sent).await.expect("the service reads");
        let head = head(&mut stream).await;
        assert!(
            head.starts_with("http/1.1 101 ") && head.contains(ACCEPT),
            "{form}: {head}"
        );
        assert!(
            !head.contains("sec-websocket-extensions") && !head.contains("sec-websocket-protocol"),
            "{head}"
        );
        assert_eq!(
            read_exactly(&mut stream, 7).await,
            served(FIN | TEXT, b"early"),
            "{form}"
        );
    }
    scene.end().await;
}

// Many sockets

/// The open sockets of the test: as many as the limit on open files lets be, up to this.
const IDLE_MAX: usize = 10_000;
/// So many are closed before it is waited for their ends.
const CLOSED_AT_ONCE: usize = 500;
/// A socket has four ends in this process.
const ENDS: usize = 4;
/// Files of this process that are no socket of the test, those of tests beside it among them.
const OTHER_FILES: usize = 2_000;

/// The limit on open files, raised as far as it goes.
fn file_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls are given a valid struct, and keep no pointer to it.
    unsafe {
        assert_eq!(
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit),
            0,
            "the limit can be read"
        );
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit),
            0,
            "it can be raised to the hard one"
        );
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// What of this process is in memory.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("the system tells of this process");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a count of pages");
    // SAFETY: sysconf has no memory to be unsafe with.
    pages * usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page's size")
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_sockets_stay_open_and_a_sample_of_them_still_works() {
    let _heavy = HEAVY.lock().await;
    let count = IDLE_MAX.min(file_limit().saturating_sub(OTHER_FILES) / ENDS);
    // These clients do not read while they are idle, so they answer no pings.
    let mut scene = EchoScene::with(
        json!({ "websockets_per_user": count + 1, "websocket_ping_interval": "1h" }),
    )
    .await;
    let before = resident_bytes();
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        sockets.push(scene.socket().await);
    }
    assert_eq!(scene.rig.upstream.open_socket_count(), count + 1);
    let each = resident_bytes().saturating_sub(before) / count.max(1);
    println!(
        "{count} idle sockets: {each} bytes each, with the client's and upstream's ends in the same process"
    );
    let step = (count / 200).max(1);
    for (place, socket) in sockets.iter_mut().enumerate().step_by(step) {
        let words = format!("message {place}");
        socket.send_text(words.clone()).await;
        assert_eq!(socket.next_message().await, echo(words));
    }
    assert_eq!(
        scene.rig.upstream.open_socket_count(),
        count + 1,
        "all stayed open"
    );
    for ended in (0..count).step_by(CLOSED_AT_ONCE) {
        let closing = sockets.len().min(CLOSED_AT_ONCE);
        sockets.truncate(sockets.len() - closing);
        scene
            .rig
            .upstream
            .wait_for_sockets_ended(ended + closing)
            .await;
    }
    scene.end().await;
}
