//! Requests: the checks at the door, what goes to upstream and what comes back.

mod bodies;
mod clients;
mod credentials;
mod headers;
mod paths;
mod status;

use serde_json::{Value, json};
use tollgate_tests::upstream::SeenRequest;
use tollgate_tests::{Answer, Client, Rig};

const NOT_UNDER_V1: &str = "path must start with /v1/";

/// A gateway with one account and no users.
async fn open_rig() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start(config).await;
    (rig, client)
}

/// A gateway with a pool of one account, and alice's client.
async fn team_rig() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a"], json!({}));
    let client = rig.start(config).await;
    (rig, client)
}

/// The answer is an error of OpenAI's form with exactly these fields, and this text in its message.
#[track_caller]
fn check_error(answer: &Answer, status: u16, kind: &str, code: Option<&str>, message: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body.as_object().map(|body| body.len()), Some(1), "{body}");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert_eq!(
        body["error"].get("code"),
        code.map(Value::from).as_ref(),
        "{body}"
    );
    let found = body["error"]["message"].as_str().expect("a message");
    assert!(found.contains(message), "{found:?} has no {message:?}");
}

/// Not one field of these names came through.
#[track_caller]
fn check_absent(headers: &http::HeaderMap, names: &[&str]) {
    let found: Vec<&&str> = names
        .iter()
        .filter(|name| headers.contains_key(**name))
        .collect();
    assert!(found.is_empty(), "{found:?} came through: {headers:?}");
}

#[track_caller]
fn only(seen: Vec<SeenRequest>) -> SeenRequest {
    let [one] =
        <[SeenRequest; 1]>::try_from(seen).unwrap_or_else(|seen| panic!("{} requests", seen.len()));
    one
}
