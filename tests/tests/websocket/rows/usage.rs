//! What events report about the credential.

use tollgate_tests::upstream::{SocketError, SocketReply, Standing};
use tollgate_tests::{rows, turn};

use super::{closed, homeless, in_order, last_row, last_socket, open, served};

#[tokio::test(flavor = "multi_thread")]
async fn the_windows_of_an_event_are_known_at_once() {
    let (mut rig, client) = in_order(&["a", "b"]).await;
    let mut socket = open(&client).await;
    let used = Standing::new("plus").weekly_used(100.0);
    rig.account("a")
        .then_socket(SocketReply::begun().rate_limits(&used).completed());
    let events = socket.turn(&turn("one")).await;
    assert!(
        events
            .iter()
            .any(|event| event["type"] == "codex.rate_limits")
    );
    assert_eq!(closed(&mut socket).await, 1012);
    assert_eq!(served(&rig, &client, &homeless()).await, "account-b");
    open(&client).await.turn(&turn("one")).await;
    assert_eq!(last_socket(&rig), "account-b");
    assert!(
        rows(&rig.ledger())
            .iter()
            .all(|row| row.text("end") == Some("complete"))
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_in_a_turn_reaches_the_client_and_then_the_socket_goes_to_another_credential() {
    let plain = SocketError::usage_limit_reached().resets_in_seconds(600);
    for (name, error) in [
        ("status", plain.clone()),
        ("status_code", plain.with_status_code()),
    ] {
        for is_http2 in [false, true] {
            let (mut rig, client) = in_order(&["a", "b"]).await;
            let client = if is_http2 { client.http2() } else { client };
            rig.account("a").then_socket(error.clone());
            let mut socket = open(&client).await;
            assert_eq!(socket.turn(&turn("one")).await, [error.event()], "{name}");
            assert_eq!(closed(&mut socket).await, 1012, "{name}");
            let row = last_row(&rig);
            assert_eq!(
                (row.text("end"), row.number("status")),
                (Some("failed"), Some(429)),
                "{name}"
            );
            open(&client).await.turn(&turn("one")).await;
            assert_eq!(last_socket(&rig), "account-b", "{name}");
            assert_eq!(
                served(&rig, &client, &homeless()).await,
                "account-b",
                "{name}"
            );
            rig.stop().await;
        }
    }
}
