//! How the responses of the token endpoint are handled.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_tests::upstream::{Login, TokenReply};
use tollgate_tests::{LoginGroup, LoginScene, Nowhere, Rig, read_json, turn, user};

use super::expired;
use crate::checks::{FIRST_BACK_OFF_MAX, check_asked, check_served, check_unavailable};

/// A word that occurs only in the token endpoint's responses and must not reach any output.
const CANARY: &str = "Canary-5e1f";

/// A response of the token endpoint, and the state that a credential with an expired access token
/// ends in.
#[derive(Clone)]
struct RefreshCase {
    name: &'static str,
    reply: TokenReply,
    state: &'static str,
    /// Part of the reason.
    told: &'static str,
}

const LOGIN_NEEDED: &str = "login_needed";
const CANNOT_REFRESH: &str = "cannot_refresh";

impl RefreshCase {
    fn new(name: &'static str, reply: TokenReply, state: &'static str, told: &'static str) -> Self {
        Self {
            name,
            reply,
            state,
            told,
        }
    }
}

fn page() -> String {
    format!("<html>{CANARY}</html>")
}

fn body(status: u16, body: Value) -> TokenReply {
    TokenReply::status(status).body(body.to_string())
}

fn error_code(status: u16, code: &str) -> TokenReply {
    body(
        status,
        json!({ "error": { "message": CANARY, "code": code } }),
    )
}

/// Responses that reject the refresh token or the request.
fn rejections() -> Vec<RefreshCase> {
    vec![
        RefreshCase::new(
            "400",
            body(
                400,
                json!({ "error": "invalid_grant", "error_description": CANARY }),
            ),
            LOGIN_NEEDED,
            "invalid_grant",
        ),
        RefreshCase::new(
            "400, another reason",
            body(400, json!({ "error": "invalid_request" })),
            CANNOT_REFRESH,
            "400 invalid_request",
        ),
        RefreshCase::new(
            "401, reused",
            error_code(401, "refresh_token_reused"),
            LOGIN_NEEDED,
            "refresh_token_reused",
        ),
        RefreshCase::new(
            "401, expired",
            error_code(401, "refresh_token_expired"),
            LOGIN_NEEDED,
            "refresh_token_expired",
        ),
        RefreshCase::new(
            "401, invalidated",
            error_code(401, "refresh_token_invalidated"),
            LOGIN_NEEDED,
            "refresh_token_invalidated",
        ),
        RefreshCase::new(
            "401, a code that is none",
            error_code(401, CANARY),
            LOGIN_NEEDED,
            "401",
        ),
        RefreshCase::new(
            "401, a page",
            TokenReply::status(401).body(page()),
            LOGIN_NEEDED,
            "401",
        ),
    ]
}

/// Responses of an endpoint, or of a proxy before it, that cannot serve the request.
fn failures() -> Vec<RefreshCase> {
    vec![
        RefreshCase::new(
            "403",
            TokenReply::status(403).body(page()),
            CANNOT_REFRESH,
            "403",
        ),
        RefreshCase::new("429", TokenReply::status(429), CANNOT_REFRESH, "429"),
        RefreshCase::new(
            "429, told when",
            TokenReply::status(429).header("retry-after", "600"),
            CANNOT_REFRESH,
            "429",
        ),
        RefreshCase::new(
            "500",
            TokenReply::status(500).body(CANARY),
            CANNOT_REFRESH,
            "500",
        ),
        // A proxy may have forwarded the token.
        RefreshCase::new(
            "502",
            TokenReply::status(502).body(page()),
            LOGIN_NEEDED,
            "502",
        ),
        RefreshCase::new(
            "503",
            TokenReply::status(503).body(page()),
            CANNOT_REFRESH,
            "503",
        ),
        RefreshCase::new(
            "504",
            TokenReply::status(504).body(page()),
            LOGIN_NEEDED,
            "504",
        ),
    ]
}

