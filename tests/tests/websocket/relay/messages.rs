//! Messages in both directions.

use bytes::Bytes;
use serde_json::json;
use tollgate_tests::upstream::{SeenMessage, SocketEnd, SocketReply, Upgrade};
use tollgate_tests::{Event, Part};

use super::{echo, open, pool};

/// The longest message that Codex was seen to take.
const LONG: usize = 6_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_kind_and_length_are_unchanged() {
    let (mut rig, client) = echo(json!({})).await;
    let text = "é→🦀 {\"type\":\"theirs\"}".repeat(1000);
    let long = "x".repeat(LONG);
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let mut socket = open(&client).await;
        socket.send_text("").await;
        socket.send_text(text.clone()).await;
        socket.send_binary(vec![0, 159, 255]).await;
        socket.send_fragments(&text, &[1, 0, 7, 1000]).await;
        for expected in [Event::Text(String::new()), Event::Text(text.clone())] {
            assert_eq!(socket.next().await, expected);
        }
        assert_eq!(
            socket.next().await,
            Event::Binary(Bytes::from_static(&[0, 159, 255]))
        );
        assert_eq!(socket.next().await, Event::Text(text.clone()));
        socket.send_text(long.clone()).await;
        assert!(
            socket.next().await == Event::Text(long.clone()),
            "another message of 6 MB"
        );
        socket.send_binary(long.clone()).await;
        assert!(
            socket.next().await == Event::Binary(long.clone().into()),
            "another message of 6 MB"
        );
        let seen = rig.upstream.sockets().remove(place).messages;
        let expected = [
            SeenMessage::Text(Bytes::new()),
            SeenMessage::Text(text.clone().into()),
            SeenMessage::Binary(Bytes::from_static(&[0, 159, 255])),
            SeenMessage::Text(text.clone().into()),
            SeenMessage::Text(long.clone().into()),
            SeenMessage::Binary(long.clone().into()),
        ];
        assert!(seen == expected, "upstream saw other messages");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_client_keep_their_order_with_pings_between_fragments() {
    let (mut rig, client) = echo(json!({})).await;
    let mut socket = open(&client).await;
    socket.send_part(Part::First, "one ").await;
    socket.ping("p1").await;
    socket.send_part(Part::Middle, "").await;
    socket.pong("unasked").await;
    socket.ping("p2").await;
    socket.send_part(Part::Last, "message").await;
    socket.send_binary("two").await;
    let mut events = Vec::new();
    while events.len() < 4 {
        events.push(socket.next().await);
    }
    let (pongs, messages): (Vec<_>, Vec<_>) = events
        .into_iter()
        .partition(|event| matches!(event, Event::Pong(_)));
    assert_eq!(pongs, [Event::Pong("p1".into()), Event::Pong("p2".into())]);
    assert_eq!(
        messages,
        [
            Event::Text("one message".into()),
            Event::Binary("two".into())
        ]
    );
    let seen = rig.upstream.sockets().remove(0);
    assert_eq!(
        (seen.pings, seen.pongs),
        (vec!["p1".into(), "p2".into()], vec!["unasked".into()])
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_upstream_keep_their_order_with_pings_within_messages() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let texts = SocketReply::silent()
        .text("one")
        .ping("p1")
        .binary("two")
        .pong("unasked")
        .text("three");
    rig.account("a")
        .then_handshake(Upgrade::new().greet(texts.fragments(&[1]).ping_within("within")));
    let mut socket = open(&client).await;
    for expected in [
        Event::Ping("within".into()),
        Event::Text("one".into()),
        Event::Ping("p1".into()),
        Event::Ping("within".into()),
        Event::Binary("two".into()),
        Event::Pong("unasked".into()),
        Event::Ping("within".into()),
        Event::Text("three".into()),
    ] {
        assert_eq!(socket.next().await, expected);
    }
    socket.ping("the pongs before it are out").await;
    let seen = rig
        .upstream
        .wait_until_sockets("a ping", |sockets| sockets[0].pings.len() == 1)
        .await;
    assert!(
        seen[0].pongs.contains(&Bytes::from("p1"))
            && seen[0].pongs.contains(&Bytes::from("within"))
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_keeps_its_code_and_reason_both_ways() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let cases = [(1000, ""), (4001, "bye"), (1005, ""), (3000, "é")];
    let mut count = 0;
    for client in [client.clone(), client.http2()] {
        for (code, reason) in cases {
            let expected = SocketEnd::Closed {
                code,
                reason: reason.to_owned(),
            };
            let mut leaving = open(&client).await;
            leaving.close(code, reason).await;
            count += 1;
            assert_eq!(
                rig.upstream.wait_for_sockets_ended(count).await[count - 1].end,
                Some(expected.clone())
            );
            // The answer to a close frame repeats its code.
            assert!(matches!(leaving.next().await, Event::Close(found, _) if found == code));
            assert_eq!(leaving.next().await, Event::Gone);

            rig.account("a")
                .then_handshake(Upgrade::new().greet(SocketReply::silent().close(code, reason)));
            let mut left = open(&client).await;
            assert_eq!(left.next().await, Event::Close(code, reason.to_owned()));
            assert_eq!(left.next().await, Event::Gone);
            count += 1;
            let ended = rig
                .upstream
                .wait_for_sockets_ended(count)
                .await
                .remove(count - 1)
                .end;
            assert!(
                matches!(ended, Some(SocketEnd::Closed { code: found, .. }) if found == code),
                "{ended:?}"
            );
        }
    }
    rig.stop().await;
}
