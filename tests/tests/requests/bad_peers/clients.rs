//! Bad clients over HTTP/1.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::timeout;
use tollgate_tests::peer::post;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{BadPeerScene, Client, ends, over_both, turn};

const BODY_BYTES: usize = 100_000;
/// How long after its limit something may happen on a machine that is busy.
const LATE: Duration = Duration::from_secs(5);

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

/// A turn of so many bytes.
fn body_of(bytes: usize) -> String {
    let around = r#"{"model":"gpt-5.4","stream":true,"filler":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"filler":"{}"}}"#,
        "f".repeat(bytes - around)
    )
}

fn chunked(body: &str) -> String {
    let chunks = body.as_bytes().chunks(9_999);
    let framed: String = chunks
        .map(|chunk| {
            format!(
                "{:x}\r\n{}\r\n",
                chunk.len(),
                String::from_utf8_lossy(chunk)
            )
        })
        .collect();
    let head = "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{framed}0\r\n\r\n")
}

async fn check_body_limit(replay_bytes: usize) {
    let scene = BadPeerScene::new(
        json!({ "request_body_bytes": BODY_BYTES, "replay_bytes": replay_bytes }),
    )
    .await;
    for (bytes, status) in [
        (BODY_BYTES, 200),
        (BODY_BYTES + 1, 413),
        (3 * BODY_BYTES, 413),
    ] {
        let body = body_of(bytes);
        for (form, request) in [("content-length", post(&body)), ("chunked", chunked(&body))] {
            let mut peer = scene.peer().await;
            peer.send(request).await;
            let answer = peer
                .message()
                .await
                .unwrap_or_else(|| panic!("{form}, {bytes} bytes: no answer"));
            assert_eq!(
                answer.status(),
                status,
                "{form}, {bytes} bytes: {}",
                answer.text()
            );
        }
    }
    let turns = scene.upstream().turns();
    let whole = turns
        .iter()
        .filter(|turn| turn.body == body_of(BODY_BYTES))
        .count();
    assert_eq!(
        (turns.len(), whole),
        (2, 2),
        "upstream saw another body than the two at the limit"
    );
    let rows = scene.end(6).await;
    let refused = ends(&rows)
        .iter()
        .filter(|end| **end == (413, "failed"))
        .count();
    assert_eq!(refused, 4, "{rows:#?}");
}

over_both!(a_body_at_the_limit_is_served_and_one_past_it_is_413);
async fn a_body_at_the_limit_is_served_and_one_past_it_is_413() {
    check_body_limit(BODY_BYTES * 2).await;
}

over_both!(a_body_that_is_not_kept_is_413_past_the_limit);
async fn a_body_that_is_not_kept_is_413_past_the_limit() {
    check_body_limit(BODY_BYTES / 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_413_reaches_a_client_that_sends_on() {
    let scene = BadPeerScene::new(json!({ "request_body_bytes": BODY_BYTES })).await;
    let mut peer = scene.peer().await;
    // Far more than the sockets hold: the client is still sending when it is refused.
    peer.send(post(&body_of(32 * 1024 * 1024))).await;
    assert_eq!(
        peer.message().await.map(|answer| answer.status()),
        Some(413)
    );
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_to_its_end_is_closed() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "200ms" })).await;
    for begun in [
        "",
        "P",
        "PRI",
        "GET /v1/mod",
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\nx-slow: ",
    ] {
        let mut peer = scene.peer().await;
        let since = Instant::now();
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
async fn a_head_that_comes_byte_by_byte_has_no_more_time_than_another() {
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
async fn an_idle_connection_is_closed_after_its_last_answer() {
    let scene = BadPeerScene::new(json!({ "head_timeout": "200ms" })).await;
    let mut peer = scene.peer().await;
    peer.send(post(&turn("idle").to_string())).await;
    assert_eq!(peer.message().await.expect("an answer").status(), 200);
    let since = Instant::now();
    assert!(peer.rest().await.is_empty());
    assert!(since.elapsed() < LATE, "closed after {:?}", since.elapsed());
    scene.end(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_is_408() {
    let scene = BadPeerScene::new(json!({ "body_timeout": "200ms" })).await;
    let heads = [
        ("content-length: 100", "{\"model\":"),
        ("transfer-encoding: chunked", "9\r\n{\"model\":"),
    ];
    for (framing, begun) in heads {
        let mut peer = scene.peer().await;
        peer.send(format!(
            "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\n{framing}\r\n\r\n{begun}"
        ))
        .await;
        assert_eq!(
            peer.message().await.expect("an answer").status(),
            408,
            "{framing}"
        );
        assert!(
            peer.rest().await.is_empty(),
            "{framing}: the connection cannot go on"
        );
    }
    assert_eq!(scene.upstream().turns().len(), 0);
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(408, "failed"); 2]);
}

over_both!(a_body_that_stops_on_its_way_to_upstream_is_408);
async fn a_body_that_stops_on_its_way_to_upstream_is_408() {
    let scene = BadPeerScene::new(json!({ "body_timeout": "200ms", "replay_bytes": 1000 })).await;
    let mut peer = scene.peer().await;
    let begun = &body_of(5000)[..4000];
    peer.send(format!(
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ncontent-length: 5000\r\n\r\n{begun}"
    ))
    .await;
    assert_eq!(peer.message().await.expect("an answer").status(), 408);
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(408, "failed")]);
}

