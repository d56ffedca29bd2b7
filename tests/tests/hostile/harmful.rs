//! Hostile guests: each fails its own call and nothing else. None ends the process, keeps an
//! instance or memory beyond its call, or delays other requests.

mod calls;
mod loading;

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::{Client, OWN, Rig, turn};

const MEMORY: u64 = 4 * 1024 * 1024;

/// Starts a team whose policy of `kind` is this component, and a second service with shipped
/// policies only. The limits keep the circuit breaker closed, so that every request calls the
/// guest.
async fn start(rig: &mut Rig, kind: &str, component: &[u8]) -> Result<(Client, Client), String> {
    let pool = if kind == "balancer" {
        json!({ "strategy": OWN })
    } else {
        json!({})
    };
    let mut config = rig.team(&["a", "b"], pool);
    match kind {
        "rewriter" => config["services"][0]["rewriters"] = json!([OWN]),
        "pricer" => config["services"][0]["pricer"] = json!(OWN),
        _ => {}
    }
    config["services"][0]["tag"] = json!("hostile");
    let mut second = rig.team(&["c", "d"], json!({}))["services"][0].clone();
    second["tag"] = json!("beside");
    config["services"]
        .as_array_mut()
        .expect("a list")
        .push(second);
    let path = rig.write("own.wasm", component);
    config["policies"] = json!([{ "tag": OWN, "kind": kind, "path": path, "memory": MEMORY }]);
    config["limits"] = json!({ "policy_faults": 1000 });
    let client = rig
        .try_start(config)
        .await
        .map_err(|error| error.to_string())?
        .token("token-alice");
    let beside = Client::new(rig.listening()[1]).token("token-alice");
    Ok((client, beside))
}

/// Held during a measurement: guests of other tests would distort it.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Returns the duration of the slowest of ten turns on the second service.
async fn slowest(beside: &Client) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in 0..10 {
        let begun = Instant::now();
        let answer = beside.turn(&turn(&format!("beside {number}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}
