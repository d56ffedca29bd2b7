//! Polling: when upstream is asked for a credential's usage, what its response changes, and that a
//! failing usage API only makes the known figures stale.

use std::fs;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;
use tollgate_tests::upstream::{Account, Gate, HeaderForm, Reply, SeenRequest, Standing, WAIT_MAX};
use tollgate_tests::{Client, Rig, oauth_file, turn, unix_in, user};

/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro"}}` in base64url: the claims of an id
/// token.
const PRO: &str = "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";

/// The poll interval of these tests' pools, unless a test sets another.
const INTERVAL: Duration = Duration::from_millis(100);

/// A pool with members in that order, polled every [`INTERVAL`], and alice's client. The first
/// polls have ended.
async fn pool(tags: &[&str]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = config(&rig, tags);
    let client = rig.start_polled(config).await.token("token-alice");
    (rig, client)
}

fn config(rig: &Rig, tags: &[&str]) -> Value {
    rig.team(
        tags,
        json!({ "strategy": "fallback", "poll_interval": "100ms" }),
    )
}

/// A gateway with `count` accounts `c0`, `c1`, …, each with a pool and a user.
async fn separate(mut rig: Rig, count: usize) -> (Rig, Vec<(String, Client, Account)>) {
    let (mut credentials, mut users) = (Vec::new(), Vec::new());
    let tags: Vec<String> = (0..count).map(|place| format!("c{place}")).collect();
    for tag in &tags {
        let pool = format!("pool-{tag}");
        credentials.push(rig.oauth(tag));
        credentials.push(json!({ "tag": pool, "type": "balancer", "credentials": [tag], "poll_interval": "100ms" }));
        users.push(user(&tag, &pool));
    }
    let mut config = rig.config(json!({ "credentials": credentials, "users": users }));
    config["limits"] = json!({ "poll_timeout": "200ms" });
    let client = rig.start_polled(config).await;
    let each = tags.into_iter().map(|tag| {
        let (client, account) = (client.token(&format!("token-{tag}")), rig.account(&tag));
        (tag, client, account)
    });
    let each = each.collect();
    (rig, each)
}

/// Returns a response of `wham/usage` with these windows in its slots.
fn usage(primary: Value, secondary: Value) -> Value {
    json!({ "plan_type": "plus", "rate_limit": { "primary_window": primary, "secondary_window": secondary } })
}

fn window(used_percent: f64, seconds: u64) -> Value {
    json!({ "used_percent": used_percent, "limit_window_seconds": seconds, "reset_at": unix_in(seconds) })
}

