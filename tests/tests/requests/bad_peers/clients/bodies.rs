//! Bodies that are too large, stop, or are not what they claim.

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::peer::post;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{BadPeerScene, ends, over_both, turn};

use super::{body_of, chunked};

const BODY_BYTES: usize = 100_000;

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

over_both!(an_unbuffered_body_past_the_limit_is_413);
async fn an_unbuffered_body_past_the_limit_is_413() {
    check_body_limit(BODY_BYTES / 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_413_reaches_a_client_that_keeps_sending() {
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
