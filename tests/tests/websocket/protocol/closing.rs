//! Case 7: closing.

use tollgate_tests::frames::{CLOSE, CONTINUATION, FIN, PING, TEXT, close, frame, text};
use tollgate_tests::upstream::{SocketEnd, SocketReply};
use tollgate_tests::{EchoScene, Event};

use super::{Case, case, check, echo};

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
async fn an_invalid_close_is_1002_and_a_reason_outside_utf8_1007() {
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
