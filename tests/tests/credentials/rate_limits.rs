//! Rate limits: how headers are read, how long a refusal lasts, and which credential is used
//! instead.

mod auth_files;
mod bodies;
mod failover;
mod headers;
mod refusals;
mod waiting;

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::{Account, Reply};
use tollgate_tests::{Answer, Client, Rig, unix_in, user};

/// A gateway with `count` accounts `c0`, `c1`, …, each with a pool and a user.
async fn separate(count: usize) -> (Rig, Vec<(Client, Account)>) {
    let mut rig = Rig::new().await;
    let (mut credentials, mut users) = (Vec::new(), Vec::new());
    for place in 0..count {
        let (tag, pool) = (format!("c{place}"), format!("pool{place}"));
        credentials.push(rig.oauth(&tag));
        credentials.push(json!({ "tag": pool, "type": "balancer", "credentials": [tag] }));
        users.push(user(&tag, &pool));
    }
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    let tags = (0..count).map(|place| format!("c{place}"));
    let each = tags
        .map(|tag| (client.token(&format!("token-{tag}")), rig.account(&tag)))
        .collect();
    (rig, each)
}

/// A running team on a pool in that order, and alice's client.
async fn pool(tags: &[&str]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.team(tags, json!({ "strategy": "fallback" }));
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// A refusal without rate-limit headers.
fn refusal() -> Reply {
    Reply::usage_limit_reached().without_rate_limits()
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// Checks that all three places of the response say that everything is used up for about `seconds`.
#[track_caller]
fn check_exhausted(name: &str, answer: &Answer, seconds: u64) {
    assert_eq!(
        answer.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{name}: {}",
        answer.text()
    );
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "usage_limit_reached", "{name}: {error}");
    assert_eq!(error["code"], "credentials_exhausted", "{name}: {error}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{name}: {error}"
    );
    let near = |found: Option<u64>, expected: u64| {
        found.is_some_and(|found| found.abs_diff(expected) <= 4)
    };
    assert!(
        near(error["resets_in_seconds"].as_u64(), seconds),
        "{name}: {error}, expected {seconds} s"
    );
    assert!(
        near(error["resets_at"].as_u64(), unix_in(seconds)),
        "{name}: {error}, expected in {seconds} s"
    );
    let retry_after = answer
        .header("retry-after")
        .and_then(|value| value.parse().ok());
    assert!(
        near(retry_after, seconds),
        "{name}: Retry-After {retry_after:?}, expected {seconds} s"
    );
}

const REPLAY_BYTES: usize = 1000;

/// As [`pool`], with room to buffer bodies of this length.
async fn pool_with_little_room() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    config["limits"] = json!({ "replay_bytes": REPLAY_BYTES });
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// Returns a turn with a text of `bytes`.
fn body_of(bytes: usize) -> String {
    let empty = r#"{"model":"gpt-5.4","stream":true,"input":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"input":"{}"}}"#,
        "x".repeat(bytes - empty)
    )
}
