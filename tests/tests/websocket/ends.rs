//! WebSocket: how a socket ends where one side sends or reads otherwise than the other expects.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{sleep, timeout};
use tollgate_tests::upstream::{SocketError, SocketReply, Upgrade, WAIT_MAX};
use tollgate_tests::{Client, Event, Rig, Socket, turn};

/// A gateway with the account `a` alone and these limits, and a client of it.
async fn alone(limits: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    config["limits"] = limits;
    let client = rig.start(config).await;
    (rig, client)
}

async fn open(client: &Client) -> Socket {
    client
        .socket()
        .await
        .unwrap_or_else(|answer| panic!("no socket: {} {}", answer.status, answer.text()))
}

// Upstream ends while the client sends

/// More than the buffers on the way to upstream hold: it is still being sent when upstream has gone.
const SENT: usize = 8 << 20;

/// Whether the gateway reads the error first, or finds first that nothing can be sent any more, is chance: so often it is tried,
/// with so much.
const RESETS: usize = 60;
const SENT_AT_ONCE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_a_client_that_is_still_sending_however_upstream_ends_then() {
    let (mut rig, client) = alone(json!({})).await;
    let error = SocketError::connection_limit_reached();
    let ends: [(&str, fn(SocketReply) -> SocketReply); 3] = [
        ("a close frame", |reply| reply.close(1000, "over")),
        ("FIN", SocketReply::finish),
        ("RST", SocketReply::reset),
    ];
    for client in [client.clone(), client.http2()] {
        for (way, end) in ends {
            rig.account("a").then_socket(end(error.clone().into()));
            let mut socket = open(&client).await;
            socket.create(&turn("one")).await;
            socket.send_binary(vec![7; SENT]).await;
            let event = socket.next_message().await;
            assert_eq!(event, Event::Text(error.event().to_string()), "by {way}");
            assert!(
                matches!(socket.next_message().await, Event::Close(..)),
                "by {way}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_before_a_reset_reaches_the_client_whichever_of_them_the_gateway_sees_first() {
    let (mut rig, client) = alone(json!({})).await;
    let error = SocketError::connection_limit_reached();
    for client in [client.clone(), client.http2()] {
        for number in 0..RESETS {
            rig.account("a")
                .then_socket(SocketReply::from(error.clone()).reset());
            let mut socket = open(&client).await;
            socket.create(&turn("one")).await;
            for part in vec![7; SENT_AT_ONCE].chunks(SENT_AT_ONCE / 4) {
                socket.send_binary(part.to_vec()).await;
            }
            assert_eq!(
                socket.next_message().await,
                Event::Text(error.event().to_string()),
                "reset {number}"
            );
        }
    }
    rig.stop().await;
}

// A client that reads slowly

/// A client that shows nothing for two of these is taken for gone.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// As much as upstream sends in one frame, and what of it the client reads at a time.
const FRAME: usize = 40 << 20;
const STEP: usize = 2 << 20;
const STEP_TIME: Duration = Duration::from_millis(250);

/// Reads that many bytes, not sooner than a slow client does.
async fn read_slowly(from: &mut (impl AsyncRead + Unpin), bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    for step in read.chunks_mut(STEP) {
        // Its slowness is what is tested.
        sleep(STEP_TIME).await;
        timeout(WAIT_MAX, from.read_exact(step))
            .await
            .expect("in time")
            .expect("it is not cut");
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_one_frame_slowly_is_not_disconnected() {
    let (mut rig, client) = alone(json!({ "websocket_ping_interval": "1s" })).await;
    for client in [client.clone(), client.http2()] {
        let piece = Bytes::from(vec![7; FRAME]);
        rig.account("a")
            .then_handshake(Upgrade::new().greet(SocketReply::silent().binary(piece)));
        let mut raw = open(&client).await.into_raw();
        let begun = Instant::now();
        let frame = read_slowly(&mut raw, 10 + FRAME).await;
        assert!(
            begun.elapsed() > PING_INTERVAL * 4,
            "too fast to show anything"
        );
        assert_eq!(frame[..2], [0x82, 127]);
        assert!(frame[10..].iter().all(|byte| *byte == 7));
        // It is kept, and asked whether it is there.
        let mut ping = [0; 2];
        timeout(WAIT_MAX, raw.read_exact(&mut ping))
            .await
            .expect("in time")
            .expect("it is not cut");
        assert_eq!(ping, [0x89, 0]);
    }
    rig.stop().await;
}
