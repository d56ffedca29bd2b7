//! Handshakes: accepted, refused, and odd.

use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::{Client, connect, connect_with, handshake, next_message};
use crate::tests::*;

#[tokio::test]
async fn the_handshake_reports_the_accounts_usage() {
    let (upstream, ana) = start().await;
    upstream.api_key("sk-key", "key");
    ana.set_standing(Standing::new("pro").five_hour_used(12.0));
    let request = handshake(&upstream, RESPONSES, "at-ana");
    let (_client, headers) = connect_with(&upstream, request).await.expect("upgraded");
    assert_eq!(headers["x-codex-primary-used-percent"], "12");
    for (name, value) in [
        ("openai-model", "scripted-model"),
        ("x-reasoning-included", "true"),
        ("server", "scripted"),
    ] {
        assert_eq!(headers[name], value);
    }
    let request = handshake(&upstream, "/v1/responses", "sk-key");
    let (_client, headers) = connect_with(&upstream, request).await.expect("upgraded");
    assert!(!headers.contains_key("x-codex-primary-used-percent"));
    let sockets = upstream.wait_for_sockets(2).await;
    assert_eq!(
        [&sockets[0].account, &sockets[1].account],
        ["acct-ana", "key"]
    );
    assert_eq!(
        sockets[0].request.header("authorization"),
        Some("Bearer at-ana")
    );
    assert_eq!(
        (
            ana.handshake_count(),
            ana.socket_count(),
            upstream.request_count()
        ),
        (1, 1, 2)
    );
    assert_eq!(upstream.open_socket_count(), 2);
}

#[tokio::test]
async fn a_handshake_is_rejected_like_a_request() {
    let (upstream, ana) = start().await;
    let refusal = |result: Result<(Client, HeaderMap), Error>| match result {
        Err(Error::Http(response)) => *response,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("upgraded"),
    };
    ana.then_handshake(Reply::usage_limit_reached().resets_in_seconds(60))
        .then_handshake(Reply::server_error(500));
    for status in [429, 500] {
        let response =
            refusal(connect_with(&upstream, handshake(&upstream, RESPONSES, "at-ana")).await);
        assert_eq!(response.status(), status);
        let body: Value =
            serde_json::from_slice(response.body().as_ref().expect("a body")).expect("JSON");
        assert!(body["error"]["type"].is_string());
    }
    let response =
        refusal(connect_with(&upstream, handshake(&upstream, RESPONSES, "at-unknown")).await);
    assert_eq!(response.status(), 401);
    assert_eq!(
        (
            ana.handshake_count(),
            ana.socket_count(),
            upstream.sockets().len()
        ),
        (2, 0, 0)
    );
    assert_eq!(upstream.request_count(), 3);
    for (name, value) in [
        ("sec-websocket-version", "12"),
        ("sec-websocket-key", "short"),
        ("connection", "close"),
    ] {
        let mut asked = request(RESPONSES, "at-ana", "");
        let key = generate_key();
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key.as_str()),
        ] {
            asked
                .headers_mut()
                .insert(name, value.parse().expect("a value"));
        }
        asked
            .headers_mut()
            .insert(name, value.parse().expect("a value"));
        assert_eq!(
            send(&upstream, asked).await.expect("an answer").status(),
            400,
            "{name}"
        );
    }
    assert_eq!(
        send(&upstream, request(RESPONSES, "at-ana", ""))
            .await
            .expect("an answer")
            .status(),
        404
    );
}

#[tokio::test]
async fn an_upgrade_deviates_as_scripted() {
    let (upstream, ana) = start().await;
    ana.then_handshake(Upgrade::new().wrong_accept_key());
    let refused = connect_with(&upstream, handshake(&upstream, RESPONSES, "at-ana")).await;
    assert!(matches!(refused, Err(Error::Protocol(_))));
    ana.then_handshake(Upgrade::new().greet(SocketReply::silent().close(1011, "no room")));
    let mut client = connect(&upstream).await;
    assert!(
        matches!(next_message(&mut client).await, Message::Close(Some(frame)) if frame.reason == "no room")
    );
    let gate = Gate::new();
    ana.then_handshake(
        Upgrade::new()
            .header("x-codex-turn-state", "s")
            .without_rate_limits()
            .hold_head(&gate),
    );
    let (_, (_, headers)) = tokio::join!(
        async {
            gate.wait_until_reached().await;
            gate.open();
        },
        async {
            connect_with(&upstream, handshake(&upstream, RESPONSES, "at-ana"))
                .await
                .expect("upgraded")
        },
    );
    assert_eq!(headers["x-codex-turn-state"], "s");
    assert!(!headers.contains_key("x-codex-primary-used-percent"));
}

#[tokio::test]
async fn invalid_websocket_data_is_reported() {
    let (upstream, _ana) = start().await;
    let mut client = connect(&upstream).await;
    client
        .get_mut()
        .write_all(b"\x81\x01a")
        .await
        .expect("written");
    let sockets = upstream.wait_for_sockets_ended(1).await;
    assert!(
        matches!(&sockets[0].end, Some(SocketEnd::Violated(why)) if why.contains("mask")),
        "{:?}",
        sockets[0].end
    );
}
