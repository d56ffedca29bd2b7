//! The admin API: who may do what, and what its responses contain.

mod access;
mod commands;
mod health;
mod reports;

use serde_json::{Value, json};
use tollgate_tests::{Answer, Client, Rig};

const ADMIN: &str = "canary-admin-token";

const ALICE: &str = "canary-token-of-alice";

const HEADER: &str = "canary-header-value";

/// A team on a pool of `canary`, a policy `mine`, and an admin listener.
fn config(rig: &Rig, admin: Value) -> Value {
    let mut config = rig.team(&["canary"], json!({}));
    let service = &mut config["services"][0];
    service["users"][0]["token"] = json!(ALICE);
    service["headers"] = json!({ "x-own": HEADER });
    service["pricer"] = json!("mine");
    config["policies"] =
        json!([{ "tag": "mine", "kind": "pricer", "path": "builtin:openai-pricing" }]);
    let mut whole = json!({ "listen_port": 0 });
    whole
        .as_object_mut()
        .expect("an object")
        .extend(admin.as_object().expect("an object").clone());
    config["admin"] = whole;
    config
}

/// A running gateway, a client of its service, and one of its admin listener.
async fn running(admin: Value) -> (Rig, Client, Client) {
    let mut rig = Rig::new().await;
    let config = config(&rig, admin);
    let client = rig.start(config).await.token(ALICE);
    let admin = rig.admin();
    (rig, client, admin)
}

#[track_caller]
fn check(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text());
    let kind = answer.header("content-type").unwrap_or_default();
    let json = kind == "application/json" && answer.json().is_object();
    assert!(json || kind.starts_with("text/plain"), "{what}: {kind}");
    if status >= 400 && status != 503 {
        assert!(
            answer.json()["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{what}: {}",
            answer.text()
        );
    }
}

const LOOKS: [&str; 5] = [
    "/metrics",
    "/status",
    "/api/status",
    "/api/policies",
    "/api/policies/mine/disagreements",
];

const CHANGES: [&str; 2] = ["/api/policies/mine/reload", "/api/policies/mine/rollback"];
