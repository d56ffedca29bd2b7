//! Requests: the checks at the door, what goes to upstream and what comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Encoding, Gate, Reply, SeenRequest, Standing, Upstream};
use tollgate_tests::{Answer, Client, Protocol, Rig, over_both, rows, turn, user, wait_for_rows};

const NOT_UNDER_V1: &str = "path must start with /v1/";

/// `{"model":"gpt-5.4","stream":true,"input":[],"prompt_cache_key":"packed"}`, packed by gzip 1.12
/// and zstd 1.5.
const GZIP_TURN: &str = "1f8b0800000000000203ab56cacd4f49cd51b2524a2f28d135d53351d2512a2e294a4dcc55b22a292a4dd551cacc2b282d51b28a8ed5512a28cacf2d28894f4e4cce488dcf4ead04ea2a484cce4e4d51aa050003e9267b48000000";
const ZSTD_TURN: &str = "28b52ffd24480d020082440f11907d64240fc913ea127157b002c6fa8f25dbd73f95a817cfffd0379514ba34ce4a1d1c53fc622a9d83c7f5168fe9ebb50e7c08122e655e1cfe9ad175002d1a604f";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// A gateway with one account and no users.
async fn open_rig() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start(config).await;
    (rig, client)
}

/// A gateway with a pool of one account, and alice's client.
async fn team_rig() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a"], json!({}));
    let client = rig.start(config).await;
    (rig, client)
}

/// The answer is an error of OpenAI's form with exactly these fields, and this text in its message.
#[track_caller]
fn check_error(answer: &Answer, status: u16, kind: &str, code: Option<&str>, message: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body.as_object().map(|body| body.len()), Some(1), "{body}");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert_eq!(
        body["error"].get("code"),
        code.map(Value::from).as_ref(),
        "{body}"
    );
    let found = body["error"]["message"].as_str().expect("a message");
    assert!(found.contains(message), "{found:?} has no {message:?}");
}

/// Not one field of these names came through.
#[track_caller]
fn check_absent(headers: &http::HeaderMap, names: &[&str]) {
    let found: Vec<&&str> = names
        .iter()
        .filter(|name| headers.contains_key(**name))
        .collect();
    assert!(found.is_empty(), "{found:?} came through: {headers:?}");
}

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

#[track_caller]
fn only(seen: Vec<SeenRequest>) -> SeenRequest {
    let [one] =
        <[SeenRequest; 1]>::try_from(seen).unwrap_or_else(|seen| panic!("{} requests", seen.len()));
    one
}

