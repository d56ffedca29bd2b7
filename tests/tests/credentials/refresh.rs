//! Token refreshes: when they happen and how often, how the token endpoint's responses are handled,
//! and what is written to the file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;
use tollgate_tests::peer::{Peer, post};
use tollgate_tests::upstream::{Gate, Login, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{
    Client, LoginScene, Mounted, Nowhere, Rig, days_ago, make_fifo, read_json, replace_file,
    token_of, turn, user, wait_for_rows,
};

use crate::checks::{FIRST_BACK_OFF_MAX, check_asked, check_served, check_unavailable};

/// A change of a file is noticed within this time even on a slow machine, before the gateway
/// rereads the file by itself.
const SOON: Duration = Duration::from_secs(6);

/// Returns the attempts of the newest of `requests` requests.
async fn newest_attempts(rig: &Rig, requests: usize) -> Vec<String> {
    let rows = wait_for_rows(&rig.ledger(), requests).await;
    let attempts = rows[requests - 1].attempts().into_iter();
    attempts
        .map(|(credential, outcome)| format!("{credential} {outcome}"))
        .collect()
}

// When

#[tokio::test(flavor = "multi_thread")]
async fn fifty_requests_with_an_expired_token_cause_one_refresh_and_all_succeed() {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    let mut requests = Vec::new();
    for number in 0..50 {
        let mut peer = Peer::connect(client.address()).await;
        peer.send(post(&turn(&format!("s{number}")).to_string()))
            .await;
        requests.push(peer);
    }
    gate.wait_until_reached().await;
    assert!(
        scene.rig.presented_tokens().is_empty(),
        "an expired token is not presented"
    );
    gate.open();
    for mut request in requests {
        let answer = request.message().await.expect("an answer");
        assert_eq!(
            (answer.status(), answer.whole),
            (200, true),
            "{}",
            answer.text()
        );
    }
    assert_eq!((scene.token_posts(), scene.login.rotations()), (1, 1));
    assert!(scene.has_newest_tokens());
    let new = token_of(&scene.login.auth_json(), "access_token").to_owned();
    assert_eq!(scene.rig.presented_tokens(), vec![new; 50]);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_soon_is_refreshed_while_requests_still_use_it() {
    let mut scene = LoginScene::new(299).await;
    let old = token_of(&read_json(&scene.file()), "access_token").to_owned();
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    check_served("meanwhile", &client.turn(&turn("one")).await);
    gate.open();
    scene.wait_for_new_tokens().await;
    check_served("then", &client.turn(&turn("one")).await);
    assert_eq!(
        scene.rig.presented_tokens(),
        [
            old,
            token_of(&scene.login.auth_json(), "access_token").to_owned()
        ]
    );
    assert_eq!(scene.login.post_count(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_refreshed_five_minutes_before_expiry_and_at_eight_days_and_not_before() {
    let cases = [
        ("299 s left", 299, days_ago(0), true),
        // A few minutes more than five: the machine may be slow.
        ("ten minutes left", 600, days_ago(0), false),
        ("an hour left", 3600, days_ago(0), false),
        ("seven days old", 3600, days_ago(7), false),
        ("eight days old", 3600, days_ago(8), true),
        ("of no date", 3600, Value::Null, true),
        ("of a date that is none", 3600, json!("lately"), true),
        ("of a date to come", 3600, days_ago(-3), false),
    ];
    let mut rig = Rig::new().await;
    let (mut credentials, mut users, mut logins) = (Vec::new(), Vec::new(), Vec::new());
    for (place, (_, seconds, made, _)) in cases.iter().enumerate() {
        let tag = format!("c{place}");
        let (credential, login) = rig.login(&tag);
        let mut file = login.renew_with(*seconds);
        file["last_refresh"] = made.clone();
        rig.write(&format!("{tag}.json"), file.to_string());
        users.push(user(&tag, &tag));
        credentials.push(credential);
        logins.push(login);
    }
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start(config).await;
    for ((_, _, _, due), login) in cases.iter().zip(&logins) {
        if *due {
            login.wait_for_posts(1).await;
        }
    }
    for (place, ((name, _, _, due), login)) in cases.iter().zip(&logins).enumerate() {
        let tag = format!("c{place}");
        check_served(
            name,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
        rig.wait_for_state(&tag, "ready").await;
        assert_eq!(login.post_count(), usize::from(*due), "{name}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_an_expiry_is_refreshed_by_its_age_alone() {
    // Neither is a JWT: one has no parts, those of the other are not JSON.
    for opaque in ["opaque-token", "opaque.token.of-parts"] {
        for (days, due) in [(0, 0), (7, 0), (8, 1)] {
            let mut scene = LoginScene::new(3600).await;
            scene.rig.upstream.account(opaque, "account-a");
            let mut file = scene.login.auth_json();
            file["tokens"]["access_token"] = json!(opaque);
            file["last_refresh"] = days_ago(days);
            replace_file(&scene.file(), file.to_string());
            let client = scene.start(json!({})).await;
            if due > 0 {
                scene.wait_for_new_tokens().await;
            }
            check_served(opaque, &client.turn(&turn("one")).await);
            let status = scene.rig.wait_for_state("a", "ready").await;
            assert_eq!(
                (scene.login.post_count(), status["expires_at"].is_null()),
                (due, due == 0),
                "{days} days"
            );
            scene.rig.stop().await;
        }
    }
}

// After a 401

/// Upstream's response to a token that it no longer accepts.
fn expired() -> Reply {
    Reply::error(401, "invalid_request_error", "expired")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_refreshed_and_the_same_request_is_sent_again() {
    let mut scene = LoginScene::new(3600).await;
    let old = token_of(&read_json(&scene.file()), "access_token").to_owned();
    scene.login.account().then(expired());
    let client = scene.start(json!({})).await;
    let body = turn("one");
    check_served("refused once", &client.turn(&body).await);
    assert_eq!(newest_attempts(&scene.rig, 1).await, ["a 401", "a 200"]);
    assert_eq!(
        scene.rig.presented_tokens(),
        [
            old,
            token_of(&scene.login.auth_json(), "access_token").to_owned()
        ]
    );
    assert!(
        scene
            .rig
            .upstream
            .turns()
            .iter()
            .all(|seen| seen.json() == body)
    );
    assert_eq!(scene.login.post_count(), 1);
    assert!(scene.has_newest_tokens());
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_rejected_at_the_same_time_share_one_refresh() {
    const REQUESTS: usize = 10;
    let mut scene = LoginScene::new(3600).await;
    let gate = Gate::new();
    for _ in 0..REQUESTS {
        scene.login.account().then(expired().hold_head(&gate));
    }
    let client = scene.start(json!({})).await;
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let client = client.clone();
        requests.spawn(async move { client.turn(&turn("one")).await });
    }
    gate.wait_until_reached_times(REQUESTS).await;
    gate.open();
    for answer in requests.join_all().await {
        check_served("refused with others", &answer);
    }
    assert_eq!(scene.login.post_count(), 1);
    assert_eq!(scene.login.account().turn_count(), 2 * REQUESTS);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_rejects_every_token_causes_at_most_one_refresh_per_request() {
    let mut scene = LoginScene::new(3600).await;
    scene.login.account().always(expired());
    let client = scene.start(json!({})).await;
    for (request, attempts) in [(1, vec!["a 401", "a 401"]), (2, vec!["a 401"])] {
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(
            answer.text().contains("expired"),
            "upstream's own words: {}",
            answer.text()
        );
        assert_eq!(newest_attempts(&scene.rig, request).await, attempts);
        assert_eq!(scene.login.post_count(), 1, "request {request}");
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_skips_an_account_that_rejects_every_token() {
    let mut scene = LoginScene::new(3600).await;
    scene.login.account().always(expired());
    let client = scene.start_pool(json!({})).await;
    for (request, attempts) in [(1, vec!["a 401", "a 401", "b 200"]), (2, vec!["b 200"])] {
        check_served("by b", &client.turn(&turn("one")).await);
        assert_eq!(newest_attempts(&scene.rig, request).await, attempts);
        assert_eq!(scene.login.post_count(), 1, "request {request}");
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_too_large_to_be_sent_again_gets_the_401_and_the_next_succeeds() {
    let mut scene = LoginScene::new(3600).await;
    let mut file = scene.login.auth_json();
    file["tokens"]["access_token"] = json!("a-token-that-upstream-does-not-know");
    replace_file(&scene.file(), file.to_string());
    let client = scene.start(json!({ "replay_bytes": 100 })).await;
    let large = turn(&"x".repeat(200)).to_string();
    let answer = client
        .ask(Method::POST, "/v1/responses", large.clone())
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
    assert_eq!(newest_attempts(&scene.rig, 1).await, ["a 401"]);
    scene.wait_for_new_tokens().await;
    check_served(
        "the next",
        &client.ask(Method::POST, "/v1/responses", large).await,
    );
    assert_eq!(newest_attempts(&scene.rig, 2).await, ["a 200"]);
    assert_eq!(scene.login.post_count(), 1);
    scene.rig.stop().await;
}

// Responses of the token endpoint

/// A word that occurs only in the token endpoint's responses and must not reach any output.
const CANARY: &str = "Canary-5e1f";

/// A response of the token endpoint, and the state that a credential with an expired access token
/// ends in.
struct Case {
    name: &'static str,
    reply: TokenReply,
    state: &'static str,
    /// Part of the reason.
    told: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |name, reply, state, told| Case {
        name,
        reply,
        state,
        told,
    };
    let json = |status: u16, body: Value| TokenReply::status(status).body(body.to_string());
    let code = |status, code: &str| {
        json(
            status,
            json!({ "error": { "message": CANARY, "code": code } }),
        )
    };
    let html = format!("<html>{CANARY}</html>");
    let (login, again) = ("login_needed", "cannot_refresh");
    vec![
        case(
            "400",
            json(
                400,
                json!({ "error": "invalid_grant", "error_description": CANARY }),
            ),
            login,
            "invalid_grant",
        ),
        case(
            "400, another reason",
            json(400, json!({ "error": "invalid_request" })),
            again,
            "400 invalid_request",
        ),
        case(
            "401, reused",
            code(401, "refresh_token_reused"),
            login,
            "refresh_token_reused",
        ),
        case(
            "401, expired",
            code(401, "refresh_token_expired"),
            login,
            "refresh_token_expired",
        ),
        case(
            "401, invalidated",
            code(401, "refresh_token_invalidated"),
            login,
            "refresh_token_invalidated",
        ),
        case("401, a code that is none", code(401, CANARY), login, "401"),
        case(
            "401, a page",
            TokenReply::status(401).body(html.clone()),
            login,
            "401",
        ),
        case(
            "403",
            TokenReply::status(403).body(html.clone()),
            again,
            "403",
        ),
        case("429", TokenReply::status(429), again, "429"),
        case(
            "429, told when",
            TokenReply::status(429).header("retry-after", "600"),
            again,
            "429",
        ),
        case("500", TokenReply::status(500).body(CANARY), again, "500"),
        // A proxy may have forwarded the token.
        case(
            "502",
            TokenReply::status(502).body(html.clone()),
            login,
            "502",
        ),
        case(
            "503",
            TokenReply::status(503).body(html.clone()),
            again,
            "503",
        ),
        case(
            "504",
            TokenReply::status(504).body(html.clone()),
            login,
            "504",
        ),
        case(
            "a page",
            TokenReply::well().body(html),
            login,
            "without tokens",
        ),
        case(
            "nothing",
            TokenReply::well().body(""),
            login,
            "without tokens",
        ),
        case(
            "another object",
            TokenReply::well().body(json!({ "token": CANARY }).to_string()),
            login,
            "without tokens",
        ),
        case(
            "no end",
            TokenReply::well().endless(),
            login,
            "did not respond",
        ),
        case("a cut", TokenReply::well().cut(), login, "did not respond"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_of_the_token_endpoint_is_reported_and_not_requested_again_at_once() {
    let rig = Rig::new().await;
    let cases = cases();
    let (mut credentials, mut users, mut logins) =
        (vec![rig.oauth("good")], Vec::new(), Vec::new());
    for (place, case) in cases.iter().enumerate() {
        let (tag, pool) = (format!("c{place}"), format!("p{place}"));
        let (credential, login) = rig.expiring_login(&tag, -60);
        login.always_for_token(case.reply.clone());
        for name in [&tag, &pool] {
            users.push(user(name, name));
        }
        credentials.push(credential);
        credentials.push(json!({ "tag": pool, "type": "fallback", "credentials": [tag, "good"] }));
        logins.push(login);
    }
    let mut config = rig.config(json!({ "credentials": credentials, "users": users }));
    config["limits"] = json!({ "refresh_timeout": "2s" });
    config["log"] = json!({ "level": "trace" });
    let begun = Instant::now();
    let program = rig.spawn(&config).await;
    let mut read = String::new();
    for (place, (case, login)) in cases.iter().zip(&logins).enumerate() {
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
    check_no_secret(&read, &logins);
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

// Login needed

#[tokio::test(flavor = "multi_thread")]
async fn a_needed_login_fails_no_request_while_the_access_token_is_valid() {
    let mut scene = LoginScene::new(200).await;
    scene.login.always_for_token(TokenReply::status(401));
    let client = scene.start(json!({})).await;
    scene.rig.wait_for_state("a", "login_needed").await;
    for _ in 0..3 {
        check_served("still", &client.turn(&turn("one")).await);
    }
    assert_eq!(
        (
            scene.login.post_count(),
            scene.rig.credential("a").await["state"].as_str()
        ),
        (1, Some("login_needed"))
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_login_is_used_soon_after_it_is_written() {
    for put in [replace_file as fn(&Path, String), |path, text| {
        fs::write(path, text).expect("it can be written")
    }] {
        let mut scene = LoginScene::new(-60).await;
        scene.login.then_for_token(TokenReply::well().cut());
        let client = scene.start(json!({})).await;
        check_unavailable("before", &client.turn(&turn("one")).await);
        assert_eq!(scene.rig.credential("a").await["state"], "login_needed");
        let new = scene.rig.upstream.login("account-a");
        put(&scene.file(), new.auth_json().to_string());
        scene
            .rig
            .wait_for_credential("a", SOON, "ready", |found| found["state"] == "ready")
            .await;
        check_served("after", &client.turn(&turn("one")).await);
        assert_eq!(
            (
                new.account().turn_count(),
                new.post_count(),
                scene.login.post_count()
            ),
            (1, 0, 1)
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_expired_long_ago_is_refreshed_right_after_another_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let client = scene.start(json!({})).await;
    check_served("the first", &client.turn(&turn("one")).await);
    // The login of an account that was unused for a while.
    let other = scene.rig.upstream.login("account-of-another");
    replace_file(&scene.file(), other.renew_with(-3600).to_string());
    other.wait_for_posts(1).await;
    scene.rig.wait_for_state("a", "ready").await;
    check_served("the other", &client.turn(&turn("one")).await);
    let tokens =
        [&scene.login, &other].map(|login| token_of(&login.auth_json(), "access_token").to_owned());
    assert_eq!(
        scene.rig.presented_tokens(),
        tokens,
        "no expired token was shown"
    );
    assert_eq!((scene.login.post_count(), other.post_count()), (1, 1));
    scene.rig.stop().await;
}

// Changes of the file during a refresh

/// Runs a refresh whose response is held back while `change` changes the file.
async fn change_during_refresh(change: impl FnOnce(&LoginScene)) -> (LoginScene, Client) {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    change(&scene);
    gate.open();
    (scene, client)
}

/// Returns what else is in the rig's folder, except locks.
fn left_over(scene: &LoginScene) -> Vec<String> {
    let entries = fs::read_dir(scene.rig.folder()).expect("a folder");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a plain name")
    });
    names
        .filter(|name| name.starts_with("a.json.") && name != "a.json.lock")
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_written_during_a_refresh_is_kept_and_used() {
    for account in ["account-a", "account-of-another"] {
        let mut new = None;
        let (mut scene, client) = change_during_refresh(|scene| {
            let login = scene.rig.upstream.login(account);
            let text = login.auth_json().to_string();
            replace_file(&scene.file(), &text);
            new = Some((login, text));
        })
        .await;
        let (login, text) = new.expect("a login");
        check_served(account, &client.turn(&turn("one")).await);
        assert_eq!(
            scene.rig.presented_tokens(),
            [token_of(&login.auth_json(), "access_token").to_owned()]
        );
        scene.rig.wait_for_state("a", "ready").await;
        assert_eq!(fs::read_to_string(scene.file()).expect("it is there"), text);
        assert_eq!(
            (scene.token_posts(), left_over(&scene)),
            (1, Vec::new()),
            "{account}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_removed_during_a_refresh_stays_removed() {
    let (mut scene, client) =
        change_during_refresh(|scene| fs::remove_file(scene.file()).expect("it is there")).await;
    check_unavailable("removed", &client.turn(&turn("one")).await);
    scene.rig.wait_for_state("a", "unreadable").await;
    // The refresh has ended when the gateway has.
    scene.rig.stop().await;
    assert!(!scene.file().exists());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_changes_of_the_file_during_a_refresh_are_kept() {
    let (mut scene, client) = change_during_refresh(|scene| {
        let mut file = read_json(&scene.file());
        file["theirs"] = json!({ "added": [1, 2.50] });
        replace_file(&scene.file(), file.to_string());
    })
    .await;
    check_served("served", &client.turn(&turn("one")).await);
    assert_eq!(
        read_json(&scene.file())["theirs"],
        json!({ "added": [1, 2.50] })
    );
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_broken_during_a_refresh_gets_its_tokens_once_repaired() {
    let mut old = String::new();
    let (mut scene, client) = change_during_refresh(|scene| {
        old = fs::read_to_string(scene.file()).expect("it is there");
        replace_file(&scene.file(), &old[..old.len() / 2]);
    })
    .await;
    check_unavailable("broken", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    replace_file(&scene.file(), old);
    let client = scene.start(json!({})).await;
    check_served("mended", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!(
        (scene.token_posts(), scene.login.reuses(), left_over(&scene)),
        (1, 0, Vec::new())
    );
    scene.rig.stop().await;
}

// How the file is written

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_the_tokens_and_their_date_is_unchanged() {
    let mut scene = LoginScene::new(-60).await;
    let written = |tokens: &Value, made: &Value| {
        let [id, access, refresh] =
            ["id_token", "access_token", "refresh_token"].map(|name| &tokens[name]);
        format!(
            "{{\n\t\"theirs\": 1.50, \"OPENAI_API_KEY\":null,\n\n  \"tokens\" : {{\"more\": [1,  2], \"refresh_token\":\
             {refresh},\r\n \"access_token\": {access}, \"account_id\": \"account-a\",  \"id_token\" :{id}}},\n\
             \"last_refresh\":{made}, \"auth_mode\": \"chatgpt\", \"e\\u0301\": {{}} }}\n\n"
        )
    };
    fs::write(
        scene.file(),
        written(&scene.login.auth_json()["tokens"], &days_ago(1)),
    )
    .expect("it can be written");
    fs::set_permissions(scene.file(), Permissions::from_mode(0o640)).expect("its mode can be set");
    let begun = OffsetDateTime::now_utc();
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);

    let made = read_json(&scene.file())["last_refresh"].clone();
    let new = written(&scene.login.auth_json()["tokens"], &made);
    assert_eq!(fs::read_to_string(scene.file()).expect("it is there"), new);
    let mode = fs::metadata(scene.file())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    let made = made.as_str().expect("a date");
    assert!(made.ends_with('Z') && made.contains('.'), "{made}");
    let made = OffsetDateTime::parse(made, &Rfc3339).expect("RFC 3339");
    assert!(
        (begun..=OffsetDateTime::now_utc()).contains(&made),
        "{made}"
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_keeps_the_owner_and_the_group_of_the_file() {
    let mut scene = LoginScene::new(-60).await;
    if let Err(error) = chown(scene.file(), Some(1234), Some(1235)) {
        return println!("skipped: a file cannot be given away here: {error}");
    }
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    let found = fs::metadata(scene.file()).expect("it is there");
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (1234, 1235, 0o600)
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stays_a_link_and_its_target_gets_the_tokens() {
    let mut scene = LoginScene::new(-60).await;
    let target = scene.rig.path("home").join("theirs.json");
    fs::create_dir(scene.rig.path("home")).expect("a folder can be made");
    fs::rename(scene.file(), &target).expect("a file can be moved");
    symlink("home/theirs.json", scene.file()).expect("a link can be made");
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);
    assert_eq!(
        fs::read_link(scene.file()).expect("still a link"),
        Path::new("home/theirs.json")
    );
    assert!(!target.is_symlink() && scene.has_newest_tokens());
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_file_during_a_hundred_refreshes_finds_it_whole() {
    let mut scene = LoginScene::new(-60).await;
    let (over, reads) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let reader = thread::spawn({
        let (over, reads, file) = (Arc::clone(&over), Arc::clone(&reads), scene.file());
        move || {
            while !over.load(Ordering::Relaxed) {
                let tokens = &read_json(&file)["tokens"];
                let [access, refresh] =
                    ["access_token", "refresh_token"].map(|name| tokens[name].as_str());
                assert!(access.is_some() && refresh.is_some(), "tokens are missing");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    scene.start(json!({})).await;
    for refreshes in 1..=100 {
        scene.login.wait_for_posts(refreshes).await;
        scene.wait_for_new_tokens().await;
        if refreshes < 100 {
            replace_file(&scene.file(), scene.login.renew_with(-60).to_string());
        }
    }
    over.store(true, Ordering::Relaxed);
    reader
        .join()
        .expect("the file was there, and whole, each time");
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads > 1000, "only {reads} reads show nothing");
    scene.rig.stop().await;
}

// Files that cannot be written or read

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_if_new_ones_could_not_be_stored() {
    for obstacle in [
        "a.json.lock",
        "a.json.refresh-journal",
        "a.json.tollgate-new",
    ] {
        for (seconds, state) in [(-60, "cannot_refresh"), (200, "ready")] {
            let mut scene = LoginScene::new(seconds).await;
            // Not even root can write a file over a folder.
            fs::create_dir(scene.rig.path(obstacle)).expect("a folder can be made");
            let client = scene.start(json!({})).await;
            let is_so =
                |found: &Value| found["state"] == state && !found["refresh_failure"].is_null();
            let status = scene
                .rig
                .wait_for_credential("a", WAIT_MAX, state, is_so)
                .await;
            let failure = status["refresh_failure"].as_str().expect("a reason");
            assert!(
                failure.contains("cannot") && failure.contains(obstacle),
                "{failure}"
            );
            let answer = client.turn(&turn("one")).await;
            if state == "ready" {
                check_served(obstacle, &answer);
            } else {
                check_unavailable(obstacle, &answer);
            }
            scene.rig.stop().await;
            assert_eq!(scene.token_posts(), 0, "{obstacle}");
            fs::remove_dir(scene.rig.path(obstacle)).expect("it is there");
            let client = scene.start(json!({})).await;
            scene.wait_for_new_tokens().await;
            check_served("without the obstacle", &client.turn(&turn("one")).await);
            scene.rig.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_spent_while_the_disk_is_read_only_or_full() {
    for told in ["read-only", "space"] {
        let mut scene = LoginScene::new(-60).await;
        let home = scene.rig.path("home");
        let Some(disk) = Mounted::new(&home, 1 << 20) else {
            return;
        };
        let file = home.join("a.json");
        fs::copy(scene.file(), &file).expect("it can be copied");
        scene.credential["credential_path"] = json!(file);
        let filler = (told == "space").then(|| disk.fill());
        if filler.is_none() {
            disk.make_read_only();
        }
        let client = scene.start(json!({})).await;
        check_unavailable(told, &client.turn(&turn("one")).await);
        let status = scene.rig.wait_for_state("a", "cannot_refresh").await;
        assert!(
            status["reason"].as_str().expect("a reason").contains(told),
            "{status:#}"
        );
        assert_eq!(scene.token_posts(), 0, "{told}");
        match filler {
            Some(filler) => fs::remove_file(filler).expect("it is there"),
            None => disk.make_writable(),
        }
        scene
            .rig
            .wait_for_credential("a", FIRST_BACK_OFF_MAX, "ready", |found| {
                found["state"] == "ready"
            })
            .await;
        check_served("mended", &client.turn(&turn("one")).await);
        assert_eq!(
            read_json(&file)["tokens"],
            scene.login.auth_json()["tokens"],
            "{told}"
        );
        assert_eq!(
            (scene.token_posts(), scene.login.reuses()),
            (1, 0),
            "{told}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tokens_that_cannot_be_written_are_kept_until_they_can_be() {
    // A folder with the name of the temporary file. It appears after the check before the request.
    let obstacle = |scene: &LoginScene| scene.rig.path("a.json.tollgate-new");
    let (mut scene, client) = change_during_refresh(|scene| {
        fs::create_dir(obstacle(scene)).expect("a folder can be made")
    })
    .await;
    check_unavailable("not written", &client.turn(&turn("one")).await);
    let status = scene.rig.wait_for_state("a", "cannot_refresh").await;
    assert!(
        status["reason"]
            .as_str()
            .expect("a reason")
            .contains("the new tokens are still in"),
        "{status:#}"
    );
    fs::remove_dir(obstacle(&scene)).expect("it is there");
    scene
        .rig
        .wait_for_credential("a", FIRST_BACK_OFF_MAX, "ready", |found| {
            found["state"] == "ready"
        })
        .await;
    check_served("written", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_is_unreadable_and_blocks_nothing() {
    let mut scene = LoginScene::new(3600).await;
    fs::remove_file(scene.file()).expect("it is there");
    make_fifo(&scene.file());
    let client = scene.start(json!({})).await;
    check_unavailable("a FIFO", &client.turn(&turn("one")).await);
    let status = scene.rig.wait_for_state("a", "unreadable").await;
    assert!(
        status["reason"]
            .as_str()
            .expect("a reason")
            .contains("expected a file"),
        "{status:#}"
    );
    replace_file(&scene.file(), scene.login.auth_json().to_string());
    scene
        .rig
        .wait_for_credential("a", SOON, "ready", |found| found["state"] == "ready")
        .await;
    check_served("a file", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 0);
    scene.rig.stop().await;
}

// Interrupted refreshes

fn journal(scene: &LoginScene) -> PathBuf {
    scene.rig.path("a.json.refresh-journal")
}

/// A refresh whose response was lost, after the gateway has ended. The journal says that the token
/// was presented.
async fn lost_response() -> LoginScene {
    let mut scene = LoginScene::new(-60).await;
    scene.login.then_for_token(TokenReply::well().cut());
    let client = scene.start(json!({})).await;
    check_unavailable("lost", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    let noted = read_json(&journal(&scene));
    assert!(
        noted["spent"].is_string() && noted["tokens"].is_null(),
        "no answer is noted"
    );
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_journaled_before_a_kill_are_recovered_at_the_start() {
    let mut scene = lost_response().await;
    let mut noted = read_json(&journal(&scene));
    let tokens = &scene.login.auth_json()["tokens"];
    noted["tokens"] = ["id_token", "access_token", "refresh_token"]
        .map(|name| (name, tokens[name].clone()))
        .into_iter()
        .collect();
    fs::write(journal(&scene), noted.to_string()).expect("it can be written");
    let client = scene.start(json!({})).await;
    assert!(scene.has_newest_tokens());
    assert_eq!(left_over(&scene), Vec::<String>::new());
    check_served("recovered", &client.turn(&turn("one")).await);
    assert_eq!((scene.login.post_count(), scene.login.reuses()), (1, 0));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_be_spent_is_not_presented_again_by_the_next_gateway() {
    let mut scene = lost_response().await;
    for _ in 0..2 {
        let client = scene.start(json!({})).await;
        check_unavailable("may be spent", &client.turn(&turn("one")).await);
        let status = scene.rig.credential("a").await;
        assert_eq!(status["state"], "login_needed", "{status:#}");
        assert_eq!((scene.login.post_count(), scene.login.reuses()), (1, 0));
        scene.rig.stop().await;
    }
    // A new login clears the state.
    let new = scene.rig.upstream.login("account-a");
    replace_file(&scene.file(), new.renew_with(-60).to_string());
    let client = scene.start(json!({})).await;
    check_served("a new login", &client.turn(&turn("one")).await);
    assert_eq!((new.post_count(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_token_or_without_content_changes_nothing() {
    let other = json!({
        "spent": "0".repeat(64),
        "at": days_ago(300),
        "tokens": { "access_token": "not-ours", "refresh_token": "not-ours" },
    });
    for (name, text) in [
        ("another token's", other.to_string()),
        ("half", r#"{"spent": "0"#.to_owned()),
        ("empty", String::new()),
    ] {
        let mut scene = LoginScene::new(-60).await;
        fs::write(journal(&scene), text).expect("it can be written");
        let client = scene.start(json!({})).await;
        check_served(name, &client.turn(&turn("one")).await);
        assert!(scene.has_newest_tokens(), "{name}");
        assert_eq!(
            (scene.token_posts(), left_over(&scene)),
            (1, Vec::new()),
            "{name}"
        );
        scene.rig.stop().await;
    }
}
