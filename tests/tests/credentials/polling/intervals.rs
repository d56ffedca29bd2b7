//! When usage is polled, and as whom.

use std::time::Instant;

use http::Method;
use serde_json::{Value, json};
use tollgate_tests::upstream::{SeenRequest, WAIT_MAX};
use tollgate_tests::{Rig, user};

use super::{INTERVAL, check_served, polled_at, pool};

#[tokio::test(flavor = "multi_thread")]
async fn each_account_is_polled_once_at_start_as_itself_and_a_key_never() {
    let mut rig = Rig::new().await;
    let user = |tag: &str| user(tag, tag);
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.oauth("b"), rig.api_key("k")],
        "users": (["a", "b", "k"].map(user)),
    }));
    let client = rig.start_polled(config).await;
    check_served(&client.token("token-k")).await;
    rig.stop().await;

    let is_poll = |seen: &SeenRequest| seen.path().ends_with("/usage");
    let mut polls: Vec<SeenRequest> = rig
        .upstream
        .requests()
        .into_iter()
        .filter(is_poll)
        .collect();
    polls.sort_by(|one, other| one.account.cmp(&other.account));
    assert_eq!(polls.len(), 2);
    for (seen, tag) in polls.iter().zip(["a", "b"]) {
        assert_eq!(
            (&seen.method, seen.target.as_str()),
            (&Method::GET, "/backend-api/wham/usage")
        );
        assert_eq!(
            seen.header("authorization"),
            Some(format!("Bearer access-{tag}").as_str())
        );
        assert_eq!(
            seen.header("chatgpt-account-id"),
            Some(format!("account-{tag}").as_str())
        );
        assert!(seen.body.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_poll_follows_traffic_and_is_an_interval_after_the_last() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    let mut last = polled_at(&rig.credential("a").await);
    for count in 2..5 {
        assert_eq!(rig.account("a").poll_count(), count - 1, "without traffic");
        check_served(&client).await;
        let is_so = |found: &Value| polled_at(found) > last;
        let next = polled_at(
            &rig.wait_for_credential("a", WAIT_MAX, "polled again", is_so)
                .await,
        );
        assert!(
            next >= last + INTERVAL.as_millis() as u64,
            "polled {} ms after the last time",
            next - last
        );
        last = next;
    }
    assert_eq!(rig.account("b").poll_count(), 1, "b had no traffic");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_traffic_causes_no_more_than_one_poll_per_interval() {
    let begun = Instant::now();
    let (mut rig, client) = pool(&["a"]).await;
    while rig.account("a").poll_count() < 4 {
        check_served(&client).await;
        assert!(
            begun.elapsed() < WAIT_MAX,
            "{} polls",
            rig.account("a").poll_count()
        );
    }
    rig.stop().await;
    let intervals = begun.elapsed().as_millis() / INTERVAL.as_millis();
    assert!(rig.account("a").poll_count() as u128 <= intervals + 1);
}