// 2. The path

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_under_v1_is_not_found() {
    let (mut rig, client) = team_rig().await;
    for path in [
        "/",
        "/v1",
        "/v2/responses",
        "/v1x/responses",
        "/responses",
        "/ocm/v1/other",
        "/V1/responses",
    ] {
        let answer = client.token("token-alice").get(path).await;
        check_error(&answer, 404, "invalid_request_error", None, NOT_UNDER_V1);
    }
    assert!(rig.forwarded().is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dot_segments_do_not_lead_out_of_v1() {
    let (mut rig, client) = team_rig().await;
    for path in [
        "/v1/../wham/usage",
        "/v1/./../../wham/usage",
        "/v1/%2e%2e/wham/usage",
        "/v1/x/.%2E/../../y",
    ] {
        // By the rules of RFC 3986, section 5.2.4, and for whatever server stands at upstream,
        // these are not under /v1/: with the operator's token they would reach the rest of the
        // backend.
        let answer = client.token("token-alice").get(path).await;
        let sent: Vec<String> = rig
            .forwarded()
            .into_iter()
            .map(|seen| seen.target)
            .collect();
        assert!(sent.is_empty(), "{path} went to upstream as {sent:?}");
        check_error(&answer, 404, "invalid_request_error", None, NOT_UNDER_V1);
    }
    rig.stop().await;
}

// 3. and 4. The client's credentials

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_another_header_is_refused_with_a_hint_whatever_else_is_sent() {
    let (mut rig, client) = team_rig().await;
    for client in [client.clone(), client.token("token-alice")] {
        for name in ["x-api-key", "api-key"] {
            let answer = client.header(name, "token-alice").turn(&turn("one")).await;
            check_error(
                &answer,
                400,
                "invalid_request_error",
                None,
                "Authorization: Bearer",
            );
        }
    }
    assert!(rig.forwarded().is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_another_header_is_refused_without_users_too() {
    let (mut rig, client) = open_rig().await;
    let answer = client.header("x-api-key", "any").turn(&turn("one")).await;
    check_error(
        &answer,
        400,
        "invalid_request_error",
        None,
        "Authorization: Bearer",
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_token_of_a_user_is_told_what_is_wrong_with_it() {
    let (mut rig, client) = team_rig().await;
    let cases: [(Option<&str>, &str); 9] = [
        (None, "missing api key"),
        (Some("Basic dG9rZW4tYWxpY2U="), "invalid api key format"),
        (Some("token-alice"), "invalid api key format"),
        (Some("Bearer token-mallory"), "invalid api key"),
        (Some("Bearer token-alic"), "invalid api key"),
        (Some("Bearer token-alicee"), "invalid api key"),
        (Some("Bearer TOKEN-ALICE"), "invalid api key"),
        (Some("Bearer token-alice,token-bob"), "invalid api key"),
        (Some("Bearer access-a"), "invalid api key"),
    ];
    for (value, message) in cases {
        let client = value.map_or(client.clone(), |value| {
            client.header("authorization", value)
        });
        let answer = client.turn(&turn("one")).await;
        check_error(&answer, 401, "authentication_error", None, message);
        assert_eq!(answer.json()["error"]["message"], message, "{value:?}");
    }
    assert!(rig.forwarded().is_empty());
    assert!(
        rows(&rig.ledger()).is_empty(),
        "unauthenticated requests make no rows"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_failed_often_is_still_answered_and_let_in() {
    let (mut rig, client) = team_rig().await;
    for _ in 0..8 {
        let answer = client.token("wrong").turn(&turn("one")).await;
        check_error(
            &answer,
            401,
            "authentication_error",
            None,
            "invalid api key",
        );
    }
    assert_eq!(
        client.token("token-alice").turn(&turn("one")).await.status,
        StatusCode::OK
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_fails_again_and_again_waits_longer_for_each_refusal() {
    let (mut rig, client) = team_rig().await;
    let mut waited = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        let answer = client.token("wrong").turn(&turn("one")).await;
        waited.push(begun.elapsed());
        check_error(
            &answer,
            401,
            "authentication_error",
            None,
            "invalid api key",
        );
    }
    // Five are free.
    for (place, least_ms) in [(5, 100), (6, 200), (7, 400), (8, 800)] {
        assert!(
            waited[place] >= Duration::from_millis(least_ms),
            "refusal {place}: {waited:?}"
        );
    }
    assert!(waited[8] < Duration::from_secs(10), "{waited:?}");
    assert_eq!(
        client.token("token-alice").turn(&turn("one")).await.status,
        StatusCode::OK
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_come_in_order_the_first_that_fails_answers() {
    let (mut rig, client) = team_rig().await;
    let upgrade = |client: &Client| {
        client
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
    };

    // Path before header before token before what is asked.
    let everything_wrong = upgrade(&client)
        .header("x-api-key", "any")
        .get("/v2/responses")
        .await;
    check_error(
        &everything_wrong,
        404,
        "invalid_request_error",
        None,
        NOT_UNDER_V1,
    );
    let wrong_header = upgrade(&client)
        .header("x-api-key", "any")
        .get("/v1/responses")
        .await;
    check_error(
        &wrong_header,
        400,
        "invalid_request_error",
        None,
        "Authorization: Bearer",
    );
    let wrong_token = upgrade(&client).get("/v1/responses").await;
    check_error(
        &wrong_token,
        401,
        "authentication_error",
        None,
        "missing api key",
    );
    let chat = client.ask(Method::POST, "/v1/chat/completions", "{}").await;
    check_error(&chat, 401, "authentication_error", None, "missing api key");
    rig.stop().await;
}

over_both!(chat_completions_are_refused_to_an_account_even_if_it_is_limited);
async fn chat_completions_are_refused_to_an_account_even_if_it_is_limited() {
    let (mut rig, client) = team_rig().await;
    let client = client.token("token-alice");
    let body = json!({"model": "gpt-4.1", "messages": []}).to_string();

    let answer = client
        .ask(Method::POST, "/v1/chat/completions", body.clone())
        .await;
    check_error(
        &answer,
        400,
        "invalid_request_error",
        None,
        "only available in API key mode",
    );

    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    client.turn(&turn("one")).await;
    let answer = client.ask(Method::POST, "/v1/chat/completions", body).await;
    check_error(
        &answer,
        400,
        "invalid_request_error",
        None,
        "only available in API key mode",
    );
    rig.stop().await;
}

// 5. Whose credential

over_both!(each_user_is_served_by_the_users_own_credential);
async fn each_user_is_served_by_the_users_own_credential() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.oauth("b")],
        "users": [
            {"name": "alice", "token": "token-alice", "credential": "b"},
            {"name": "bob", "token": "token-bob", "credential": "a"},
        ],
    }));
    let client = rig.start(config).await;
    for (token, account) in [("token-alice", "account-b"), ("token-bob", "account-a")] {
        client.token(token).turn(&turn("one")).await;
        let seen = rig.upstream.turns().pop().expect("a turn");
        assert_eq!(seen.account.as_deref(), Some(account), "{token}");
    }
    rig.stop().await;
}

over_both!(without_users_the_first_entry_serves_be_it_a_credential_or_a_pool);
async fn without_users_the_first_entry_serves_be_it_a_credential_or_a_pool() {
    let pool = |tag: &str| json!({"tag": tag, "type": "fallback", "credentials": ["b", "a"]});
    for (first, account) in [("credential", "account-a"), ("pool", "account-b")] {
        let mut rig = Rig::new().await;
        let (a, b) = (rig.oauth("a"), rig.oauth("b"));
        let credentials = if first == "pool" {
            json!([pool("p"), a, b])
        } else {
            json!([a, b, pool("p")])
        };
        let config = rig.config(json!({ "credentials": credentials }));
        let client = rig.start(config).await;
        // A token is of no meaning here, and none of upstream's business.
        client.token("whatever").turn(&turn("one")).await;
        assert_eq!(
            only(rig.upstream.turns()).account.as_deref(),
            Some(account),
            "{first} first"
        );
        rig.stop().await;
    }
}

over_both!(the_single_credential_of_a_simple_service_serves_everybody);
async fn the_single_credential_of_a_simple_service_serves_everybody() {
    let mut rig = Rig::new().await;
    let credential = rig.oauth("a");
    let config = rig.config(json!({
        "credential_path": credential["credential_path"],
        "users": [{"name": "alice", "token": "token-alice"}],
    }));
    let client = rig.start(config).await;
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        client.token("token-alice").turn(&turn("one")).await.status,
        StatusCode::OK
    );
    assert_eq!(
        only(rig.upstream.turns()).account.as_deref(),
        Some("account-a")
    );
    rig.stop().await;
}

// 7. No usable credential

over_both!(a_limited_pool_answers_429_and_an_empty_one_503);
async fn a_limited_pool_answers_429_and_an_empty_one_503() {
    let (mut rig, client) = team_rig().await;
    let client = client.token("token-alice");
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    for _ in 0..2 {
        let answer = client.turn(&turn("one")).await;
        check_error(
            &answer,
            429,
            "usage_limit_reached",
            Some("credentials_exhausted"),
            "",
        );
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(
        rig.upstream.turns().len(),
        1,
        "the second was answered by the gateway alone"
    );
    rig.stop().await;

    let mut rig = Rig::new().await;
    let config = rig
        .config(json!({ "credentials": [{"tag": "a", "credential_path": rig.path("none.json")}] }));
    let client = rig.start(config).await;
    check_error(
        &client.turn(&turn("one")).await,
        503,
        "server_error",
        Some("credentials_unavailable"),
        "",
    );
    assert!(rig.forwarded().is_empty());
    rig.stop().await;
}

over_both!(a_429_to_an_api_key_reaches_the_client_as_it_was_and_pauses_nothing);
async fn a_429_to_an_api_key_reaches_the_client_as_it_was_and_pauses_nothing() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let body = r#"{"error":{"type":"tokens","code":"rate_limit_exceeded","message":"try again in 600 s"}}"#;
    let refused = Reply::raw(429, body)
        .retry_after("600")
        .header("x-ratelimit-remaining-requests", "0");
    rig.upstream.api_key("sk-k", "k").then(refused);
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, body)
    );
    for (name, value) in [
        ("retry-after", "600"),
        ("x-ratelimit-remaining-requests", "0"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(rig.credential("k").await["state"], "ready");
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::OK,
        "it is asked again at once"
    );
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(rows[0].attempts(), [("k".to_owned(), "429".to_owned())]);
    assert_eq!(
        (rows[0].number("status"), rows[0].text("end")),
        (Some(429), Some("failed"))
    );
    rig.stop().await;
}

over_both!(a_connection_to_upstream_serves_one_credential_alone_and_that_again_and_again);
async fn a_connection_to_upstream_serves_one_credential_alone_and_that_again_and_again() {
    const TURNS: usize = 6;
    let mut rig = Rig::new().await;
    let user = |tag: &str| user(tag, tag);
    let credentials = json!([rig.oauth("a"), rig.oauth("b"), rig.api_key("k")]);
    let tags = ["a", "b", "k"];
    let config = rig.config(json!({ "credentials": credentials, "users": tags.map(user) }));
    // No poll opens another connection meanwhile.
    let client = rig.start_polled(config).await;
    for _ in 0..TURNS {
        for tag in tags {
            assert!(
                client
                    .token(&format!("token-{tag}"))
                    .turn(&turn("one"))
                    .await
                    .whole
            );
        }
    }
    let turns = rig.upstream.turns();
    let of = |tag: &str| -> BTreeSet<u64> {
        let token = if tag == "k" {
            "Bearer sk-k".to_owned()
        } else {
            format!("Bearer access-{tag}")
        };
        let own = turns
            .iter()
            .filter(|seen| seen.header("authorization") == Some(&token));
        own.map(|seen| seen.connection).collect()
    };
    let each = tags.map(of);
    assert!(
        each.iter().all(|own| (1..TURNS / 2).contains(&own.len())),
        "connections are not used again: {each:?}"
    );
    let together: BTreeSet<_> = each.iter().flatten().collect();
    assert_eq!(
        together.len(),
        each.iter().map(BTreeSet::len).sum::<usize>(),
        "two share a connection: {each:?}"
    );
    rig.stop().await;
}

// 8. WebSocket

// Paths

/// What the client asks, on what credential, and where it must go.
struct Way {
    oauth: bool,
    asked: &'static str,
    sent: &'static str,
}

over_both!(paths_are_mapped_by_the_kind_of_credential_and_queries_are_kept);
async fn paths_are_mapped_by_the_kind_of_credential_and_queries_are_kept() {
    let ways = [
        Way {
            oauth: true,
            asked: "/v1/responses",
            sent: "/backend-api/codex/responses",
        },
        Way {
            oauth: true,
            asked: "/v1/responses/compact",
            sent: "/backend-api/codex/responses/compact",
        },
        Way {
            oauth: true,
            asked: "/v1/models?client_version=1.2",
            sent: "/backend-api/codex/models?client_version=1.2",
        },
        Way {
            oauth: true,
            asked: "/v1/a%2Fb/v1/c?x=%20&y=/v1&&z",
            sent: "/backend-api/codex/a%2Fb/v1/c?x=%20&y=/v1&&z",
        },
        Way {
            oauth: true,
            asked: "/v1/?x",
            sent: "/backend-api/codex/?x",
        },
        Way {
            oauth: false,
            asked: "/v1/responses?a=1&a=2",
            sent: "/v1/responses?a=1&a=2",
        },
        Way {
            oauth: false,
            asked: "/v1/chat/completions",
            sent: "/v1/chat/completions",
        },
        Way {
            oauth: false,
            asked: "/v1/models/gpt-5.4",
            sent: "/v1/models/gpt-5.4",
        },
    ];
    let mut rig = Rig::new().await;
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.api_key("k")],
        "users": [
            {"name": "alice", "token": "token-alice", "credential": "a"},
            {"name": "bob", "token": "token-bob", "credential": "k"},
        ],
    }));
    let client = rig.start(config).await;
    for way in ways {
        let token = if way.oauth {
            "token-alice"
        } else {
            "token-bob"
        };
        client
            .token(token)
            .ask(Method::POST, way.asked, turn("one").to_string())
            .await;
        let seen = rig.forwarded().pop().expect("a request");
        assert_eq!(
            (seen.target.as_str(), seen.method),
            (way.sent, Method::POST),
            "{}",
            way.asked
        );
    }
    rig.stop().await;
}

