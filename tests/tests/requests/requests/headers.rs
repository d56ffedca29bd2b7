//! Header fields in both directions.

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Rig, over_both, turn};

use super::{check_absent, only, open_rig, team_rig};

/// The fields have these values.
#[track_caller]
fn check_values(headers: &http::HeaderMap, name: &str, values: &[&str]) {
    let found: Vec<&str> = headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().expect("text"))
        .collect();
    assert_eq!(found, values, "{name}");
}

// Headers to upstream

over_both!(headers_of_the_hop_of_proxies_and_of_the_client_are_not_forwarded);
async fn headers_of_the_hop_of_proxies_and_of_the_client_are_not_forwarded() {
    const REMOVED: [(&str, &str); 22] = [
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic Y2FuYXJ5"),
        ("te", "trailers"),
        ("trailers", "x"),
        ("upgrade", "h2c"),
        ("cf-connecting-ip", "192.0.2.1"),
        ("cf-ray", "1"),
        ("cf-ipcountry", "XX"),
        ("cf-access-client-secret", "canary"),
        ("cf-", "odd"),
        ("cdn-loop", "cloudflare"),
        ("true-client-ip", "192.0.2.1"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gate.example"),
        ("x-real-ip", "192.0.2.1"),
        ("forwarded", "for=192.0.2.1"),
        ("cookie", "session=canary"),
        ("x-named-one", "1"),
        ("x-named-two", "2"),
        ("x-named-three", "3"),
    ];
    let (mut rig, client) = team_rig().await;
    let client = client
        .token("token-alice")
        .header("connection", "x-named-one, X-Named-Two")
        .header("connection", "x-named-three");
    let client = REMOVED
        .iter()
        .fold(client, |client, (name, value)| client.header(name, value));

    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);

    let seen = only(rig.upstream.turns());
    check_absent(&seen.headers, &REMOVED.map(|(name, _)| name));
    check_absent(&seen.headers, &["connection", "transfer-encoding"]);
    assert_eq!(
        seen.header("host"),
        Some(rig.upstream.address().to_string().as_str())
    );
    assert!(!format!("{:?}", seen.headers).contains("token-alice"));
    rig.stop().await;
}

over_both!(requests_of_codex_are_forwarded_with_only_the_credential_added);
async fn requests_of_codex_are_forwarded_with_only_the_credential_added() {
    const KEPT: [(&str, &str); 9] = [
        ("accept", "text/event-stream"),
        ("accept-encoding", "gzip, zstd"),
        ("user-agent", "codex_exec/0.169.0"),
        ("originator", "codex_exec"),
        ("session-id", "0199"),
        ("x-codex-window-id", "0199:1"),
        ("x-codex-turn-metadata", r#"{"a":1}"#),
        ("openai-beta", "responses=experimental"),
        ("x-forwarded-prefix", "/not-named"),
    ];
    let (mut rig, client) = team_rig().await;
    // A client with its own login presents its own account.
    let client = client
        .token("token-alice")
        .header("chatgpt-account-id", "account-of-the-client");
    let client = KEPT
        .iter()
        .fold(client, |client, (name, value)| client.header(name, value));

    client.turn(&turn("one")).await;

    let seen = only(rig.upstream.turns());
    for (name, value) in KEPT {
        check_values(&seen.headers, name, &[value]);
    }
    check_values(&seen.headers, "authorization", &["Bearer access-a"]);
    check_values(&seen.headers, "chatgpt-account-id", &["account-a"]);
    check_values(&seen.headers, "content-type", &["application/json"]);
    rig.stop().await;
}

over_both!(an_api_key_is_attached_without_an_account);
async fn an_api_key_is_attached_without_an_account() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let client = client
        .header("chatgpt-account-id", "account-of-the-client")
        .token("token-of-the-client");
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    let seen = only(rig.upstream.turns());
    check_values(&seen.headers, "authorization", &["Bearer sk-k"]);
    check_absent(&seen.headers, &["chatgpt-account-id"]);
    rig.stop().await;
}

over_both!(configured_headers_override_but_never_the_credential);
async fn configured_headers_override_but_never_the_credential() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({
        "credentials": [rig.oauth("a")],
        "headers": {
            "User-Agent": "gate/1",
            "X-Several": ["one", "two"],
            "X-Added": "new",
            "Authorization": "Bearer configured",
            "ChatGPT-Account-Id": "configured",
        },
    }));
    let client = rig.start(config).await;
    let client = client
        .header("user-agent", "codex")
        .header("x-several", "theirs")
        .header("x-several", "theirs too")
        .header("x-other", "kept");

    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);

    let seen = only(rig.upstream.turns());
    check_values(&seen.headers, "user-agent", &["gate/1"]);
    check_values(&seen.headers, "x-several", &["one", "two"]);
    check_values(&seen.headers, "x-added", &["new"]);
    check_values(&seen.headers, "x-other", &["kept"]);
    check_values(&seen.headers, "authorization", &["Bearer access-a"]);
    check_values(&seen.headers, "chatgpt-account-id", &["account-a"]);
    rig.stop().await;
}

// Headers from upstream

over_both!(headers_of_upstreams_hop_and_its_cookies_are_not_returned);
async fn headers_of_upstreams_hop_and_its_cookies_are_not_returned() {
    const REMOVED: [(&str, &str); 18] = [
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic Y2FuYXJ5"),
        ("te", "trailers"),
        ("trailers", "x"),
        ("upgrade", "h2c"),
        ("cf-ray", "1"),
        ("cf-cache-status", "DYNAMIC"),
        ("cdn-loop", "cloudflare"),
        ("true-client-ip", "192.0.2.1"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "gate.example"),
        ("x-real-ip", "192.0.2.1"),
        ("forwarded", "for=192.0.2.1"),
        ("set-cookie", "a=canary"),
        ("set-cookie", "b=canary"),
        ("x-named", "1"),
    ];
    const KEPT: [(&str, &str); 4] = [
        ("x-codex-turn-state", "sticky"),
        ("openai-model", "gpt-5.4"),
        ("x-request-id", "req_1"),
        ("x-reasoning-included", "true"),
    ];
    let (mut rig, client) = open_rig().await;
    let reply = REMOVED
        .iter()
        .chain(&KEPT)
        .fold(Reply::ok(), |reply, (name, value)| {
            reply.header(name, value)
        });
    rig.account("a").then(reply.header("connection", "X-Named"));

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK);
    check_absent(&answer.headers, &REMOVED.map(|(name, _)| name));
    for (name, value) in KEPT {
        check_values(&answer.headers, name, &[value]);
    }
    check_values(&answer.headers, "content-type", &["text/event-stream"]);
    check_values(&answer.headers, "x-codex-primary-window-minutes", &["300"]);
    rig.stop().await;
}