over_both!(a_client_that_leaves_in_the_middle_of_its_request_is_recorded_as_gone);
async fn a_client_that_leaves_in_the_middle_of_its_request_is_recorded_as_gone() {
    for replay_bytes in [100_000, 1000] {
        let scene = BadPeerScene::new(json!({ "replay_bytes": replay_bytes })).await;
        let mut peer = scene.peer().await;
        let begun = &body_of(5000)[..4000];
        peer.send(format!(
            "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\ncontent-length: 5000\r\n\r\n{begun}"
        ))
        .await;
        drop(peer);
        // A head only half sent is no request.
        let mut peer = scene.peer().await;
        peer.send("POST /v1/responses HTTP/1.1\r\nhost: gate").await;
        drop(peer);
        let rows = scene.end(1).await;
        assert_eq!(
            rows[0].text("end"),
            Some("client_gone"),
            "replay_bytes {replay_bytes}: {rows:#?}"
        );
    }
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

over_both!(a_body_that_is_no_json_reaches_upstream_as_it_is);
async fn a_body_that_is_no_json_reaches_upstream_as_it_is() {
    let scene = BadPeerScene::new(json!({})).await;
    let deep = "[".repeat(100_000);
    let cases: [&[u8]; 6] = [
        b"not JSON",
        b"{\"model\": \"\xff\xfe\"}",
        b"\0\0\0\0",
        b"{\"model\": 5}",
        deep.as_bytes(),
        b"",
    ];
    for (number, body) in cases.iter().enumerate() {
        let answer = scene
            .client
            .ask(Method::POST, "/v1/responses", body.to_vec())
            .await;
        let direct = scene.upstream().turns();
        assert_eq!(direct.len(), number + 1);
        assert_eq!(direct[number].body, *body);
        assert!(answer.whole, "{number}");
        assert_ne!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{number}");
    }
    let rows = scene.end(cases.len()).await;
    assert!(rows.iter().all(|row| row.text("session").is_none()));
}

over_both!(a_string_of_50_mb_in_model_passes_and_counts_as_missing);
async fn a_string_of_50_mb_in_model_passes_and_counts_as_missing() {
    let scene = BadPeerScene::new(json!({})).await;
    scene.account().then(Reply::json(
        200,
        &json!({ "id": "resp_1", "object": "response" }),
    ));
    let body = format!(r#"{{"model":"{}","stream":false}}"#, "m".repeat(50_000_000));
    let answer = scene
        .client
        .ask(Method::POST, "/v1/responses", body.clone())
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(
        scene.upstream().turns()[0].body == body,
        "upstream saw another body"
    );
    let rows = scene.end(1).await;
    assert_eq!(rows[0].text("model"), None);
    assert_eq!(ends(&rows), [(200, "complete")]);
}

over_both!(a_body_of_10_mb_passes_byte_for_byte);
async fn a_body_of_10_mb_passes_byte_for_byte() {
    let scene = BadPeerScene::new(json!({})).await;
    let body = body_of(10_000_000);
    for client in [scene.client.clone(), scene.client.http2()] {
        let answer = client
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    for seen in scene.upstream().turns() {
        assert!(seen.body == body, "upstream saw another body");
    }
    let rows = scene.end(2).await;
    assert!(rows.iter().all(|row| row.text("model") == Some("gpt-5.4")));
}

over_both!(a_body_that_lies_about_its_encoding_reaches_upstream_as_it_is);
async fn a_body_that_lies_about_its_encoding_reaches_upstream_as_it_is() {
    let scene = BadPeerScene::new(json!({})).await;
    scene.account().always(Reply::ok().model("gpt-5.4"));
    let encodings = ["gzip", "zstd", "br", "deflate", "nonsense", "gzip, zstd"];
    for encoding in encodings {
        let client = scene.client.header("content-encoding", encoding);
        let answer = client
            .ask(Method::POST, "/v1/responses", turn("lie").to_string())
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{encoding}");
        let turns = scene.upstream().turns();
        let seen = turns.last().expect("a turn");
        assert_eq!(
            (seen.header("content-encoding"), &seen.body[..]),
            (Some(encoding), turn("lie").to_string().as_bytes())
        );
    }
    scene.end(encodings.len()).await;
}

over_both!(a_request_that_comes_byte_by_byte_is_served);
async fn a_request_that_comes_byte_by_byte_is_served() {
    let scene = BadPeerScene::new(json!({})).await;
    let mut peer = scene.peer().await;
    peer.dribble(post(&turn("dribble").to_string())).await;
    let answer = peer.message().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.whole && answer.text().contains("response.completed"));
    let mut peer = scene.peer().await;
    peer.dribble(chunked(&body_of(300))).await;
    assert_eq!(peer.message().await.expect("an answer").status(), 200);
    assert_eq!(scene.upstream().turns()[1].body, body_of(300));
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "complete"); 2]);
}

