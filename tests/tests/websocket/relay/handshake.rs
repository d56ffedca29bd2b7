//! The handshake on both sides.

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::upstream::{Reply, Upgrade};
use tollgate_tests::{Client, turn};

use super::{open, pool};

/// The example of RFC 6455, section 1.3, and the accept key that belongs to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// This client with the fields of a handshake but the key and the version.
fn upgrading(client: &Client) -> Client {
    client
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_sees_the_credential_and_none_of_the_clients_own_secrets_or_extensions() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = client
        .header(
            "sec-websocket-extensions",
            "permessage-deflate; client_max_window_bits",
        )
        .header("sec-websocket-protocol", "theirs")
        .header("cookie", "theirs=1")
        .header("chatgpt-account-id", "theirs")
        .header("x-theirs", "kept");
    for client in [client.clone(), client.http2()] {
        let before = rig.upstream.sockets().len();
        let socket = client
            .socket_at("/v1/responses?x=1")
            .await
            .expect("a socket");
        for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
            assert_eq!(socket.headers.get(name), None, "{name}");
        }
        let seen = &rig.upstream.wait_for_sockets(before + 1).await[before].request;
        assert_eq!(
            (&seen.method, seen.target.as_str()),
            (&Method::GET, "/backend-api/codex/responses?x=1")
        );
        for (name, value) in [
            ("authorization", Some("Bearer access-a")),
            ("chatgpt-account-id", Some("account-a")),
            ("openai-beta", Some("responses_websockets=2026-02-06")),
            ("sec-websocket-version", Some("13")),
            ("sec-websocket-extensions", None),
            ("sec-websocket-protocol", None),
            ("cookie", None),
            ("x-theirs", Some("kept")),
        ] {
            assert_eq!(seen.header(name), value, "{name}");
        }
        assert!(!format!("{:?}", seen.headers).contains("token-alice"));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beta_that_the_client_names_is_kept() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let _socket = open(&client.header("openai-beta", "responses_websockets=2027-01-01")).await;
    let seen = &rig.upstream.wait_for_sockets(1).await[0].request;
    let betas: Vec<_> = seen.headers.get_all("openai-beta").iter().collect();
    assert_eq!(betas, ["responses_websockets=2027-01-01"]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_has_a_different_key() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = upgrading(&client)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    let accepted = client.send(Method::GET, "/v1/responses", "").await;
    assert_eq!(accepted.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(accepted.headers["sec-websocket-accept"], ACCEPT);
    let seen = &rig.upstream.wait_for_sockets(1).await[0].request;
    assert!(
        seen.header("sec-websocket-key")
            .is_some_and(|key| key != KEY)
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_gets_the_upstream_fields_that_codex_reads() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let kept = [
        ("x-codex-turn-state", "state"),
        ("x-reasoning-included", "true"),
        ("openai-model", "scripted-model"),
        ("x-other-secondary-used-percent", "12"),
        ("x-codex-primary-used-percent", "0"),
    ];
    let others = [
        ("set-cookie", "a=b"),
        ("x-request-id", "theirs"),
        ("openai-version", "1"),
        ("server", "scripted"),
    ];
    for client in [client.clone(), client.http2()] {
        let upgrade = Upgrade::new()
            .header("x-codex-turn-state", "state")
            .header(kept[3].0, kept[3].1);
        rig.account("a").then_handshake(
            others[..3].iter().fold(upgrade, |upgrade, (name, value)| {
                upgrade.header(name, value)
            }),
        );
        let socket = open(&client).await;
        for (name, value) in kept {
            assert_eq!(
                socket.headers.get(name).map(|found| found.as_bytes()),
                Some(value.as_bytes()),
                "{name}"
            );
        }
        for (name, value) in others {
            assert!(
                socket.headers.get(name).is_none_or(|found| found != value),
                "{name}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_good_token_is_401() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let anonymous = Client::new(client.address());
    for rejected in [
        anonymous.clone(),
        anonymous.token("token-mallory"),
        anonymous.http2(),
    ] {
        let answer = rejected.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    assert_eq!(rig.account("a").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_handshake_is_rejected_without_contacting_upstream() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let bare = upgrading(&client);
    let versioned = bare.header("sec-websocket-version", "13");
    let cases = [
        ("no key", versioned.clone(), 400),
        (
            "a short key",
            versioned.header("sec-websocket-key", "c2hvcnQ="),
            400,
        ),
        (
            "a key of 17 bytes",
            versioned.header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAAA="),
            400,
        ),
        (
            "no base64",
            versioned.header("sec-websocket-key", "!!!!!!!!!!!!!!!!!!!!!!=="),
            400,
        ),
        (
            "no Connection",
            client
                .header("upgrade", "websocket")
                .header("sec-websocket-key", KEY),
            400,
        ),
        (
            "version 8",
            bare.header("sec-websocket-version", "8")
                .header("sec-websocket-key", KEY),
            426,
        ),
        ("no version", bare.header("sec-websocket-key", KEY), 426),
    ];
    for (name, client, status) in cases {
        let answer = client.get("/v1/responses").await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.text());
        assert_eq!(
            answer.json()["error"]["type"],
            "invalid_request_error",
            "{name}"
        );
        let version = (status == 426).then_some("13");
        assert_eq!(answer.header("sec-websocket-version"), version, "{name}");
    }
    let elsewhere = client
        .http2()
        .socket_at("/v1/models")
        .await
        .expect_err("refused");
    assert_eq!(elsewhere.status, StatusCode::BAD_REQUEST);
    assert_eq!(rig.account("a").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_another_method_or_elsewhere_is_an_ordinary_request() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = upgrading(&client)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.whole && answer.text().contains("response.completed"));
    assert_eq!(client.get("/v1/models").await.status, StatusCode::OK);
    assert_eq!(rig.account("a").handshake_count(), 0);
    let seen = rig.upstream.requests();
    let models = seen
        .iter()
        .find(|seen| seen.path().ends_with("/models"))
        .expect("models were asked for");
    for seen in [&rig.upstream.turns()[0], models] {
        assert_eq!(
            (seen.header("upgrade"), seen.header("connection")),
            (None, None),
            "{}",
            seen.target
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_upstreams_reaches_the_client_as_it_is() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for client in [client.clone(), client.http2()] {
        for status in [400, 403, 404, 500] {
            let body =
                json!({ "error": { "type": "theirs", "message": format!("status {status}") } });
            rig.account("a").then_handshake(Reply::json(status, &body));
            let answer = client.socket().await.expect_err("refused");
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (status, body.to_string())
            );
            assert_eq!(
                answer.header("content-type"),
                Some("application/json"),
                "{status}"
            );
        }
    }
    assert_eq!(rig.account("b").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_with_the_accept_key_of_another_request_is_502() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    for client in [client.clone(), client.http2()] {
        rig.account("a")
            .then_handshake(Upgrade::new().wrong_accept_key());
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.json()["error"]["type"], "api_error");
    }
    let mut sound = open(&client).await;
    sound.turn(&turn("one")).await;
    rig.stop().await;
}
