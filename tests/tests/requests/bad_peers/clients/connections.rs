//! Connections that idle, end early, carry several requests, or are too many.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;
use tollgate_tests::peer::post;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{BadPeerScene, Client, ends, over_both, turn};

use super::{LATE, body_of, chunked};

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
async fn garbage_after_a_good_request_does_not_affect_its_response() {
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
async fn silent_connections_are_closed() {
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
