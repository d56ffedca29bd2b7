//! Another gateway as a credential: its status is its usage.

use std::net::SocketAddr;
use std::time::Instant;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing, WAIT_MAX};
use tollgate_tests::{Client, Rig, oauth_file, turn, unix_in};

use super::{
    TOKEN, alone, external, front, last_attempts, outcomes, pool, remote, users, wait_for_status,
};

/// Polls the other gateway so often that a test can wait for it.
fn with_fast_polls(mut external: Value) -> Value {
    external["poll_interval"] = json!("50ms");
    external
}

/// Returns the address of a URL without a path.
fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://")
        .and_then(|address| address.parse().ok())
        .expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_weighted_by_its_status() {
    let week = unix_in(7 * 24 * 3600);
    let plan = |plan: &str, used: f64| Standing::new(plan).weekly_used(used).weekly_resets_at(week);
    // The account `a` has used 50, so 49 are left. The status of its pool is the weighted mean.
    let cases = [
        ("less used", vec![plan("plus", 40.0)], "x"),
        ("further used", vec![plan("plus", 60.0)], "a"),
        // 99 - 91 = 8, twenty times.
        (
            "of more weight",
            vec![plan("pro", 91.0), plan("pro", 91.0)],
            "x",
        ),
        (
            "of more weight, and all but used up",
            vec![plan("pro", 98.0), plan("pro", 98.0)],
            "a",
        ),
    ];
    for (name, standings, expected) in cases {
        let (mut back, url) = remote(&standings).await;
        let weight: f64 = standings
            .iter()
            .map(|standing| if standing.plan == "pro" { 10.0 } else { 1.0 })
            .sum();
        let left = 99.0 - standings[0].weekly.used_percent;
        let mut rig = Rig::new().await;
        let account = rig.oauth("a");
        rig.account("a").set_standing(
            Standing::new("plus")
                .weekly_used(50.0)
                .weekly_resets_at(week),
        );
        let credentials = json!([
            account,
            external("x", &url),
            pool("least_used", &["a", "x"])
        ]);
        let config = rig.config(json!({ "credentials": credentials, "users": users() }));
        let client = rig.start(config).await.token("token-alice");

        wait_for_status(
            &client,
            100.0 - (49.0 + left * weight) / (1.0 + weight),
            1.0 + weight,
        )
        .await;
        assert_eq!(
            client.turn(&turn(name)).await.status,
            StatusCode::OK,
            "{name}"
        );
        assert_eq!(
            last_attempts(&rig, 1).await,
            outcomes(&[(expected, "200")]),
            "{name}"
        );
        rig.stop().await;
        back.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_counts_it_only_for_users_that_may_use_it() {
    let (mut back, url) = remote(&[Standing::new("pro").weekly_used(19.0)]).await;
    let (mut rig, client) = front(&url, "least_used", ["a", "x"]).await;
    // (99 x 1 + 80 x 10) / 11 are left.
    wait_for_status(&client.token("token-alice"), 100.0 - 899.0 / 11.0, 11.0).await;
    wait_for_status(&client.token("token-bob"), 1.0, 1.0).await;
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_headers_of_its_responses_are_ignored() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let (mut rig, client) = alone(external("x", &url)).await;
    wait_for_status(&client, 21.0, 1.0).await;
    back.account("r0")
        .set_standing(Standing::new("plus").weekly_used(99.0));
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.header("x-codex-secondary-used-percent"),
        Some("99"),
        "its client may see them"
    );
    wait_for_status(&client, 21.0, 1.0).await;
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_usage_is_polled_again_while_it_has_traffic() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let (mut rig, client) = alone(with_fast_polls(external("x", &url))).await;
    wait_for_status(&client, 21.0, 1.0).await;
    back.account("r0")
        .set_standing(Standing::new("plus").weekly_used(60.0));
    let begun = Instant::now();
    while rig.credential("x").await["weekly"]["used"] != 61.0 {
        assert!(begun.elapsed() < WAIT_MAX, "{}", rig.credential("x").await);
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    }
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_used_again_when_its_status_reports_room() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(99.0)]).await;
    let mut rig = Rig::new().await;
    let credentials = json!([
        rig.oauth("a"),
        with_fast_polls(external("x", &url)),
        pool("fallback", &["x", "a"])
    ]);
    let config = rig.config(json!({ "credentials": credentials, "users": users() }));
    let client = rig.start(config).await.token("token-alice");
    // 99 of the account, and nothing of the other gateway.
    wait_for_status(&client, 100.0 - 99.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 1).await, outcomes(&[("a", "200")]));

    // The other gateway gets another, unused account.
    back.account("fresh");
    back.write(
        "r0.json",
        oauth_file("access-fresh", "account-fresh").to_string(),
    );
    wait_for_status(&Client::new(address(&url)).token(TOKEN), 1.0, 1.0).await;

    rig.wait_for_credential("x", WAIT_MAX, "it is usable again", |x| x["usable"] == true)
        .await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 2).await, outcomes(&[("x", "200")]));
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_status_only_makes_the_known_usage_stale() {
    let (mut back, url) = remote(&[Standing::new("plus").weekly_used(20.0)]).await;
    let mut rig = Rig::new().await;
    // The usage of `y` stays unknown: the scripted upstream has no status, but answers turns.
    let y = rig.upstream.api_key(TOKEN, "front");
    let credentials = json!([
        with_fast_polls(external("x", &url)),
        external("y", &rig.upstream.api_url()),
        pool("fallback", &["y", "x"]),
    ]);
    let config = rig.config(json!({ "credentials": credentials, "users": [users()[0]] }));
    let client = rig.start(config).await.token("token-alice");
    let has_failed = |credential: &Value| credential["poll_failure"].is_string();
    rig.wait_for_credential("y", WAIT_MAX, "its poll has failed", has_failed)
        .await;
    // 100 of `y`, and 79 of `x`.
    wait_for_status(&client, 100.0 - 179.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(last_attempts(&rig, 1).await, outcomes(&[("y", "200")]));

    back.stop().await;
    // From `y` to `x`, which is down; after the attempt it is polled again.
    y.then(Reply::raw(503, ""));
    assert_ne!(client.turn(&turn("two")).await.status, StatusCode::OK);
    let x = rig
        .wait_for_credential("x", WAIT_MAX, "its poll has failed", has_failed)
        .await;
    assert_eq!(
        (&x["usable"], &x["weekly"]["used"]),
        (&json!(true), &json!(21.0)),
        "{x}"
    );
    wait_for_status(&client, 100.0 - 179.0 / 2.0, 2.0).await;
    assert_eq!(client.turn(&turn("three")).await.status, StatusCode::OK);
    rig.stop().await;
}
