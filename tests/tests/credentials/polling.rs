//! Polling: when upstream is asked for a credential's usage, what its response changes, and that a
//! failing usage API only makes the known figures stale.

mod failures;
mod intervals;
mod responses;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::Account;
use tollgate_tests::{Client, Rig, turn, unix_in, user};

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
        users.push(user(tag, &pool));
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

/// Returns when the last poll succeeded, in Unix milliseconds.
fn polled_at(credential: &Value) -> u64 {
    credential["polled_at"]
        .as_u64()
        .unwrap_or_else(|| panic!("it was not polled: {credential:#}"))
}
