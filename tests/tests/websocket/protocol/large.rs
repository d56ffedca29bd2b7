//! Case 9: large messages and their bound.

use serde_json::json;
use tollgate_tests::frames::{
    BINARY, FIN, Length, PONG, TEXT, fragments, fragments_with, frame, lying, text,
};
use tollgate_tests::{EchoScene, Event};

use super::{BOUND, Case, HEAVY, LONGEST, case, check, closed, echo, in_order};

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
async fn a_client_that_keeps_sending_past_the_limit_still_receives_the_reason() {
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