async fn check_served(client: &Client) {
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// Returns the used shares of both windows, in percent: 5-hour and weekly. An unknown one counts as
/// unused.
fn used(credential: &Value) -> (f64, f64) {
    let used = |window: &str| credential[window]["used"].as_f64().unwrap_or(0.0);
    (used("five_hour"), used("weekly"))
}

async fn wait_for_used(rig: &Rig, tag: &str, expected: (f64, f64)) -> Value {
    rig.wait_for_credential(tag, WAIT_MAX, &format!("{expected:?} used"), |found| {
        used(found) == expected
    })
    .await
}

/// Returns when the last poll succeeded, in Unix milliseconds.
fn polled_at(credential: &Value) -> u64 {
    credential["polled_at"]
        .as_u64()
        .unwrap_or_else(|| panic!("it was not polled: {credential:#}"))
}

// When

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

// What a response changes

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_replaces_known_usage_even_with_a_lower_one() {
    let (mut rig, client) = pool(&["a"]).await;
    let told = |five_hour: f64, weekly: f64| {
        Standing::new("plus")
            .five_hour_used(five_hour)
            .weekly_used(weekly)
    };
    rig.account("a").set_standing(told(80.0, 70.0));
    check_served(&client).await;
    assert_eq!(used(&rig.credential("a").await), (80.0, 70.0), "by headers");
    rig.account("a")
        .set_standing(told(10.0, 5.5).header_form(HeaderForm::Absent));
    check_served(&client).await;
    wait_for_used(&rig, "a", (10.0, 5.5)).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_does_not_undo_a_response_that_overtook_it() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    let gate = Gate::new();
    let old = usage(window(10.0, 18_000), window(20.0, 604_800));
    rig.account("a")
        .then_for_poll(Reply::json(200, &old).hold_head(&gate));
    let client = rig.start(config).await.token("token-alice");
    gate.wait_until_reached().await;
    rig.account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0).weekly_used(60.0));
    // Only its headers report the usage: further polls report nothing.
    rig.account("a").always_for_poll(Reply::server_error(500));
    check_served(&client).await;
    gate.open();
    rig.wait_until_polled(&["a"]).await;
    assert_eq!(used(&rig.credential("a").await), (50.0, 60.0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_a_poll_reports_as_used_up_is_not_chosen() {
    let cases = [
        ("5-hour", (100.0, 0.0)),
        ("weekly", (0.0, 100.0)),
        ("more than there is", (250.0, 0.0)),
    ];
    for (name, (five_hour, weekly)) in cases {
        let told = usage(window(five_hour, 18_000), window(weekly, 604_800));
        let mut rig = Rig::new().await;
        let config = config(&rig, &["a", "b"]);
        rig.account("a").always_for_poll(Reply::json(200, &told));
        let client = rig.start_polled(config).await.token("token-alice");
        let found = rig.credential("a").await;
        assert_eq!(
            (used(&found), &found["state"]),
            ((five_hour.min(100.0), weekly), &json!("paused")),
            "{name}"
        );
        check_served(&client).await;
        assert_eq!(
            (rig.account("a").turn_count(), rig.account("b").turn_count()),
            (0, 1),
            "{name}"
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_distinguished_by_their_length_in_either_slot() {
    let (five_hour, weekly) = (|| window(40.5, 18_000), || window(30.0, 604_800));
    let cases = [
        (
            "the usual order",
            usage(five_hour(), weekly()),
            (40.5, 30.0),
        ),
        (
            "the other way round",
            usage(weekly(), five_hour()),
            (40.5, 30.0),
        ),
        (
            "about as long",
            usage(window(12.0, 604_740), window(34.0, 17_940)),
            (34.0, 12.0),
        ),
        (
            "a weekly window alone",
            usage(weekly(), Value::Null),
            (0.0, 30.0),
        ),
        (
            "another window beside it",
            usage(window(90.0, 2_592_000), five_hour()),
            (40.5, 0.0),
        ),
    ];
    let rig = Rig::new().await;
    for (place, (_, told, _)) in cases.iter().enumerate() {
        rig.oauth(&format!("c{place}"));
        rig.account(&format!("c{place}"))
            .always_for_poll(Reply::json(200, told));
    }
    let (mut rig, each) = separate(rig, cases.len()).await;
    for ((name, _, expected), (tag, ..)) in cases.into_iter().zip(each) {
        let found = rig.credential(&tag).await;
        assert_eq!(used(&found), expected, "{name}");
        for (window, used) in [("five_hour", expected.0), ("weekly", expected.1)] {
            assert_eq!(
                found[window]["resets_at"].is_null(),
                used == 0.0,
                "{name}: {found:#}"
            );
        }
    }
    rig.stop().await;
}

/// An auth.json of the account `tag` whose id token names the plan `pro`.
fn pro_file(tag: &str) -> Value {
    let mut file = oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{PRO}.y"));
    file
}

async fn plan_weight(client: &Client) -> Option<f64> {
    client.get("/ocm/v1/status").await.json()["plan_weight"].as_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_the_tokens_counts_until_a_poll_reports_another_and_the_weight_follows() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    rig.write("a.json", pro_file("a").to_string());
    let gate = Gate::new();
    rig.account("a").then_for_poll(Reply::ok().hold_head(&gate));
    let client = rig.start(config).await.token("token-alice");
    gate.wait_until_reached().await;
    assert_eq!(
        (
            rig.credential("a").await["plan"].as_str(),
            plan_weight(&client).await
        ),
        (Some("pro"), Some(10.0))
    );
    gate.open();
    for (plan, weight) in [("plus", 1.0), ("pro", 10.0)] {
        rig.account("a").set_standing(Standing::new(plan));
        check_served(&client).await;
        rig.wait_for_credential("a", WAIT_MAX, plan, |found| found["plan"] == plan)
            .await;
        assert_eq!(plan_weight(&client).await, Some(weight), "{plan}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_about_another_account_than_the_files_is_ignored() {
    let mut rig = Rig::new().await;
    let config = config(&rig, &["a"]);
    let gate = Gate::new();
    let about_a = usage(window(90.0, 18_000), window(80.0, 604_800));
    rig.account("a")
        .then_for_poll(Reply::json(200, &about_a).hold_head(&gate));
    rig.account("other")
        .set_standing(Standing::new("plus").five_hour_used(10.0).weekly_used(5.0));
    rig.start(config).await;
    gate.wait_until_reached().await;
    let known = rig.credential("a").await["refreshed_at"].clone();
    fs::write(
        rig.credential_file("a"),
        oauth_file("access-other", "account-other").to_string(),
    )
    .expect("it is written");
    let is_so = |found: &Value| found["refreshed_at"] != known;
    rig.wait_for_credential("a", WAIT_MAX, "another file", is_so)
        .await;
    gate.open();
    rig.account("other").wait_for_polls(1).await;
    wait_for_used(&rig, "a", (10.0, 5.0)).await;
    rig.stop().await;
}

// What a failure changes

/// Responses without a credential's usage.
fn failures() -> Vec<(&'static str, Reply)> {
    let json = |body: Value| Reply::json(200, &body);
    let both = |window: &Value| json(usage(window.clone(), window.clone()));
    let long = json!({ "rate_limit": {}, "filler": "x".repeat(300_000) });
    vec![
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
        ("a connection cut", Reply::close_before_head()),
        (
            "an answer cut",
            json(usage(window(1.0, 18_000), Value::Null)).close_after(20),
        ),
        ("no HTTP", Reply::garbage("what?")),
        ("no answer", Reply::ok().hold_head(&Gate::new())),
    ]
}

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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

#[tokio::test(flavor = "multi_thread")]
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