over_both!(the_method_is_kept);
async fn the_method_is_kept() {
    let (mut rig, client) = open_rig().await;
    for method in [
        Method::GET,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::HEAD,
    ] {
        let answer = client.ask(method.clone(), "/v1/elsewhere", "").await;
        assert_eq!(
            answer.status,
            StatusCode::NOT_FOUND,
            "upstream's own answer to {method}"
        );
        assert_eq!(rig.forwarded().pop().expect("a request").method, method);
    }
    rig.stop().await;
}

// Headers to upstream

over_both!(what_belongs_to_the_hop_to_proxies_or_to_the_client_stays_here);
async fn what_belongs_to_the_hop_to_proxies_or_to_the_client_stays_here() {
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

over_both!(what_codex_sends_goes_on_and_only_the_credential_is_attached);
async fn what_codex_sends_goes_on_and_only_the_credential_is_attached() {
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

over_both!(what_belongs_to_upstreams_hop_and_its_cookies_stay_here);
async fn what_belongs_to_upstreams_hop_and_its_cookies_stay_here() {
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

// Status and body from upstream

over_both!(upstreams_status_and_body_pass_as_they_are);
async fn upstreams_status_and_body_pass_as_they_are() {
    let explained = json!({"error": {"message": "Unsupported parameter: 'foo'", "type": "invalid_request_error",
        "param": "foo", "code": "unsupported_parameter"}});
    let cases = [
        (400, explained.to_string()),
        (201, "made".to_owned()),
        (204, String::new()),
        (304, String::new()),
        (403, "<html>blocked</html>".to_owned()),
        (404, "not here".to_owned()),
        (409, String::new()),
        (413, "too large".to_owned()),
        (418, "short and stout".to_owned()),
        (422, "{".to_owned()),
        (500, r#"{"error": {"message": "oops"}}"#.to_owned()),
        (502, "bad".to_owned()),
        (503, "busy".to_owned()),
        (529, "overloaded".to_owned()),
    ];
    let (mut rig, client) = open_rig().await;
    for (status, body) in cases {
        rig.account("a")
            .then(Reply::raw(status, body.clone()).header("x-theirs", "kept"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, body));
        assert!(answer.whole, "{status}");
        assert_eq!(answer.header("x-theirs"), Some("kept"), "{status}");
    }
    rig.stop().await;
}

over_both!(a_transport_failure_is_502_api_error);
async fn a_transport_failure_is_502_api_error() {
    let (mut rig, client) = open_rig().await;
    for reply in [
        Reply::close_before_head(),
        Reply::close_before_head().by_reset(),
        Reply::garbage("no HTTP\r\n\r\n"),
    ] {
        rig.account("a").then(reply);
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.json()["error"]["type"], "api_error");
    }
    rig.stop().await;
}

over_both!(an_upstream_that_never_answers_is_504);
async fn an_upstream_that_never_answers_is_504() {
    let mut rig = Rig::new().await;
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    config["limits"] = json!({ "upstream_head_timeout": "200ms" });
    let client = rig.start(config).await;
    let never = Gate::new();
    rig.account("a").then(Reply::ok().hold_head(&never));
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::GATEWAY_TIMEOUT
    );
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(row.attempts(), [("a".to_owned(), "timed_out".to_owned())]);
    rig.stop().await;
}

// Bodies

over_both!(a_requests_body_goes_on_byte_for_byte);
async fn a_requests_body_goes_on_byte_for_byte() {
    let spaced = "{ \"model\" :\t\"gpt-5.4\",\r\n \"input\": \"\\u00e9 é \u{1f600}\", \"stream\":true , \"n\": 1.0e0 }\n\n";
    let twice = r#"{"model":"a","model":"b","input":[]}"#;
    let large = format!(r#"{{"model":"gpt-5.4","input":"{}"}}"#, "x".repeat(3 << 20));
    let cases: [(&str, Vec<u8>); 6] = [
        ("spaces", spaced.into()),
        ("a key twice", twice.into()),
        ("3 MiB", large.into()),
        ("no JSON", b"not json at all".to_vec()),
        ("no UTF-8", vec![0xff, 0x00, 0xfe, b'{']),
        ("nothing", Vec::new()),
    ];
    let (mut rig, client) = open_rig().await;
    for (name, body) in cases {
        rig.account("a").then(Reply::ok());
        let answer = client
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        assert!(
            rig.upstream.turns().pop().expect("a turn").body == body,
            "{name}: the body was changed"
        );
    }
    rig.stop().await;
}

over_both!(a_packed_body_goes_on_packed_and_is_read_on_the_side);
async fn a_packed_body_goes_on_packed_and_is_read_on_the_side() {
    let (mut rig, client) = open_rig().await;
    for (place, (encoding, hex)) in [("gzip", GZIP_TURN), ("zstd", ZSTD_TURN)]
        .into_iter()
        .enumerate()
    {
        let body = bytes_of(hex);
        let client = client.header("content-encoding", encoding);
        // Upstream tells no model: the row's comes from the request.
        rig.account("a")
            .then(Reply::raw(200, "fine").header("content-type", "text/plain"));
        let answer = client
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = rig.upstream.turns().pop().expect("a turn");
        assert_eq!(seen.header("content-encoding"), Some(encoding));
        assert_eq!(seen.body, Bytes::from(body));
        let row = &wait_for_rows(&rig.ledger(), place + 1).await[place];
        assert_eq!(
            (row.text("model"), row.text("session")),
            (Some("gpt-5.4"), Some("packed")),
            "{encoding}"
        );
    }
    rig.stop().await;
}

over_both!(a_packed_body_that_is_none_goes_on_as_it_is);
async fn a_packed_body_that_is_none_goes_on_as_it_is() {
    let (mut rig, client) = open_rig().await;
    for encoding in ["gzip", "zstd", "br", "no-such-coding", "gzip, zstd"] {
        rig.account("a").then(Reply::ok());
        let client = client.header("content-encoding", encoding);
        let answer = client
            .ask(Method::POST, "/v1/responses", "not packed")
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{encoding}");
        assert_eq!(
            rig.upstream.turns().pop().expect("a turn").body,
            "not packed"
        );
    }
    rig.stop().await;
}

over_both!(a_responses_body_comes_back_byte_for_byte);
async fn a_responses_body_comes_back_byte_for_byte() {
    let all: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    let events = "event: response.output_text.delta\r\ndata:{\"delta\" : \"\u{1f600}\"}\r\n\r\n: comment\n\ndata: \0x";
    let cases = [
        ("bytes", Reply::raw(200, all.clone()), all.clone()),
        (
            "bytes in pieces",
            Reply::raw(200, all.clone()).chunks(&[1, 999, 7]),
            all.clone(),
        ),
        (
            "bytes as JSON",
            Reply::raw(200, all.clone()).header("content-type", "application/json"),
            all.clone(),
        ),
        ("bytes as events", Reply::sse(all.clone()), all),
        ("events", Reply::sse(events), events.into()),
        (
            "events a byte at a time",
            Reply::sse(events).chunks(&[1]),
            events.into(),
        ),
    ];
    let (mut rig, client) = open_rig().await;
    for (name, reply, expected) in cases {
        rig.account("a").then(reply);
        let answer = client.turn(&turn("one")).await;
        assert!(
            answer.whole && answer.body == expected,
            "{name}: {} bytes",
            answer.body.len()
        );
    }
    rig.stop().await;
}

over_both!(a_packed_response_comes_back_as_upstream_packed_it);
async fn a_packed_response_comes_back_as_upstream_packed_it() {
    let (mut rig, client) = open_rig().await;
    let unrelated = Upstream::start().await;
    let direct = Client::new(unrelated.address()).token("access-a");
    for encoding in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Brotli,
    ] {
        let reply =
            Reply::sse("event: ping\ndata: {\"type\":\"ping\"}\n\n".repeat(500)).encoded(encoding);
        unrelated.account("access-a", "a").then(reply.clone());
        rig.account("a").then(reply);
        let expected = direct
            .ask(Method::POST, "/backend-api/codex/responses", "{}")
            .await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.header("content-encoding"), Some(encoding.name()));
        assert!(answer.whole && answer.body == expected.body, "{encoding:?}");
    }
    rig.stop().await;
}

over_both!(a_responses_parts_are_not_held_back);
async fn a_responses_parts_are_not_held_back() {
    let (mut rig, client) = open_rig().await;
    let gate = Gate::new();
    // Not even a whole event: the line has no end yet.
    rig.account("a").then(
        Reply::sse("data: {\"unfinished\": 1}\n\n")
            .chunks(&[9, 100])
            .hold_after(1, &gate),
    );
    let mut stream = client.start_turn(&turn("one")).await;
    assert_eq!(stream.until("data: {\"u").await, "data: {\"u");
    gate.open();
    assert_eq!(stream.finish().await.text(), "nfinished\": 1}\n\n");
    rig.stop().await;
}

// HTTP/2

over_both!(a_client_speaks_http2_by_prior_knowledge);
async fn a_client_speaks_http2_by_prior_knowledge() {
    let (mut rig, client) = team_rig().await;
    let client = client
        .token("token-alice")
        .http2()
        .header("x-forwarded-for", "192.0.2.1")
        .header("cookie", "a=b");
    rig.account("a").then(
        Reply::ok()
            .header("connection", "x-named")
            .header("x-named", "1")
            .header("set-cookie", "a"),
    );

    let (one, two) = (turn("one"), turn("two"));
    let (first, second) = tokio::join!(client.turn(&one), client.turn(&two));

    for answer in [&first, &second] {
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.whole && answer.text().contains("response.completed"));
        check_absent(&answer.headers, &["x-named", "set-cookie", "connection"]);
    }
    for seen in rig.upstream.turns() {
        assert_eq!(seen.version, Protocol::current().version());
        assert_eq!(
            seen.header("host"),
            Some(rig.upstream.address().to_string().as_str())
        );
        check_absent(&seen.headers, &["x-forwarded-for", "cookie"]);
    }
    check_error(
        &client.get("/v2").await,
        404,
        "invalid_request_error",
        None,
        NOT_UNDER_V1,
    );
    rig.stop().await;
}