/// Responses that contain no tokens, or are not whole.
fn without_tokens() -> Vec<RefreshCase> {
    vec![
        RefreshCase::new(
            "a page",
            TokenReply::well().body(page()),
            LOGIN_NEEDED,
            "without tokens",
        ),
        RefreshCase::new(
            "nothing",
            TokenReply::well().body(""),
            LOGIN_NEEDED,
            "without tokens",
        ),
        RefreshCase::new(
            "another object",
            TokenReply::well().body(json!({ "token": CANARY }).to_string()),
            LOGIN_NEEDED,
            "without tokens",
        ),
        RefreshCase::new(
            "no end",
            TokenReply::well().endless(),
            LOGIN_NEEDED,
            "did not respond",
        ),
        RefreshCase::new(
            "a cut",
            TokenReply::well().cut(),
            LOGIN_NEEDED,
            "did not respond",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_of_the_token_endpoint_is_reported_and_not_requested_again_at_once() {
    let rig = Rig::new().await;
    let cases = [rejections(), failures(), without_tokens()].concat();
    let mut group = LoginGroup::default();
    group.credentials.push(rig.oauth("good"));
    for (place, case) in cases.iter().enumerate() {
        let (tag, pool) = (format!("c{place}"), format!("p{place}"));
        let login = group.add(&rig, &tag, -60);
        login.always_for_token(case.reply.clone());
        group.users.push(user(&pool, &pool));
        let pool = json!({ "tag": pool, "type": "fallback", "credentials": [tag, "good"] });
        group.credentials.push(pool);
    }
    let mut config = group.config(&rig);
    config["limits"] = json!({ "refresh_timeout": "2s" });
    config["log"] = json!({ "level": "trace" });
    let begun = Instant::now();
    let program = rig.spawn(&config).await;
    let mut read = String::new();
    for (place, (case, login)) in cases.iter().zip(&group.logins).enumerate() {
        let (tag, name) = (format!("c{place}"), case.name);
        let alone = program.client().token(&format!("token-{tag}"));
        let pooled = program.client().token(&format!("token-p{place}"));
        for _ in 0..2 {
            let refused = alone.turn(&turn("one")).await;
            check_unavailable(name, &refused);
            check_served(name, &pooled.turn(&turn("one")).await);
            read += &refused.text();
        }
        let status = rig.wait_for_state(&tag, case.state).await;
        let reason = status["reason"].as_str().expect("a reason");
        assert!(
            reason.contains(case.told),
            "{name}: {reason:?} has no {:?}",
            case.told
        );
        check_asked(name, login, case.state, begun);
        read += &status.to_string();
    }
    read += &program.log();
    assert!(
        read.contains("refresh rejected: log in again"),
        "the log is there"
    );
    program.kill();
    check_no_secret(&read, &group.logins);
}

/// Neither a token of these logins nor the canary is in the output.
#[track_caller]
fn check_no_secret(read: &str, logins: &[Login]) {
    let files = logins.iter().map(Login::auth_json);
    let tokens = files.flat_map(|file| {
        ["access_token", "refresh_token", "id_token"]
            .map(|name| file["tokens"][name].as_str().expect("a token").to_owned())
    });
    for secret in tokens.chain([CANARY.to_owned(), "rt-account".to_owned(), "eyJ".to_owned()]) {
        let line = read.lines().find(|line| line.contains(&secret));
        assert!(line.is_none(), "{secret} is in {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_refuses_connections_spends_no_token() {
    let mut scene = LoginScene::new(-60).await;
    let nowhere = Nowhere::new();
    let mut config = scene
        .rig
        .config(json!({ "credentials": [scene.credential] }));
    config["services"][0]["endpoints"]["token"] = json!(nowhere.url());
    let client = scene.rig.start(config.clone()).await;
    for _ in 0..2 {
        check_unavailable("refused", &client.turn(&turn("one")).await);
    }
    let status = scene.rig.credential("a").await;
    assert_eq!(status["state"], "cannot_refresh", "{status:#}");
    scene.rig.stop().await;
    // The journal does not prevent the next gateway from trying.
    config["services"][0]["endpoints"]["token"] = json!(scene.rig.upstream.token_url());
    let client = scene.rig.start(config).await;
    check_served("the next gateway", &client.turn(&turn("one")).await);
    assert_eq!(scene.login.post_count(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_refresh_is_retried_without_a_request() {
    let told = TokenReply::status(429).header("retry-after", "1");
    for (name, reply, pause) in [
        ("429 with a time", told, 1),
        ("not told", TokenReply::status(500), 5),
    ] {
        let mut scene = LoginScene::new(-60).await;
        scene.login.then_for_token(reply);
        let begun = Instant::now();
        let client = scene.start(json!({})).await;
        check_unavailable(name, &client.turn(&turn("one")).await);
        scene
            .rig
            .wait_for_credential("a", FIRST_BACK_OFF_MAX, "ready", |found| {
                found["state"] == "ready"
            })
            .await;
        assert!(
            begun.elapsed() >= Duration::from_secs(pause),
            "{name}: after {:?}",
            begun.elapsed()
        );
        check_served(name, &client.turn(&turn("one")).await);
        assert_eq!(scene.login.post_count(), 2, "{name}");
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_without_a_refresh_token_keeps_the_old_one_valid() {
    let mut scene = LoginScene::new(-60).await;
    let old = read_json(&scene.file())["tokens"]["refresh_token"].clone();
    scene
        .login
        .then_for_token(TokenReply::well().without_refresh_token());
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);
    assert_eq!(read_json(&scene.file())["tokens"]["refresh_token"], old);
    assert!(scene.has_newest_tokens());
    // The next refresh presents it again.
    scene.login.account().then(expired());
    scene.rig.stop().await;
    let client = scene.start(json!({})).await;
    check_served("by the next refresh", &client.turn(&turn("one")).await);
    assert_eq!(
        (
            scene.login.post_count(),
            scene.login.rotations(),
            scene.login.reuses()
        ),
        (2, 1, 0)
    );
    scene.rig.stop().await;
}
