//! Upstreams that stop or break off in a body.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{BadPeerScene, Client, ends, over_both, turn};

use super::{GOOD, Then, bare, check_error};

fn turn_as_json() -> Value {
    let mut body = turn("bad");
    body["stream"] = json!(false);
    body
}

over_both!(a_stream_that_falls_silent_is_cut);
async fn a_stream_that_falls_silent_is_cut() {
    let scene = BadPeerScene::new(json!({ "upstream_idle_timeout": "200ms" })).await;
    let gate = Gate::new();
    for client in [scene.client.clone(), scene.client.http2()] {
        scene.account().then(Reply::ok().hold_after(2, &gate));
        let answer = client.turn(&turn("bad")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(
            !answer.whole && answer.text().contains("response.created"),
            "{}",
            answer.text()
        );
        assert!(!answer.text().contains("response.completed"));
    }
    scene.upstream().wait_for_abandoned(2).await;
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone"); 2]);
    gate.open();
}

over_both!(a_stream_that_is_slow_and_not_silent_is_not_cut);
async fn a_stream_that_is_slow_and_not_silent_is_not_cut() {
    let scene = BadPeerScene::new(json!({ "upstream_idle_timeout": "400ms" })).await;
    // 700 ms in all.
    scene.account().then(
        Reply::ok()
            .deltas(10)
            .pause_between(Duration::from_millis(50)),
    );
    let answer = scene.client.turn(&turn("slow")).await;
    assert!(answer.whole && answer.text().contains("response.completed"));
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
}

/// The client sees that its answer is not whole: where the cut came at once, even the head may be
/// missing, and where it came before the first byte of the body, the gateway may say so instead.
/// Returns what the row should contain.
async fn check_cut(what: &str, client: &Client, body: &Value) -> (i64, &'static str) {
    let sent = client
        .try_send(Method::POST, "/v1/responses", body.to_string())
        .await;
    let Ok(answer) = sent else {
        return (200, "upstream_gone");
    };
    let answer = answer.finish().await;
    if answer.status == StatusCode::BAD_GATEWAY {
        check_error(&answer, 502, "upstream_broken");
        return (502, "upstream_gone");
    }
    assert_eq!(answer.status, StatusCode::OK, "{what}");
    assert!(
        !answer.whole,
        "{what}: a broken answer passes for a whole one"
    );
    (200, "upstream_gone")
}

over_both!(an_upstream_that_closes_in_the_middle_is_cut);
async fn an_upstream_that_closes_in_the_middle_is_cut() {
    let scene = BadPeerScene::new(json!({})).await;
    let mut told = Vec::new();
    for body in [turn("bad"), turn_as_json()] {
        for reply in [
            Reply::ok().close_after(300),
            Reply::ok().close_after(300).by_reset(),
        ] {
            for client in [scene.client.clone(), scene.client.http2()] {
                scene.account().then(reply.clone());
                told.push(check_cut(&format!("{reply:?}"), &client, &body).await);
            }
        }
    }
    assert_eq!(
        scene.upstream().turns().len(),
        told.len(),
        "a request was sent again after its answer had begun"
    );
    let rows = scene.end(told.len()).await;
    assert_eq!(ends(&rows), told);
}

over_both!(data_before_a_cut_reaches_the_client);
async fn data_before_a_cut_reaches_the_client() {
    let scene = BadPeerScene::new(json!({})).await;
    for client in [scene.client.clone(), scene.client.http2()] {
        let gate = Gate::new();
        scene
            .account()
            .then(Reply::ok().hold_after(2, &gate).close_after(1500));
        let mut stream = client.start_turn(&turn("bad")).await;
        stream.until("response.created").await;
        gate.open();
        assert!(!stream.finish().await.whole);
    }
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone"); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_length_that_is_too_long_is_a_cut() {
    let bytes = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"id\": \"resp_1\"}";
    let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert_eq!(
        (answer.status, answer.whole, answer.text().as_str()),
        (StatusCode::OK, false, "{\"id\": \"resp_1\"}")
    );
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_the_content_length_belong_to_no_response() {
    let bytes = format!("{GOOD}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged");
    let scene = BadPeerScene::before(bare(bytes, Then::Stay).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert!(answer.whole);
    assert_eq!(answer.text(), "{\"id\": \"resp_one\"}");
    let next = scene.client.turn(&turn_as_json()).await;
    assert_eq!(next.text(), "{\"id\": \"resp_one\"}");
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "complete"); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_with_its_connection_is_complete() {
    let bytes = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"id\": \"resp_old\", \"model\": \"gpt-5.4\", \
        \"usage\": {\"input_tokens\": 7, \"output_tokens\": 3}}";
    let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert!(answer.whole && answer.json()["id"] == "resp_old");
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
    assert_eq!(
        (
            rows[0].number("input_tokens"),
            rows[0].number("output_tokens")
        ),
        (Some(7), Some(3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_chunks_are_a_cut() {
    for chunks in [
        "5\r\nhello\r\nzz\r\n",
        "5\r\nhelloworld\r\n",
        "ffffffffffffffffff\r\n",
        "5\r\nhello\r\n",
    ] {
        let bytes = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
        let told = check_cut(chunks, &scene.client, &turn("bad")).await;
        let rows = scene.end(1).await;
        assert_eq!(ends(&rows), [told], "{chunks:?}");
    }
}
