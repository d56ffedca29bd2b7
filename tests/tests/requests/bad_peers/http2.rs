//! Bad clients over HTTP/2 by prior knowledge.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{BadPeerScene, Client, Protocol, ends, over_both, turn};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a frame's length")
        .to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// POST /v1/responses in HPACK without Huffman and without the dynamic table (RFC 7541, section
/// 6.2.2).
fn post() -> Vec<u8> {
    let text = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    [
        vec![0x83, 0x86],
        text(0x04, "/v1/responses"),
        text(0x01, "gateway"),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_by_prior_knowledge_is_served() {
    let scene = BadPeerScene::new(json!({})).await;
    let client = scene.client.http2();
    let answers = (0..20).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.turn(&turn("two")).await })
    });
    for answer in answers.collect::<Vec<_>>() {
        let answer = answer.await.expect("an answer");
        assert!(
            answer.status == StatusCode::OK
                && answer.whole
                && answer.text().contains("response.completed")
        );
    }
    let rows = scene.end(20).await;
    assert_eq!(ends(&rows), [(200, "complete"); 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_past_the_limit_is_431_over_http2() {
    let scene = BadPeerScene::new(json!({ "request_head_bytes": 16_384 })).await;
    let client = scene.client.http2().header("x-filler", &"f".repeat(20_000));
    assert_eq!(
        client.get("/v1/models").await.status,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_past_the_limit_is_413_over_http2() {
    let scene = BadPeerScene::new(json!({ "request_body_bytes": 100_000 })).await;
    let answer = scene
        .client
        .http2()
        .ask(Method::POST, "/v1/responses", vec![b'x'; 100_001])
        .await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(413, "failed")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preface_in_pieces_is_accepted() {
    let scene = BadPeerScene::new(json!({})).await;
    let mut peer = scene.peer().await;
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &post());
    peer.dribble([PREFACE, &frame(SETTINGS, 0, 0, &[]), &request].concat())
        .await;
    scene.upstream().wait_for_turns(1).await;
    drop(peer);
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_only_a_preface_is_closed() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "300ms" })).await;
    let mut peer = scene.peer().await;
    peer.send(PREFACE).await;
    let since = Instant::now();
    peer.rest().await;
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "closed after {:?}",
        since.elapsed()
    );
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_head_over_http2_is_refused() {
    let scene = BadPeerScene::new(json!({ "request_head_bytes": 16_384 })).await;
    let mut peer = scene.peer().await;
    peer.send(
        [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frame(HEADERS, 0, 1, &post()),
        ]
        .concat(),
    )
    .await;
    // A field's name and value of the static table, again and again, and never the end of the head.
    let more = frame(CONTINUATION, 0, 1, &[0x90; 16_000]);
    for _ in 0..200 {
        peer.send(&more).await;
    }
    peer.rest().await;
    scene.end(0).await;
}

over_both!(streams_that_are_reset_at_once_leave_nothing_behind);
async fn streams_that_are_reset_at_once_leave_nothing_behind() {
    const ROOM: usize = 16;
    const CONNECTIONS: usize = 5;
    const STREAMS: u32 = 200;
    let scene = BadPeerScene::new(json!({ "settle_queue": ROOM })).await;
    for connection in 0..CONNECTIONS {
        let mut peer = scene.peer().await;
        peer.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())
            .await;
        // With and without a body to come.
        let flags = if connection % 2 == 0 {
            END_HEADERS | END_STREAM
        } else {
            END_HEADERS
        };
        for number in 0..STREAMS {
            let stream = number * 2 + 1;
            let both = [
                frame(HEADERS, flags, stream, &post()),
                frame(RST_STREAM, 0, stream, &CANCEL),
            ]
            .concat();
            peer.send(both).await;
        }
    }
    // All the room comes back: so many streams are open at a time.
    let gate = Gate::new();
    let held = Reply::ok().hold_after(1, &gate);
    scene.account().always(held);
    let begun = Instant::now();
    let mut open = Vec::new();
    while open.len() < ROOM {
        let stream = Client::new(scene.client.address())
            .start_turn(&turn("held"))
            .await;
        if stream.status == StatusCode::OK {
            open.push(stream);
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "room for {} of {ROOM}",
            open.len()
        );
    }
    gate.open();
    for stream in open {
        assert!(stream.finish().await.whole);
    }
    scene.account().clear_script();
    let rows = scene.end_with_any().await;
    assert!(rows.len() <= ROOM + CONNECTIONS * STREAMS as usize);
    let served = rows
        .iter()
        .filter(|row| row.text("session") == Some("held"))
        .count();
    assert_eq!(served, ROOM);
}

over_both!(a_stream_reset_in_flight_does_not_affect_other_streams);
async fn a_stream_reset_in_flight_does_not_affect_other_streams() {
    let scene = BadPeerScene::new(json!({})).await;
    let gate = Gate::new();
    scene.account().always(Reply::ok().hold_after(2, &gate));
    let client = scene.client.http2();
    let left = client.start_turn(&turn("left")).await;
    let stays = client.start_turn(&turn("stays")).await;
    drop(left);
    scene.upstream().wait_for_abandoned(1).await;
    gate.open();
    assert!(stays.finish().await.whole);
    assert!(
        scene
            .upstream()
            .turns()
            .iter()
            .all(|seen| seen.version == Protocol::current().version())
    );
    let mut rows = scene.end(2).await;
    rows.sort_by_key(|row| row.text("session").map(str::to_owned));
    assert_eq!(ends(&rows), [(200, "client_gone"), (200, "complete")]);
}
