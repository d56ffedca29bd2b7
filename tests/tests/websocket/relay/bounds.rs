//! The bounds of sockets: sizes, numbers, silence, and peers that do not read.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, Reply, SeenMessage, SeenSocket, SocketReply, Upgrade};
use tollgate_tests::{Client, Event, Rig, Socket, turn};

use super::{echo, open, pool};

/// What happens by itself happens within this.
const SOON: Duration = Duration::from_secs(10);

/// The code of the close frame that comes next, which has a reason, and then the end.
async fn closed(socket: &mut Socket) -> u16 {
    let event = socket.next_message().await;
    let Event::Close(code, reason) = event else {
        panic!("expected a close frame, found {event:?}")
    };
    assert!(!reason.is_empty(), "{code} without a reason");
    assert_eq!(socket.next().await, Event::Gone);
    code
}

const MESSAGE_BYTES: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_the_bound_passes_and_one_past_it_closes_with_1009() {
    let (mut rig, client) = echo(json!({ "websocket_message_bytes": MESSAGE_BYTES })).await;
    let sizes: [&[usize]; 2] = [&[MESSAGE_BYTES + 1], &[30_000]];
    for client in [client.clone(), client.http2()] {
        for sizes in sizes {
            let mut socket = open(&client).await;
            let fits = "x".repeat(MESSAGE_BYTES);
            for _ in 0..3 {
                socket.send_fragments(&fits, sizes).await;
                assert!(
                    socket.next().await == Event::Text(fits.clone()),
                    "another message"
                );
            }
            socket
                .send_fragments(&"x".repeat(MESSAGE_BYTES + 1), sizes)
                .await;
            assert_eq!(closed(&mut socket).await, 1009, "in frames of {sizes:?}");
        }
    }
    rig.upstream.wait_for_sockets_ended(4).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_upstreams_past_the_bound_closes_with_1011() {
    let (mut rig, client) = pool(&["a"], json!({ "websocket_message_bytes": MESSAGE_BYTES })).await;
    let fits = "x".repeat(MESSAGE_BYTES);
    let reply = SocketReply::silent()
        .text(fits.clone())
        .text("x".repeat(MESSAGE_BYTES + 1));
    rig.account("a").then_handshake(Upgrade::new().greet(reply));
    let mut socket = open(&client).await;
    assert!(socket.next().await == Event::Text(fits), "another message");
    assert_eq!(closed(&mut socket).await, 1011);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_a_user_are_limited_and_a_closed_one_makes_room() {
    let (mut rig, client) = pool(&["a"], json!({ "websockets_per_user": 2 })).await;
    let (mut first, _second) = (open(&client).await, open(&client.http2()).await);
    for client in [client.clone(), client.http2()] {
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["error"]["code"], "overloaded");
    }
    let _bobs = open(&Client::new(client.address()).token("token-bob")).await;
    first.close(1000, "").await;
    let begun = Instant::now();
    while client.socket().await.is_err() {
        assert!(begun.elapsed() < SOON, "a closed socket keeps its place");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_handshake_does_not_count_as_a_socket() {
    let (mut rig, client) = pool(&["a"], json!({ "websockets_per_user": 1 })).await;
    for _ in 0..3 {
        rig.account("a").then_handshake(Reply::raw(403, "no"));
        assert_eq!(
            client.socket().await.expect_err("refused").status,
            StatusCode::FORBIDDEN
        );
    }
    open(&client).await.turn(&turn("one")).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_closes_with_1001_and_a_busy_one_stays() {
    // Long enough for a slow machine to ask for a turn within it.
    let limit = Duration::from_millis(1500);
    let (mut rig, client) = pool(&["a"], json!({ "websocket_idle_timeout": "1500ms" })).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::silent().hold(&gate).then_begun().completed());
    let begun = Instant::now();
    let mut idle = open(&client).await;
    assert_eq!(closed(&mut idle).await, 1001);
    assert!(begun.elapsed() >= limit);
    let mut busy = open(&client).await;
    busy.create(&turn("busy")).await;
    assert!(busy.is_quiet_for(limit * 2).await);
    gate.open();
    busy.rest_of_turn().await;
    assert_eq!(closed(&mut busy).await, 1001);
    rig.stop().await;
}

/// For how long a process has run on a processor so far.
fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    let after_name = &stat[stat.rfind(')').expect("a name") + 1..];
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    // Linux counts 100 of them a second, whatever its own timer does.
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_past_the_idle_limit_continues_without_using_the_cpu() {
    let rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    // Long enough for a slow machine to ask for a turn within it.
    config["limits"] = json!({ "websocket_idle_timeout": "1s" });
    let program = rig.spawn(&config).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let mut socket = open(&program.client().token("token-alice")).await;
    socket.create(&turn("long")).await;
    while !matches!(socket.next().await, Event::Text(text) if text.contains("response.output_item.done"))
    {
    }
    assert!(socket.is_quiet_for(Duration::from_millis(1500)).await);
    let before = cpu(program.id());
    assert!(socket.is_quiet_for(Duration::from_secs(3)).await);
    let used = cpu(program.id()) - before;
    assert!(
        used < Duration::from_millis(300),
        "{used:?} of three seconds"
    );
    gate.open();
    socket.rest_of_turn().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_client_stays_only_if_it_answers_pings() {
    // A slow machine answers a ping within this. A peer that answers none is dropped after two.
    let (mut rig, client) = pool(&["a"], json!({ "websocket_ping_interval": "1500ms" })).await;
    for client in [client.clone(), client.http2()] {
        let before = rig.upstream.sockets().len();
        let mut silent = open(&client).await.into_raw();
        // Read from at once: a ping is answered only then.
        let mut answering = open(&client).await;
        for _ in 0..3 {
            assert!(matches!(answering.next().await, Event::Ping(_)));
        }
        answering.turn(&turn("one")).await;
        let mut sent = Vec::new();
        let ended = timeout(SOON, silent.read_to_end(&mut sent)).await;
        assert!(ended.is_ok(), "it is kept though it answers nothing");
        assert_eq!(&sent[..2], [0x89, 0], "a ping");
        let gone =
            |sockets: &[SeenSocket]| sockets.get(before).is_some_and(|silent| !silent.is_open());
        rig.upstream
            .wait_until_sockets("the silent one has ended", gone)
            .await;
    }
    rig.stop().await;
}

const PIECE: usize = 1 << 20;

/// More than the kernel's buffers of two connections over loopback.
const BUFFERED_MAX: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_stops_reading_pauses_the_client() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let gate = Gate::new();
    rig.account("a")
        .then_handshake(Upgrade::new().hold_reading(&gate));
    let mut socket = open(&client).await;
    let piece = Bytes::from(vec![7; PIECE]);
    let mut sent = 0;
    // The message that is not sent stays in the client library and is sent with the next.
    while timeout(Duration::from_secs(1), socket.send_binary(piece.clone()))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < BUFFERED_MAX, "{sent} MiB went somewhere");
    }
    gate.open();
    socket.send_text("the last").await;
    let seen = rig
        .upstream
        .wait_for_socket_messages(sent + 2)
        .await
        .remove(0)
        .messages;
    assert!(
        seen[..=sent]
            .iter()
            .all(|message| *message == SeenMessage::Binary(piece.clone()))
    );
    assert_eq!(seen[sent + 1], SeenMessage::Text("the last".into()));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_pauses_upstream() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let (sent, piece) = (Gate::new(), Bytes::from(vec![7; PIECE]));
    let all = (0..BUFFERED_MAX).fold(SocketReply::silent(), |reply, _| {
        reply.binary(piece.clone())
    });
    rig.account("a")
        .then_handshake(Upgrade::new().greet(all.hold(&sent)));
    let mut socket = open(&client).await;
    let went = timeout(Duration::from_secs(1), sent.wait_until_reached()).await;
    assert!(went.is_err(), "{BUFFERED_MAX} MiB went somewhere");
    for _ in 0..BUFFERED_MAX {
        assert!(
            socket.next().await == Event::Binary(piece.clone()),
            "another message"
        );
    }
    sent.wait_until_reached().await;
    rig.stop().await;
}
