//! Heads that are too large, too slow, or no HTTP.

use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_tests::{BadPeerScene, ends, turn};

use super::LATE;

/// A request whose head is so long.
fn head_of(bytes: usize) -> String {
    let around = "GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx-filler: \r\n\r\n".len();
    format!(
        "GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx-filler: {}\r\n\r\n",
        "f".repeat(bytes - around)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_at_the_limit_is_served_and_one_past_it_is_431() {
    for limit in [8 * 1024, 16 * 1024] {
        let scene = BadPeerScene::new(json!({ "request_head_bytes": limit })).await;
        for (bytes, status) in [(limit, 200), (limit + 1, 431), (10 * limit, 431)] {
            let mut peer = scene.peer().await;
            peer.send(head_of(bytes)).await;
            assert_eq!(
                peer.message().await.expect("an answer").status(),
                status,
                "a head of {bytes} of {limit} bytes"
            );
        }
        scene.end(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_header_fields_are_431() {
    let scene = BadPeerScene::new(json!({})).await;
    // If the gateway itself answers: upstream has its own bound. One of the fields is the
    // host.
    for (fields, status) in [(256, 404), (257, 431)] {
        let mut peer = scene.peer().await;
        let more: String = (1..fields)
            .map(|number| format!("x-{number}: 1\r\n"))
            .collect();
        peer.send(format!(
            "GET /nowhere HTTP/1.1\r\nhost: gateway\r\n{more}\r\n"
        ))
        .await;
        assert_eq!(
            peer.message().await.expect("an answer").status(),
            status,
            "{fields} fields"
        );
    }
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_an_incomplete_head_is_closed() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "200ms" })).await;
    for begun in [
        "",
        "P",
        "PRI",
        "GET /v1/mod",
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\nx-slow: ",
    ] {
        let since = Instant::now();
        let mut peer = scene.peer().await;
        peer.send(begun).await;
        let rest = peer.rest().await;
        let took = since.elapsed();
        assert!(
            took >= Duration::from_millis(200) && took < LATE,
            "{begun:?}: closed after {took:?}"
        );
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{begun:?}");
    }
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_sent_byte_by_byte_has_the_usual_timeout() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "300ms" })).await;
    let mut peer = scene.peer().await;
    let since = Instant::now();
    let mut sent = 0;
    peer.send("GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx-slow: ")
        .await;
    while peer.is_quiet_for(Duration::from_millis(20)).await {
        peer.send("s").await;
        sent += 1;
        assert!(
            since.elapsed() < LATE,
            "{sent} bytes, one every 20 ms, and the connection is open"
        );
    }
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_makes_no_row() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "500ms" })).await;
    let tls_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 500]].concat();
    let cases: [&[u8]; 10] = [
        b"\0\0\0\0\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        &tls_hello,
        b"GET\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\na b: c\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage after the preface, and no frame of HTTP/2 at all",
    ];
    for bytes in cases {
        let mut peer = scene.peer().await;
        peer.send(bytes).await;
        let rest = peer.rest().await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            !rest.starts_with(b"HTTP/1.1 2"),
            "{shown:?} is answered by {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
    assert_eq!(scene.upstream().turns().len(), 0);
    scene.end(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_framings_of_one_body_do_not_smuggle_a_request() {
    let scene =
        BadPeerScene::new(json!({ "head_timeout": "500ms", "body_timeout": "500ms" })).await;
    let mut peer = scene.peer().await;
    let inner = "GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n";
    let head = "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    peer.send(format!("{head}0\r\n\r\n{inner}")).await;
    peer.rest().await;
    for seen in scene.upstream().requests() {
        assert!(
            !(seen.headers.contains_key("content-length")
                && seen.headers.contains_key("transfer-encoding"))
        );
    }
    scene.end_with_any().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_and_its_connection_closed() {
    let scene = BadPeerScene::new(json!({})).await;
    let body = turn("old").to_string();
    let mut peer = scene.peer().await;
    peer.send(format!(
        "POST /v1/responses HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let answer = peer.message().await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.head);
    assert_eq!(
        answer.field("transfer-encoding"),
        None,
        "HTTP/1.0 knows no chunks"
    );
    assert!(
        answer.text().starts_with("event: response.created"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("response.completed") && answer.text().ends_with("\n\n"));
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
}
