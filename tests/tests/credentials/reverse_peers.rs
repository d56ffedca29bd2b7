//! Reverse connections with peers that write single frames: the upgrade, and what a bad peer can
//! do on either side.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tollgate_tests::peer::Peer;
use tollgate_tests::reverse::{
    REVERSE_TOKEN, YamuxFrame, YamuxPeer, back_config, eager, front_config, upgrade,
};
use tollgate_tests::upstream::{Standing, WAIT_MAX};
use tollgate_tests::{Client, Rig, turn};

/// Starts a gateway that can be reached, with these limits.
async fn front(limits: serde_json::Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = front_config(&rig);
    config["limits"] = limits;
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// Starts a gateway that connects to the returned listener.
async fn back(limits: serde_json::Value) -> (Rig, TcpListener) {
    let mut rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut config = back_config(&rig, address);
    config["limits"] = limits;
    rig.start(config).await;
    (rig, listener)
}

const ACCEPTED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: reverse-proxy\r\n\r\n";

/// Returns a request for the status, as a gateway sends it over a stream.
fn status_request() -> String {
    format!(
        "GET /ocm/v1/status HTTP/1.1\r\nHost: reverse-proxy\r\n\
         Authorization: Bearer {REVERSE_TOKEN}\r\n\r\n"
    )
}

/// Returns a turn, as a gateway sends it over a stream.
fn turn_request() -> String {
    let body = turn("one").to_string();
    format!(
        "POST /v1/responses HTTP/1.1\r\nHost: reverse-proxy\r\nContent-Length: {}\r\n\
         Authorization: Bearer {REVERSE_TOKEN}\r\n\r\n{body}",
        body.len()
    )
}

// The upgrade

#[tokio::test(flavor = "multi_thread")]
async fn the_upgrade_is_checked_in_the_order_of_sing_box() {
    let (mut rig, client) = front(json!({})).await;
    let host = "Host: gateway\r\nConnection: Upgrade\r\n";
    let protocol = "Upgrade: reverse-proxy\r\n";
    let token = format!("Authorization: Bearer {REVERSE_TOKEN}\r\n");
    let cases = [
        (format!("GET {host}"), 400, "missing Upgrade header"),
        (
            format!("GET {host}Upgrade: Reverse-Proxy\r\n{token}"),
            400,
            "missing Upgrade header",
        ),
        (
            format!("GET {host}{protocol}X-Api-Key: a\r\n{token}"),
            400,
            "Authorization: Bearer",
        ),
        (format!("GET {host}{protocol}"), 401, "missing api key"),
        (
            format!("GET {host}{protocol}Authorization: Basic a\r\n"),
            401,
            "invalid api key format",
        ),
        (
            format!("GET {host}{protocol}Authorization: Bearer token-alice\r\n"),
            401,
            "invalid reverse token",
        ),
        (
            format!("GET {host}{protocol}Authorization: Bearer {REVERSE_TOKEN}x\r\n"),
            401,
            "invalid reverse token",
        ),
    ];
    for (case, status, text) in cases {
        let (method, fields) = case.split_once(' ').expect("a method");
        let mut peer = Peer::connect(client.address()).await;
        peer.send(format!("{method} /ocm/v1/reverse HTTP/1.1\r\n{fields}\r\n"))
            .await;
        let answer = peer.message().await.expect("an answer");
        assert_eq!(answer.status(), status, "{case}");
        assert!(answer.text().contains(text), "{case}: {}", answer.text());
        assert!(!answer.text().contains(REVERSE_TOKEN));
    }
    // Over HTTP/2 a connection cannot be taken over.
    let http2 = client
        .http2()
        .header("upgrade", "reverse-proxy")
        .token(REVERSE_TOKEN);
    let answer = http2.get("/ocm/v1/reverse").await;
    // The client may leave out the field, which HTTP/2 forbids.
    assert!(
        [400, 500].contains(&answer.status.as_u16()),
        "{}",
        answer.status
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connectors_own_token_accepts_no_connection() {
    let mut rig = Rig::new().await;
    let config = back_config(&rig, ([127, 0, 0, 1], 1).into());
    let client = rig.start(config).await;
    let mut peer = Peer::connect(client.address()).await;
    peer.send(upgrade(client.address(), REVERSE_TOKEN)).await;
    assert_eq!(peer.message().await.expect("an answer").status(), 401);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_method_is_upgraded() {
    let (mut rig, client) = front(json!({})).await;
    let request = upgrade(client.address(), REVERSE_TOKEN).replacen("GET", "OPTIONS", 1);
    let mut peer = Peer::connect(client.address()).await;
    peer.send(request).await;
    rig.wait_for_state("x", "ready").await;
    drop(peer);
    rig.wait_for_state("x", "not_connected").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_equals_that_of_sing_box() {
    let (mut rig, listener) = back(eager()).await;
    let (_peer, head) = YamuxPeer::accept(&listener).await;
    let address = listener.local_addr().expect("an address");
    assert_eq!(head, upgrade(address, REVERSE_TOKEN));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_in_the_segment_of_the_101_are_served() {
    let (mut rig, listener) = back(eager()).await;
    let (mut peer, _) = YamuxPeer::accept(&listener).await;
    let mut bytes = ACCEPTED.as_bytes().to_vec();
    bytes.extend(YamuxFrame::header(1, 1, 1, 256 * 1024));
    bytes.extend(YamuxFrame::data(0, 1, status_request().as_bytes()));
    peer.send(bytes).await.expect("it reads");
    let answer = peer.until(1, "plan_weight").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // The same stream serves the next request.
    let next = YamuxFrame::data(0, 1, status_request().as_bytes());
    peer.send(next).await.expect("it reads");
    peer.until(1, "plan_weight").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_gateway_pauses_before_it_connects_again() {
    let (mut rig, listener) = back(json!({})).await;
    let (mut peer, _) = YamuxPeer::accept(&listener).await;
    let refused = Instant::now();
    peer.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        .await
        .expect("it reads");
    let (_peer, _) = YamuxPeer::accept(&listener).await;
    let pause = refused.elapsed();
    assert!(pause >= Duration::from_millis(1900), "{pause:?}");
    rig.stop().await;
}

// Bad peers in place of the gateway behind

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_replaces_the_older_one() {
    let (mut rig, client) = front(json!({})).await;
    let mut older = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    let mut newer = YamuxPeer::connect(client.address()).await;
    let farewell = older.frame_that(|frame| frame.kind == 3).await;
    assert_eq!(farewell.length, 0, "it is asked to go away");
    assert_eq!(rig.credential("x").await["state"], "ready");
    // The newer one is asked for its status.
    let opened = newer
        .frame_that(|frame| frame.flags & 1 != 0 && frame.kind == 1)
        .await;
    assert_eq!((opened.stream % 2, opened.length), (1, 256 * 1024));
    let request = newer.until(opened.stream, "\r\n\r\n").await;
    assert!(
        request.starts_with("GET /ocm/v1/status HTTP/1.1\r\n"),
        "{request}"
    );
    let request = request.to_ascii_lowercase();
    assert!(request.contains("host: reverse-proxy\r\n"), "{request}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_connection_finishes_its_requests() {
    let (mut rig, client) = front(json!({})).await;
    let mut older = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    let sender = client.clone();
    let asked = tokio::spawn(async move { sender.turn(&turn("one")).await });
    let stream = turn_stream(&mut older).await;
    let _newer = YamuxPeer::connect(client.address()).await;
    older.frame_that(|frame| frame.kind == 3).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    older
        .send(YamuxFrame::data(0, stream, answer))
        .await
        .expect("it reads");
    let answer = asked.await.expect("no panic");
    assert_eq!(
        (answer.status, answer.text()),
        (StatusCode::OK, "{}".to_owned())
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_after_a_replacement_are_sent_over_the_newer_connection() {
    let (mut rig, client) = front(json!({})).await;
    let mut older = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    // The older one answers, so that a stream of it is idle and could be used again.
    answer_turn(&client, &mut older).await;
    let mut newer = YamuxPeer::connect(client.address()).await;
    older.frame_that(|frame| frame.kind == 3).await;
    // From here on the older one reads nothing.
    for _ in 0..3 {
        answer_turn(&client, &mut newer).await;
    }
    rig.stop().await;
}

/// Sends a turn, which `peer` answers.
async fn answer_turn(client: &Client, peer: &mut YamuxPeer) {
    let sender = client.clone();
    let asked = tokio::spawn(async move { sender.turn(&turn("one")).await });
    let arriving = tokio::time::timeout(WAIT_MAX, turn_stream(peer)).await;
    let stream = arriving.expect("the turn arrives");
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let answer = YamuxFrame::data(0, stream, answer);
    peer.send(answer).await.expect("it reads");
    let answer = asked.await.expect("no panic");
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.text(), "{}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_no_ping_loses_its_connection() {
    let limits = json!({ "reverse_keep_alive": "50ms", "reverse_stall_timeout": "300ms" });
    let (mut rig, client) = front(limits).await;
    let peer = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    rig.wait_for_state("x", "not_connected").await;
    drop(peer);
    rig.stop().await;
}

/// Waits for the stream of a turn that `client` sends.
async fn turn_stream(peer: &mut YamuxPeer) -> u32 {
    loop {
        let frame = peer.frame_that(|frame| frame.kind == 0).await;
        if String::from_utf8_lossy(&frame.data).starts_with("POST /v1/responses") {
            return frame.stream;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_away_in_a_frame_fails_its_requests_alone() {
    let (mut rig, client) = front(json!({})).await;
    let mut peer = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    let sender = client.clone();
    let asked = tokio::spawn(async move { sender.turn(&turn("one")).await });
    let stream = turn_stream(&mut peer).await;
    let mut half = YamuxFrame::header(0, 0, stream, 1000);
    half.extend(b"HTTP/1.1 200 OK\r\n");
    peer.send(half).await.expect("it reads");
    drop(peer);
    assert_eq!(
        asked.await.expect("no panic").status,
        StatusCode::BAD_GATEWAY
    );
    rig.wait_for_state("x", "not_connected").await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_ignores_its_credit_loses_its_connection() {
    let (mut rig, client) = front(json!({})).await;
    let mut peer = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    let sender = client.clone();
    let asked = tokio::spawn(async move { sender.turn(&turn("one")).await });
    let stream = turn_stream(&mut peer).await;
    let too_much = YamuxFrame::header(0, 0, stream, 512 * 1024 + 1);
    peer.send(too_much).await.expect("it reads");
    assert_eq!(peer.until_closed().await, Some(1), "a protocol error");
    assert_ne!(asked.await.expect("no panic").status, StatusCode::OK);
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_a_peer_that_reads_nothing_ends_its_connection() {
    let (mut rig, client) = front(json!({ "reverse_stall_timeout": "500ms" })).await;
    let mut peer = YamuxPeer::connect(client.address()).await;
    rig.wait_for_state("x", "ready").await;
    // Pings and streams without end, whose answers are not read.
    let flooding = tokio::spawn(async move {
        let mut block = Vec::new();
        for number in 0..4096 {
            block.extend(YamuxFrame::header(2, 1, 0, number));
            block.extend(YamuxFrame::header(1, 1, 2 * number + 2, 0));
        }
        while peer.send(&block).await.is_ok() {}
    });
    tokio::time::timeout(WAIT_MAX, flooding)
        .await
        .expect("the connection ends")
        .expect("no panic");
    rig.wait_for_state("x", "not_connected").await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    rig.stop().await;
}

// Bad peers in place of the gateway in front

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_reset() {
    let mut limits = eager();
    limits["reverse_streams"] = json!(3);
    let (mut rig, listener) = back(limits).await;
    let (mut peer, _) = YamuxPeer::accept(&listener).await;
    peer.send(ACCEPTED).await.expect("it reads");
    for number in 0..100 {
        let id = 2 * number + 1;
        let opening = YamuxFrame::header(1, 1, id, 0);
        peer.send(opening).await.expect("it reads");
        let answer = peer.frame_that(|frame| frame.stream == id).await;
        let expected = if number < 3 { 2 } else { 8 };
        assert_eq!(answer.flags, expected, "stream {id}");
    }
    // An open one serves.
    let request = YamuxFrame::data(0, 1, status_request().as_bytes());
    peer.send(request).await.expect("it reads");
    peer.until(1, "plan_weight").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_go_away_connects_again_and_finishes_its_streams() {
    let (mut rig, listener) = back(eager()).await;
    let (mut first, _) = YamuxPeer::accept(&listener).await;
    first.send(ACCEPTED).await.expect("it reads");
    let mut watching = YamuxFrame::header(1, 1, 1, 256 * 1024);
    let request = status_request().replacen("/status", "/status?watch=true", 1);
    watching.extend(YamuxFrame::data(0, 1, request.as_bytes()));
    first.send(watching).await.expect("it reads");
    let line = first.until(1, "plan_weight").await;
    assert!(
        !line.to_ascii_lowercase().contains("content-length"),
        "{line}"
    );
    first
        .send(YamuxFrame::header(3, 0, 0, 0))
        .await
        .expect("it reads");
    let (mut second, _) = YamuxPeer::accept(&listener).await;
    second.send(ACCEPTED).await.expect("it reads");
    // The status is still watched over the first one.
    rig.account("far")
        .set_standing(Standing::new("plus").weekly_used(50.0));
    let mut next = YamuxFrame::header(1, 1, 1, 0);
    next.extend(YamuxFrame::data(0, 1, turn_request().as_bytes()));
    second.send(next).await.expect("it reads");
    second.until(1, "response.completed").await;
    first.until(1, "plan_weight").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_place_of_a_response_or_of_frames_is_survived() {
    let (mut rig, listener) = back(eager()).await;
    for garbage in [
        "",
        "HTTP/1.1 101",
        "HTTP/1.1 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 101 \r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let (mut peer, _) = YamuxPeer::accept(&listener).await;
        peer.send(garbage).await.expect("it reads");
        drop(peer);
    }
    let (mut peer, _) = YamuxPeer::accept(&listener).await;
    let mut bytes = ACCEPTED.as_bytes().to_vec();
    bytes.extend(YamuxFrame::data(1, 1, status_request().as_bytes()));
    peer.send(bytes).await.expect("it reads");
    peer.until(1, "plan_weight").await;
    rig.stop().await;
}
