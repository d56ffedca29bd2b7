//! What a script sets and reads over the control listener.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;

#[tokio::test]
async fn a_login_is_renewed_and_counted() {
    let upstream = Upstream::start().await;
    let login = SteeredLogin::new(upstream.login("acct"));
    let before = login.login.auth_json();
    let told = login.direct(br#"{"renew_with": -60}"#).expect("a script");
    assert_eq!(
        told["tokens"]["refresh_token"],
        before["tokens"]["refresh_token"]
    );
    assert_ne!(
        told["tokens"]["access_token"],
        before["tokens"]["access_token"]
    );
    assert_eq!(
        login.direct(b"{}").expect("a script")["tokens"],
        told["tokens"],
        "nothing was asked for"
    );
    assert_eq!(
        login.counts(),
        json!({"posts": 0, "rotations": 0, "reuses": 0, "revoked": false})
    );
    login
        .direct(br#"{"renew_width": 60}"#)
        .expect_err("an unknown key");
}

#[tokio::test]
async fn a_socket_follows_its_script_and_is_reported() {
    let upstream = Upstream::start().await;
    let account = SteeredAccount::new(upstream.account("at", "acct"));
    let steps = br#"{"then_socket": [["begun", {"event": {"type": "error", "status": 429}},
            {"close": {"code": 1012, "reason": "moved"}}]]}"#;
    account.direct(steps).expect("a script");
    let mut client = socket_to(&upstream).await;
    client
        .send(Message::text(r#"{"type":"response.create"}"#))
        .await
        .expect("sent");
    client.send(Message::binary("abc")).await.expect("sent");
    let mut last = None;
    while let Some(Ok(message @ (Message::Text(_) | Message::Close(_)))) = client.next().await {
        if message.is_text() {
            last = Some(message);
        }
    }
    assert_eq!(
        last,
        Some(Message::text(r#"{"type":"error","status":429}"#))
    );
    let told = told_socket(&upstream.wait_for_sockets_ended(1).await[0]);
    assert_eq!(
        told["messages"],
        json!([r#"{"type":"response.create"}"#, {"binary_bytes": 3}])
    );
    assert_eq!(
        told["end"],
        json!({"closed": {"code": 1012, "reason": "moved"}})
    );
    assert_eq!(
        (&told["account"], &told["request"]["target"]),
        (&json!("acct"), &json!("/v1/responses"))
    );
}

async fn socket_to(upstream: &Upstream) -> WebSocketStream<TcpStream> {
    let url = format!("ws://{}/v1/responses", upstream.address());
    let mut request = url.into_client_request().expect("a request");
    request
        .headers_mut()
        .insert("authorization", HeaderValue::from_static("Bearer at"));
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    client_async(request, stream).await.expect("upgraded").0
}

#[tokio::test]
async fn a_held_turn_continues_once_it_is_released() {
    let upstream = Upstream::start().await;
    let account = SteeredAccount::new(upstream.account("at", "acct"));
    account
        .direct(br#"{"always_socket": [{"event": {"n": 1}}, "hold", {"event": {"n": 2}}]}"#)
        .expect("a script");
    let mut client = socket_to(&upstream).await;
    let mut ask = async |release: &[u8]| {
        client
            .send(Message::text(r#"{"type":"response.create"}"#))
            .await
            .expect("sent");
        let first = client.next().await.expect("a message").expect("a message");
        account.direct(release).expect("a script");
        [
            first,
            client.next().await.expect("a message").expect("a message"),
        ]
    };
    let expected = [r#"{"n":1}"#, r#"{"n":2}"#].map(Message::text);
    assert_eq!(ask(br#"{"release": true}"#).await, expected);
    // A released gate does not hold again.
    assert_eq!(ask(b"{}").await, expected);
}

#[tokio::test]
async fn a_script_is_applied_completely_or_not_at_all() {
    let upstream = Upstream::start().await;
    let account = upstream.account("at", "acct");
    let steered = SteeredAccount::new(account.clone());
    let first = br#"{"then": [{"status": 429, "body": {"error": {}}}], "weekly": 60}"#;
    steered.direct(first).expect("a script");
    assert_eq!(account.standing().weekly.used_percent, 60.0);
    let sockets =
        br#"{"then_socket": [["begun", "completed", {"close": {"code": 1012, "reason": "moved"}}]],
            "always_socket": [{"event": {"type": "error", "status": 429, "error": {}}}, "finish"],
            "then_handshake": [{"status": 500}]}"#;
    steered.direct(sockets).expect("a script");
    for bad in [
        r#"{"weekly": 80, "then": [{"status": 9}]}"#,
        r#"{"weekly": 80, "always": {"status": 200, "headers": {"a b": ""}}}"#,
        r#"{"weekly": 80, "sometimes": []}"#,
        r#"{"weekly": 80, "then_socket": [["begun", "sometime"]]}"#,
        r#"{"weekly": 80, "always_handshake": {"status": 9}}"#,
    ] {
        steered.direct(bad.as_bytes()).expect_err(bad);
        assert_eq!(account.standing().weekly.used_percent, 60.0, "{bad}");
    }
}