over_both!(pipelined_requests_are_answered_in_order);
async fn pipelined_requests_are_answered_in_order() {
    let scene = BadPeerScene::new(json!({})).await;
    for number in 1..=3 {
        scene
            .account()
            .then(Reply::ok().response_id(&format!("resp_{number}")));
    }
    let requests: String = (1..=3)
        .map(|_| post(&turn("pipeline").to_string()))
        .collect();
    let mut peer = scene.peer().await;
    peer.send(requests).await;
    for number in 1..=3 {
        let answer = peer.message().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(
            answer.whole && answer.text().contains(&format!("\"resp_{number}\"")),
            "{number}: {}",
            answer.text()
        );
    }
    let rows = scene.end(3).await;
    let ids: Vec<_> = rows
        .iter()
        .map(|row| row.text("response_id").expect("an id"))
        .collect();
    assert_eq!(ids, ["resp_1", "resp_2", "resp_3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_after_a_good_request_does_not_touch_its_answer() {
    let scene = BadPeerScene::new(json!({})).await;
    let mut peer = scene.peer().await;
    peer.send(post(&turn("first").to_string()) + "\0\0garbage\r\n\r\n")
        .await;
    let answer = peer.message().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.whole && answer.text().contains("response.completed"));
    peer.rest().await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_past_the_limit_wait_and_are_served_then() {
    let scene = BadPeerScene::new(json!({ "connections": 2 })).await;
    let gate = Gate::new();
    scene.account().always(Reply::ok().hold_after(1, &gate));
    let open: Vec<_> = {
        let mut open = Vec::new();
        for _ in 0..2 {
            open.push(
                Client::new(scene.client.address())
                    .start_turn(&turn("open"))
                    .await,
            );
        }
        open
    };
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let mut peer = scene.peer().await;
        peer.send(post(&turn("waiting").to_string())).await;
        waiting.push(peer);
    }
    // None of them is answered, or even asked about, while there is no room.
    assert!(waiting[0].is_quiet_for(Duration::from_millis(100)).await);
    assert_eq!(scene.upstream().turns().len(), 2);
    gate.open();
    for stream in open {
        assert!(stream.finish().await.whole);
    }
    for mut peer in waiting {
        let answer = peer.message().await.expect("an answer");
        assert!(answer.status() == 200 && answer.whole);
    }
    let rows = scene.end(7).await;
    assert_eq!(ends(&rows), [(200, "complete"); 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_keep_their_places() {
    for begun in [
        "",
        "P",
        "GET /",
        "PRI * HTTP/2.0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut scene =
            BadPeerScene::new(json!({ "connections": 1, "head_timeout": "300ms" })).await;
        let mut silent = scene.peer().await;
        silent.send(begun).await;
        let served = timeout(LATE, scene.serves()).await;
        assert!(
            served.is_ok(),
            "a client that sends {begun:?} and no more keeps its place"
        );
        drop(silent);
        scene.end(0).await;
    }
}
