//! External credentials: another gateway as upstream, for which users, and what is known about its
//! usage.

mod failures;
mod requests;
mod usage;
mod users;

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing, WAIT_MAX};
use tollgate_tests::{Answer, Client, Protocol, Rig, unix_in, user, wait_for_rows};

/// The token that this gateway presents to the other one.
const TOKEN: &str = "token-front";

fn external(tag: &str, url: &str) -> Value {
    json!({ "type": "external", "tag": tag, "url": url, "token": TOKEN })
}

/// Returns a pool of these members in that order.
fn pool(strategy: &str, members: &[&str]) -> Value {
    json!({ "tag": "pool", "type": "balancer", "strategy": strategy, "credentials": members })
}

/// `alice` may use external credentials, `bob` may not; both use the pool.
fn users() -> [Value; 2] {
    let user = |name: &str| user(name, "pool");
    let mut alice = user("alice");
    alice["allow_external_usage"] = json!(true);
    [alice, user("bob")]
}

/// Starts the other gateway, with accounts `r0`, `r1`, … of these standings in a pool, and this
/// gateway's user. Returns its address once it knows the standings.
async fn remote(standings: &[Standing]) -> (Rig, String) {
    let rig = Rig::new().await;
    let tags: Vec<String> = (0..standings.len())
        .map(|place| format!("r{place}"))
        .collect();
    let mut credentials: Vec<Value> = tags.iter().map(|tag| rig.oauth(tag)).collect();
    for (tag, standing) in tags.iter().zip(standings) {
        rig.account(tag).set_standing(standing.clone());
    }
    credentials.push(json!({ "tag": "pool", "type": "balancer", "credentials": tags }));
    let front = json!({ "name": "front", "token": TOKEN, "credential": "pool" });
    let config = rig.config(json!({ "credentials": credentials, "users": [front] }));
    started(rig, config).await
}

/// Starts the gateway of `rig`, which speaks the protocol of the running scenario, and waits for
/// its first polls. Returns its address.
async fn started(mut rig: Rig, mut config: Value) -> (Rig, String) {
    let protocol = Protocol::current();
    config["services"][0]["tls"] = protocol.service_tls();
    let address = rig.start_polled(config).await.address();
    (rig, format!("{}://{address}", protocol.scheme()))
}

/// Waits until the status reports this weekly usage and this weight.
async fn wait_for_status(client: &Client, weekly: f64, weight: f64) {
    let begun = Instant::now();
    loop {
        let status = client.get("/ocm/v1/status").await.json();
        let near = |name: &str, expected: f64| {
            status[name]
                .as_f64()
                .is_some_and(|n| (n - expected).abs() < 1e-6)
        };
        if near("weekly_utilization", weekly) && near("plan_weight", weight) {
            return;
        }
        assert!(
            begun.elapsed() < WAIT_MAX,
            "{status}, expected {weekly} and {weight}"
        );
        // The other gateway polls: its only signal is what it knows afterwards.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A gateway with the account `a` and the other gateway `x` in a pool in that order of preference.
async fn front(url: &str, strategy: &str, order: [&str; 2]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let credentials = json!([rig.oauth("a"), external("x", url), pool(strategy, &order)]);
    let config = rig.config(json!({ "credentials": credentials, "users": users() }));
    let client = rig.start(config).await;
    (rig, client)
}

/// A gateway whose only credential is the other one, and alice's client.
async fn alone(external: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.config(
        json!({ "credentials": [external, pool("least_used", &["x"])], "users": [users()[0]] }),
    );
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// Returns the attempts of the last of `count` requests.
async fn last_attempts(rig: &Rig, count: usize) -> Vec<(String, String)> {
    wait_for_rows(&rig.ledger(), count).await[count - 1].attempts()
}

fn limited(seconds: u64) -> Reply {
    Reply::usage_limit_reached()
        .without_rate_limits()
        .resets_in_seconds(seconds)
}

/// Checks that the response says that everything is used up for about `seconds`.
#[track_caller]
fn check_exhausted(answer: &Answer, seconds: u64) {
    assert_eq!(
        answer.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        answer.text()
    );
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (
            &json!("usage_limit_reached"),
            &json!("credentials_exhausted")
        )
    );
    let near = error["resets_at"]
        .as_u64()
        .is_some_and(|at| at.abs_diff(unix_in(seconds)) <= 4);
    assert!(near, "{error}, expected in {seconds} s");
}
