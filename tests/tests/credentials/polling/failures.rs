//! What a failure of the usage API changes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, HeaderForm, Reason, Reply, Standing, WAIT_MAX};
use tollgate_tests::{Protocol, Rig, over_both};

use super::{check_served, config, polled_at, separate, usage, used, window};

/// Responses without a credential's usage. Over HTTP/2, where all credentials share a connection,
/// each ends its stream alone.
fn failures() -> Vec<(&'static str, Reply)> {
    let json = |body: Value| Reply::json(200, &body);
    let both = |window: &Value| json(usage(window.clone(), window.clone()));
    let long = json!({ "rate_limit": {}, "filler": "x".repeat(300_000) });
    let mut failures = vec![
        (
            "a page",
            Reply::raw(200, "<html><body>Just a moment...</body></html>")
                .header("content-type", "text/html"),
        ),
        ("nothing", Reply::raw(200, "")),
        (
            "half of it",
            Reply::raw(
                200,
                &br#"{"plan_type": "plus", "rate_limit": {"primary_window"#[..],
            ),
        ),
        ("a list", json(json!([]))),
        ("no field", json(json!({}))),
        ("a null", json(json!({ "rate_limit": null }))),
        (
            "no windows",
            json(json!({ "plan_type": "plus", "rate_limit": {} })),
        ),
        ("windows without fields", both(&json!({}))),
        (
            "windows with nulls",
            both(&json!({ "used_percent": null, "limit_window_seconds": 18_000 })),
        ),
        (
            "use below zero",
            both(&json!({ "used_percent": -1, "limit_window_seconds": 18_000 })),
        ),
        (
            "use in words",
            both(&json!({ "used_percent": "40", "limit_window_seconds": 18_000 })),
        ),
        ("much too long", json(long)),
        ("401", Reply::error(401, "invalid_request_error", "no")),
        ("403", Reply::raw(403, "<html>no</html>")),
        ("429", Reply::raw(429, "").retry_after("3600")),
        ("500", Reply::server_error(500)),
        (
            "a redirect",
            Reply::raw(302, "").header("location", "http://127.0.0.1:1/"),
        ),
        (
            "a connection cut",
            Reply::close_before_head().by_stream_reset(Reason::INTERNAL_ERROR),
        ),
        (
            "an answer cut",
            json(usage(window(1.0, 18_000), Value::Null))
                .close_after(20)
                .by_stream_reset(Reason::INTERNAL_ERROR),
        ),
        ("no answer", Reply::ok().hold_head(&Gate::new())),
    ];
    if Protocol::current() == Protocol::Http1 {
        failures.push(("no HTTP", Reply::garbage("what?")));
    }
    failures
}

over_both!(a_usage_api_that_fails_from_the_start_fails_no_request);
async fn a_usage_api_that_fails_from_the_start_fails_no_request() {
    let cases = failures();
    let rig = Rig::new().await;
    for (place, (_, reply)) in cases.iter().enumerate() {
        let tag = format!("c{place}");
        rig.oauth(&tag);
        rig.account(&tag).always_for_poll(reply.clone());
    }
    let (mut rig, each) = separate(rig, cases.len()).await;
    let mut wrong = Vec::new();
    for ((name, _), (tag, client, _)) in cases.iter().zip(&each) {
        check_served(client).await;
        let found = rig.credential(tag).await;
        assert_eq!(
            (&found["state"], &found["usable"]),
            (&json!("ready"), &json!(true)),
            "{name}"
        );
        if found["poll_failure"].is_null() || !found["polled_at"].is_null() {
            wrong.push(*name);
        }
    }
    assert!(wrong.is_empty(), "counted as told: {wrong:?}");
    rig.stop().await;
}

over_both!(a_usage_api_that_fails_later_makes_the_known_usage_stale);
async fn a_usage_api_that_fails_later_makes_the_known_usage_stale() {
    let cases = failures();
    let rig = Rig::new().await;
    for (place, (_, reply)) in cases.iter().enumerate() {
        let tag = format!("c{place}");
        rig.oauth(&tag);
        let told = usage(window(40.5, 18_000), window(30.0, 604_800));
        rig.account(&tag)
            .then_for_poll(Reply::json(200, &told))
            .always_for_poll(reply.clone());
        // The headers report nothing.
        rig.account(&tag)
            .set_standing(Standing::new("plus").header_form(HeaderForm::Absent));
    }
    let (mut rig, each) = separate(rig, cases.len()).await;
    let mut wrong = Vec::new();
    for ((name, _), (tag, client, account)) in cases.iter().zip(&each) {
        let first = polled_at(&rig.credential(tag).await);
        check_served(client).await;
        account.wait_for_polls(2).await;
        let is_so = |found: &Value| !found["poll_failure"].is_null() || polled_at(found) != first;
        let found = rig.wait_for_credential(tag, WAIT_MAX, name, is_so).await;
        assert_eq!(
            (used(&found), &found["state"]),
            ((40.5, 30.0), &json!("ready")),
            "{name}"
        );
        if polled_at(&found) != first {
            wrong.push(*name);
        }
        check_served(client).await;
    }
    assert!(wrong.is_empty(), "counted as told: {wrong:?}");
    rig.stop().await;
}

over_both!(a_poll_that_got_429_is_repeated_after_its_retry_after);
async fn a_poll_that_got_429_is_repeated_after_its_retry_after() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    rig.account("a")
        .then_for_poll(Reply::raw(429, "").retry_after("1"));
    let begun = Instant::now();
    let client = rig.start_polled(config).await.token("token-alice");
    assert_eq!(rig.credential("a").await["poll_failure"], "answered 429");
    while rig.account("a").poll_count() < 2 {
        check_served(&client).await;
        assert!(begun.elapsed() < WAIT_MAX, "it is not asked again");
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let is_so = |found: &Value| found["poll_failure"].is_null();
    rig.wait_for_credential("a", WAIT_MAX, "told", is_so).await;
    rig.stop().await;
}

over_both!(a_usage_api_that_hangs_delays_neither_a_request_nor_the_shutdown);
async fn a_usage_api_that_hangs_delays_neither_a_request_nor_the_shutdown() {
    let mut rig = Rig::new().await;
    let mut config = config(&rig, &["a"]);
    config["limits"] = json!({ "poll_timeout": "1h" });
    let never = Gate::new();
    rig.account("a")
        .always_for_poll(Reply::ok().hold_head(&never));
    let client = rig.start(config).await.token("token-alice");
    never.wait_until_reached().await;
    for _ in 0..3 {
        check_served(&client).await;
    }
    let found = rig.credential("a").await;
    assert_eq!(
        (&found["state"], &found["polled_at"]),
        (&json!("ready"), &Value::Null)
    );
    timeout(WAIT_MAX, rig.stop()).await.expect("it ends");
    assert_eq!(rig.account("a").poll_count(), 1);
}
