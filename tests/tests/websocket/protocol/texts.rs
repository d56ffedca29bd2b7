//! Case 6: UTF-8.

use tollgate_tests::frames::{
    BINARY, CONTINUATION, FIN, Length, TEXT, fragments, frame, lying, text,
};
use tollgate_tests::{EchoScene, Event};

use super::{Case, case, check, closed, echo};

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
