//! How sockets end, and peers that do not read.

use std::pin::pin;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{connect, create, next, send_text};
use crate::tests::*;

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_seen() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.always_socket(SocketReply::begun().hold(&gate).completed());
    let mut client = connect(&upstream).await;
    send_text(&mut client, create(json!({}))).await;
    gate.wait_until_reached().await;
    drop(client);
    assert_eq!(
        upstream.wait_for_sockets_ended(1).await[0].end,
        Some(SocketEnd::Gone)
    );
    let mut client = connect(&upstream).await;
    send_text(&mut client, create(json!({}))).await;
    gate.wait_until_reached_times(2).await;
    client
        .close(Some(CloseFrame {
            code: 4001.into(),
            reason: "bye".into(),
        }))
        .await
        .expect("sent");
    let sockets = upstream.wait_for_sockets_ended(2).await;
    assert_eq!(
        sockets[1].end,
        Some(SocketEnd::Closed {
            code: 4001,
            reason: "bye".to_owned()
        })
    );
    assert_eq!(
        (
            upstream.open_socket_count(),
            upstream.sockets()[1].is_open()
        ),
        (0, false)
    );
}

#[tokio::test]
async fn connections_end_as_scripted() {
    let (upstream, ana) = start().await;
    for (reply, end) in [
        (SocketReply::ok().finish(), SocketEnd::Gone),
        (
            SocketReply::silent().raw(b"\x81\x7e".as_slice()).finish(),
            SocketEnd::Gone,
        ),
        (SocketReply::silent().reset(), SocketEnd::Reset),
        (
            SocketReply::silent().close(NO_CLOSE_CODE, ""),
            SocketEnd::Closed {
                code: 1005,
                reason: String::new(),
            },
        ),
    ] {
        ana.then_socket(reply);
        let mut client = connect(&upstream).await;
        send_text(&mut client, create(json!({}))).await;
        let last = loop {
            match next(&mut client).await {
                Some(Ok(Message::Text(_))) => {}
                last => break last,
            }
        };
        match (&end, last) {
            (SocketEnd::Closed { .. }, Some(Ok(Message::Close(None)))) => {}
            (SocketEnd::Reset, Some(Err(Error::Io(error)))) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
            (SocketEnd::Gone, Some(Err(Error::Protocol(_)))) => {}
            (end, last) => panic!("{end:?}: {last:?}"),
        }
        // A client answers a close frame when it is read from.
        let _ = client.next().await;
        drop(client);
        let count = ana.socket_count();
        assert_eq!(
            upstream.wait_for_sockets_ended(count).await[count - 1]
                .end
                .as_ref(),
            Some(&end)
        );
    }
}

#[tokio::test]
async fn a_scripted_upstream_that_stops_reading_pauses_its_client() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then_handshake(Upgrade::new().hold_reading(&gate));
    let mut client = connect(&upstream).await;
    // More than the system's buffers hold.
    let mut sending = pin!(client.send(Message::binary(vec![0; 64 << 20])));
    gate.wait_until_reached().await;
    assert!(
        tokio::time::timeout(Duration::from_millis(100), &mut sending)
            .await
            .is_err()
    );
    gate.open();
    sending.await.expect("sent");
    let sockets = upstream.wait_for_socket_messages(1).await;
    assert_eq!(sockets[0].messages[0].payload().len(), 64 << 20);
}

#[tokio::test]
async fn stopping_ends_sockets_too() {
    let (upstream, _ana) = start().await;
    let mut client = connect(&upstream).await;
    upstream.wait_for_sockets(1).await;
    upstream.stop().await;
    assert!(matches!(next(&mut client).await, None | Some(Err(_))));
}
