//! Records of policies' calls: their content, their bounds, and the absence of secrets.

mod calls;
mod places;
mod shadows;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Client, Rig, turn};

const ALICE: &str = "canary-token-of-alice";

const HEADER: &str = "canary-configured-header";

/// A team of two accounts whose balancer, rewriter and pricer are recorded, in a file each.
fn config(rig: &Rig) -> Value {
    let mut config = rig.team(&["canary", "other"], json!({ "strategy": "chooses" }));
    let service = &mut config["services"][0];
    service["users"][0]["token"] = json!(ALICE);
    service["pricer"] = json!("prices");
    service["rewriters"] = json!(["writes"]);
    let own = |tag: &str, kind: &str, name: &str, settings: Value| {
        json!({
            "tag": tag, "kind": kind, "path": format!("builtin:{name}"), "config": settings,
            "record": rig.path(&format!("{tag}.jsonl")),
        })
    };
    config["policies"] = json!([
        own("chooses", "balancer", "round-robin", json!({})),
        own(
            "writes",
            "rewriter",
            "standard-headers",
            json!({ "set": { "x-own": [HEADER] } })
        ),
        own("prices", "pricer", "openai-pricing", json!({})),
    ]);
    config
}

async fn turns(client: &Client, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for session in 0..count {
        let answer = client.turn(&turn(&format!("session {session}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        ids.push(answer.request_id());
    }
    ids
}