// 1. Status

const STATUS: &str = "/ocm/v1/status";

#[tokio::test(flavor = "multi_thread")]
async fn status_is_for_users_and_read_only() {
    let (mut rig, client) = open_rig().await;
    assert_eq!(client.get(STATUS).await.status, StatusCode::FORBIDDEN);
    rig.stop().await;

    let (mut rig, client) = team_rig().await;
    check_error(
        &client.get(STATUS).await,
        401,
        "authentication_error",
        None,
        "missing api key",
    );
    let basic = client
        .header("authorization", "Basic eA==")
        .get(STATUS)
        .await;
    check_error(
        &basic,
        401,
        "authentication_error",
        None,
        "invalid api key format",
    );
    check_error(
        &client.token("x").get(STATUS).await,
        401,
        "authentication_error",
        None,
        "invalid api key",
    );
    for method in [Method::POST, Method::DELETE] {
        let answer = client.token("token-alice").ask(method, STATUS, "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(
        client.token("token-alice").get(STATUS).await.status,
        StatusCode::OK
    );
    assert!(rig.forwarded().is_empty());
    assert!(rows(&rig.ledger()).is_empty());
    rig.stop().await;
}

#[track_caller]
fn check_status(answer: &Answer, five_hour: f64, weekly: f64, weight: f64) {
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    let near = |name: &str, expected: f64| {
        let found = body[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} is no number: {body}"));
        assert!(
            (found - expected).abs() < 1e-6,
            "{name}: {found}, expected {expected}"
        );
    };
    near("five_hour_utilization", five_hour);
    near("weekly_utilization", weekly);
    near("plan_weight", weight);
    assert_eq!(body.as_object().map(|body| body.len()), Some(3), "{body}");
}

/// An account of the plan `pro`, and an auth.json whose id token names it:
/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro"}}`.
fn pro_file(rig: &Rig, tag: &str) -> Value {
    const PRO: &str =
        "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";
    let credential = rig.oauth(tag);
    rig.account(tag).set_standing(Standing::new("pro"));
    let mut file = tollgate_tests::oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{PRO}.y"));
    rig.write(&format!("{tag}.json"), file.to_string());
    credential
}

#[tokio::test(flavor = "multi_thread")]
async fn status_weighs_what_is_left_under_the_caps_by_plan() {
    let mut rig = Rig::new().await;
    let mut a = rig.oauth("a");
    (a["reserve_5h"], a["limit_weekly"]) = (json!(20), json!(60));
    let b = pro_file(&rig, "b");
    let away = json!({ "tag": "away", "credential_path": rig.path("away.json") });
    let user = |tag: &str| user(tag, tag);
    let config = rig.config(json!({
        "credentials": [a, b, away, {"tag": "pool", "type": "balancer", "credentials": ["a", "b", "away"]}],
        "users": (["a", "b", "away", "pool"].map(user)),
    }));
    let client = rig.start_polled(config).await;
    let ask = async |name: &str| client.token(&format!("token-{name}")).get(STATUS).await;

    // Nothing is used; what is not reserved is what there is.
    check_status(&ask("a").await, 20.0, 40.0, 1.0);
    check_status(&ask("b").await, 1.0, 1.0, 10.0);
    check_status(&ask("away").await, 100.0, 100.0, 0.0);

    rig.account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0).weekly_used(75.0));
    rig.account("b")
        .set_standing(Standing::new("pro").five_hour_used(10.0).weekly_used(20.5));
    for name in ["a", "b"] {
        client
            .token(&format!("token-{name}"))
            .turn(&turn("one"))
            .await;
    }

    check_status(&ask("a").await, 70.0, 100.0, 1.0);
    check_status(&ask("b").await, 11.0, 21.5, 10.0);
    // 5-hour: 30 x 1 and 89 x 10 are left; weekly: 0 x 1 (over its cap) and 78.5 x 10.
    check_status(
        &ask("pool").await,
        100.0 - 920.0 / 11.0,
        100.0 - 785.0 / 11.0,
        11.0,
    );
    rig.stop().await;
}
