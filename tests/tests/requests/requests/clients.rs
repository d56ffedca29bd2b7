//! What clients present, and which are refused.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Client, Rig, over_both, rows, turn};

use super::{NOT_UNDER_V1, check_absent, check_error, open_rig, team_rig};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_another_header_alone_is_refused_with_a_hint() {
    let (mut rig, client) = team_rig().await;
    for name in ["x-api-key", "api-key"] {
        let client = client.header(name, "token-alice");
        for answer in [
            client.turn(&turn("one")).await,
            client.get("/ocm/v1/status").await,
        ] {
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
async fn a_key_in_another_header_beside_a_token_is_dropped() {
    let (mut rig, client) = team_rig().await;
    for name in ["x-api-key", "api-key"] {
        let client = client.header(name, "any");
        let answer = client.token("token-alice").turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let unknown = client.token("token-mallory").turn(&turn("one")).await;
        check_error(
            &unknown,
            401,
            "authentication_error",
            None,
            "invalid api key",
        );
    }
    let forwarded = rig.forwarded();
    assert_eq!(forwarded.len(), 2);
    for seen in &forwarded {
        check_absent(&seen.headers, &["x-api-key", "api-key"]);
    }
    rig.stop().await;
}

/// Users may share a name, or have none: what distinguishes them is the token.
#[tokio::test(flavor = "multi_thread")]
async fn users_without_a_name_or_of_one_name_are_distinguished_by_their_tokens() {
    let mut rig = Rig::new().await;
    let user = |name: &str, token: &str, tag: &str| json!({ "name": name, "token": token, "credential": tag });
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.oauth("b")],
        "users": [user("alice", "one", "a"), user("alice", "two words", "b"), user("", "three", "a"),
            { "token": "vier-\u{e9}", "credential": "b" }],
    }));
    let client = rig.start(config).await;
    for (token, access) in [
        ("one", "access-a"),
        ("two words", "access-b"),
        ("three", "access-a"),
    ] {
        let answer = client.token(token).turn(&turn(token)).await;
        assert_eq!(answer.status, StatusCode::OK, "{token}");
        let forwarded = rig.forwarded();
        let seen = forwarded.last().expect("it was forwarded");
        let expected = format!("Bearer {access}");
        assert_eq!(
            seen.header("authorization"),
            Some(expected.as_str()),
            "{token}"
        );
    }
    rig.stop().await;
    let names: Vec<Option<String>> = rows(&rig.ledger())
        .iter()
        .map(|row| row.text("user").map(str::to_owned))
        .collect();
    assert_eq!(
        names,
        [Some("alice".to_owned()), Some("alice".to_owned()), None]
    );
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
async fn requests_without_a_users_token_are_rejected_with_the_reason() {
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
async fn an_address_that_fails_repeatedly_waits_longer_for_each_rejection() {
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
