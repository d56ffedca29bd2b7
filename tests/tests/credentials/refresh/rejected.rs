//! Refreshes after a 401.

use http::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;
use tollgate_tests::upstream::Gate;
use tollgate_tests::{LoginScene, Rig, read_json, replace_file, token_of, turn, wait_for_rows};

use super::expired;
use crate::checks::check_served;

/// Returns the attempts of the newest of `requests` requests.
async fn newest_attempts(rig: &Rig, requests: usize) -> Vec<String> {
    let rows = wait_for_rows(&rig.ledger(), requests).await;
    let attempts = rows[requests - 1].attempts().into_iter();
    attempts
        .map(|(credential, outcome)| format!("{credential} {outcome}"))
        .collect()
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
