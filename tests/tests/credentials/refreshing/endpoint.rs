//! The request to the token endpoint, and a misbehaving endpoint.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tollgate_tests::upstream::{Gate, Login, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{LoginGroup, LoginScene, Rig, read_json, replace_file, token_of, turn};

use crate::checks::{check_asked, check_served, check_unavailable};

// The request

#[tokio::test(flavor = "multi_thread")]
async fn the_token_request_is_the_one_of_codex_and_contains_nothing_else() {
    let mut scene = LoginScene::new(-60).await;
    let refresh_token = token_of(&read_json(&scene.file()), "refresh_token").to_owned();
    let client = scene.start(json!({})).await;
    check_served(
        "served",
        &client.header("x-theirs", "1").turn(&turn("one")).await,
    );
    let requests = scene.rig.upstream.requests();
    let post = requests
        .iter()
        .find(|seen| seen.path() == "/oauth/token")
        .expect("a refresh");
    let expected = json!({
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": "openid profile email",
    });
    assert_eq!(
        (post.json(), post.header("content-type")),
        (expected, Some("application/json"))
    );
    for name in ["authorization", "chatgpt-account-id", "cookie", "x-theirs"] {
        assert_eq!(post.header(name), None, "{name}");
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_without_a_date_are_refreshed_once_and_then_have_one() {
    let mut scene = LoginScene::new(3600).await;
    let mut file = scene.login.auth_json();
    file.as_object_mut()
        .expect("an object")
        .remove("last_refresh");
    replace_file(&scene.file(), file.to_string());
    for _ in 0..2 {
        let client = scene.start(json!({})).await;
        scene.wait_for_new_tokens().await;
        check_served("served", &client.turn(&turn("one")).await);
        assert_eq!(scene.login.post_count(), 1);
        scene.rig.stop().await;
    }
    let file = read_json(&scene.file());
    OffsetDateTime::parse(file["last_refresh"].as_str().expect("a date"), &Rfc3339)
        .expect("RFC 3339");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_without_a_refresh_token_is_not_refreshed() {
    let rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    let mut scene = LoginScene {
        rig,
        credential,
        login,
    };
    for (name, missing) in [("null", Value::Null), ("empty", json!(""))] {
        let mut file = scene.login.renew_with(-60);
        file["tokens"]["refresh_token"] = missing;
        replace_file(&scene.file(), file.to_string());
        let client = scene.start(json!({})).await;
        check_unavailable(name, &client.turn(&turn("one")).await);
        // Nothing is retried: the operator must act.
        let status = scene.rig.credential("a").await;
        assert_eq!(status["state"], "login_needed", "{name}: {status:#}");
        scene.rig.stop().await;
    }
    assert_eq!(scene.token_posts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_is_not_refreshed() {
    let mut rig = Rig::new().await;
    let refused = Reply::error(401, "invalid_request_error", "refused");
    rig.upstream.always(refused.clone());
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
    assert_eq!((rig.upstream.turns().len(), rig.token_posts()), (1, 0));
    rig.stop().await;
}

// Responses of the token endpoint

/// Responses of the token endpoint to an expired token, and what becomes of the credential.
struct EndpointCase {
    name: &'static str,
    reply: TokenReply,
    state: &'static str,
}

/// Checks each case in one gateway, with one credential per case: requests fail, and no refresh is
/// retried at once.
async fn check_answers(cases: Vec<EndpointCase>, limits: Value) {
    let mut rig = Rig::new().await;
    let mut group = LoginGroup::default();
    for (place, case) in cases.iter().enumerate() {
        let login = group.add(&rig, &format!("c{place}"), -60);
        login.always_for_token(case.reply.clone());
    }
    let mut config = group.config(&rig);
    config["limits"] = limits;
    let begun = Instant::now();
    let client = rig.start(config).await;
    for (place, (case, login)) in cases.iter().zip(&group.logins).enumerate() {
        let tag = format!("c{place}");
        for _ in 0..2 {
            let answer = client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await;
            check_unavailable(case.name, &answer);
        }
        let status = rig.wait_for_state(&tag, case.state).await;
        check_asked(case.name, login, case.state, begun);
        assert!(
            !status.to_string().contains("given-"),
            "{}: {status:#}",
            case.name
        );
    }
    // No unknown token is presented.
    assert_eq!(
        rig.token_posts(),
        group.logins.iter().map(Login::post_count).sum::<usize>()
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_response_is_reported_and_not_requested_again() {
    let (login, again) = ("login_needed", "cannot_refresh");
    let json = |body: Value| TokenReply::well().body(body.to_string());
    // A client that follows it would send the request twice.
    let elsewhere = |status| TokenReply::status(status).header("location", "/oauth/token");
    let filler = "x".repeat(300 << 10);
    let case = |name, reply, state| EndpointCase { name, reply, state };
    let cases = vec![
        case("302", elsewhere(302), again),
        case("307", elsewhere(307), again),
        case("308", elsewhere(308), again),
        case(
            "a list",
            json(json!([{ "access_token": "given-1" }])),
            login,
        ),
        case("a text", json(json!("given-1")), login),
        case(
            "an empty access token",
            json(json!({ "access_token": "", "refresh_token": "given-2" })),
            login,
        ),
        case(
            "an access token of null",
            json(json!({ "access_token": null, "refresh_token": "given-2" })),
            login,
        ),
        case(
            "a number",
            json(json!({ "access_token": 1, "refresh_token": "given-2" })),
            login,
        ),
        case(
            "half",
            TokenReply::well().body(r#"{"access_token": "given-1", "refresh_"#),
            login,
        ),
        case(
            "much too long",
            json(json!({ "filler": filler, "access_token": "given-1" })),
            login,
        ),
        case("204", TokenReply::status(204).rotating(), login),
        case(
            "404, a final code",
            TokenReply::status(404).body(r#"{"code": "refresh_token_expired"}"#),
            login,
        ),
        case(
            "500, a final code",
            TokenReply::status(500).body(r#"{"error": "invalid_grant"}"#),
            again,
        ),
        case(
            "502, a final code",
            TokenReply::status(502)
                .body(r#"{"error": "invalid_grant"}"#)
                .rotating(),
            login,
        ),
        case("504", TokenReply::status(504).rotating(), login),
    ];
    check_answers(cases, json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_token_response_is_awaited_until_the_limit_and_not_requested_again() {
    let begun = Instant::now();
    let case = |name, reply| EndpointCase {
        name,
        reply,
        state: "login_needed",
    };
    let cases = vec![
        case("no head", TokenReply::well().behind(&Gate::new())),
        case("no end", TokenReply::well().endless()),
        case(
            "no end, and nothing granted",
            TokenReply::status(200).endless(),
        ),
    ];
    check_answers(cases, json!({ "refresh_timeout": "300ms" })).await;
    assert!(
        begun.elapsed() < WAIT_MAX,
        "the default would be thirty seconds"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_of_zero_is_raised_to_the_shortest_pause() {
    for told in ["0", "-1", "0.001", "soon", ""] {
        let mut scene = LoginScene::new(-60).await;
        scene
            .login
            .always_for_token(TokenReply::status(429).header("retry-after", told));
        let client = scene
            .start(json!({ "refresh_timeout": "1s", "lock_timeout": "1s" }))
            .await;
        let answers = [
            client.turn(&turn("one")).await,
            client.turn(&turn("one")).await,
        ];
        assert_eq!(scene.login.post_count(), 1, "{told:?}");
        for answer in &answers {
            check_unavailable(told, answer);
        }
        scene.rig.wait_for_state("a", "cannot_refresh").await;
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_have_expired_when_issued_are_not_requested_repeatedly() {
    let mut scene = LoginScene::new(-60).await;
    scene.login.lifetime(Duration::ZERO);
    let client = scene.start(json!({})).await;
    for _ in 0..3 {
        // The gateway's clock may be wrong: upstream decides.
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
        assert_eq!(scene.login.post_count(), 1);
    }
    assert!(scene.has_newest_tokens());
    scene.rig.stop().await;
}
