//! Handshakes that move to another credential.

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Rig, turn, wait_for_rows};

use super::{open, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_refused_for_now_goes_to_the_next_credential() {
    for (name, reply) in [
        ("429", Reply::usage_limit_reached().resets_in_seconds(600)),
        ("503", Reply::server_error(503)),
    ] {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        rig.account("a").then_handshake(reply);
        let mut socket = open(&client).await;
        socket.turn(&turn("one")).await;
        assert_eq!(rig.account("a").handshake_count(), 1, "{name}");
        assert_eq!(rig.upstream.sockets()[0].account, "account-b", "{name}");
        assert_eq!(
            wait_for_rows(&rig.ledger(), 1).await[0].text("credential"),
            Some("b"),
            "{name}"
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_usable_credential_is_429_and_says_when_to_retry() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for (tag, seconds) in [("a", 900), ("b", 600)] {
        rig.account(tag).then_handshake(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(seconds),
        );
    }
    for _ in 0..2 {
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["type"], &error["code"]),
            (
                &json!("usage_limit_reached"),
                &json!("credentials_exhausted")
            )
        );
        assert!(
            error["resets_in_seconds"]
                .as_u64()
                .is_some_and(|seconds| (590..=600).contains(&seconds)),
            "{error}"
        );
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(
        ["a", "b"].map(|tag| rig.account(tag).handshake_count()),
        [1, 1]
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_handshake_refuses_is_refreshed_once() {
    let mut rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    let config = rig.config(json!({ "credentials": [credential] }));
    let client = rig.start(config).await;
    login
        .account()
        .then_handshake(Reply::error(401, "invalid_request_error", "expired"));
    let mut socket = open(&client).await;
    socket.turn(&turn("one")).await;
    assert_eq!(
        (login.post_count(), login.account().handshake_count()),
        (1, 2)
    );
    let refused = rig
        .upstream
        .requests()
        .into_iter()
        .find(|seen| seen.header("upgrade").is_some());
    let accepted = rig.upstream.sockets().remove(0).request;
    assert_ne!(
        refused.and_then(|seen| seen.headers.get("authorization").cloned()),
        accepted.headers.get("authorization").cloned()
    );
    rig.stop().await;
}
