//! Shadows: policies that are compared with the one in use.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tollgate_tests::upstream::WAIT_MAX;
use tollgate_tests::{Client, Rig, component, wait_for_rows};

use super::turns;

/// A gateway whose pricer has a shadow with the same settings.
async fn shadowed(rig: &mut Rig, policy: Value) -> Client {
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["pricer"] = json!("mine");
    config["policies"] = json!([policy]);
    rig.start(config).await.token("token-alice")
}

fn policy(path: &Path, shadow: &Path) -> Value {
    json!({ "tag": "mine", "kind": "pricer", "path": path, "shadow": shadow, "config": {} })
}

async fn wait_for_compared(rig: &Rig, count: u64) -> Value {
    let is_so = |policy: &Value| {
        let count_of = |name: &str| policy["shadow"][name].as_u64().unwrap_or_default();
        count_of("compared") + count_of("left_out") >= count
    };
    rig.wait_for_policy("mine", "the shadow was asked", is_so)
        .await["shadow"]
        .clone()
}

async fn disagreements(rig: &Rig) -> Vec<Value> {
    let told = tollgate_tests::ask_socket(
        &rig.socket(),
        Method::GET,
        "/api/policies/mine/disagreements",
    )
    .await;
    told.json()["disagreements"]
        .as_array()
        .expect("a list")
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_of_the_same_component_never_disagrees() {
    let mut rig = Rig::new().await;
    let pricing = component("openai-pricing");
    let client = shadowed(&mut rig, policy(&pricing, &pricing)).await;
    turns(&client, 20).await;
    let found = wait_for_compared(&rig, 20).await;
    assert_eq!(
        (&found["compared"], &found["disagreed"], &found["left_out"]),
        (&json!(20), &json!(0), &json!(0))
    );
    assert_eq!(found["digest"], rig.policy("mine").await["digest"]);
    assert!(disagreements(&rig).await.is_empty());
    rig.stop().await;
}

/// A team whose pricer and its shadow fail in this way.
async fn of_faults(rig: &mut Rig, fault: &str) -> Client {
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["pricer"] = json!("mine");
    let mut policy = policy(&component("faulty-pricer"), &component("faulty-pricer"));
    policy["config"] = json!({ "fault": fault });
    policy["timeout"] = json!("5ms");
    config["policies"] = json!([policy]);
    rig.start(config).await.token("token-alice")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_fails_touches_no_request() {
    for fault in ["panic", "loop", "absurd"] {
        let mut rig = Rig::new().await;
        // The shadow has the same settings as the current component, which therefore fails, too.
        let client = of_faults(&mut rig, fault).await;
        turns(&client, 10).await;
        let found = wait_for_compared(&rig, 3).await;
        assert_eq!(
            rig.policy("mine").await["state"],
            "quarantined",
            "{fault}: {found:#}"
        );
        let rows = wait_for_rows(&rig.ledger(), 10).await;
        assert!(
            rows.iter()
                .all(|row| row.text("end") == Some("complete")
                    && row.number("cost_nanousd").is_none())
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_fail_in_the_same_way_agree() {
    let mut rig = Rig::new().await;
    let client = of_faults(&mut rig, "unknown").await;
    turns(&client, 3).await;
    let found = wait_for_compared(&rig, 3).await;
    assert_eq!(
        (&found["compared"], &found["disagreed"]),
        (&json!(3), &json!(0)),
        "{found:#}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disagreements_of_a_shadow_are_counted_and_the_last_hundred_kept() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "mine" }));
    config["policies"] = json!([{
        "tag": "mine", "kind": "balancer", "path": component("round-robin"), "shadow": component("fallback"),
    }]);
    let client = rig.start(config).await.token("token-alice");
    let ids = turns(&client, 240).await;
    let found = wait_for_compared(&rig, 240).await;
    assert_eq!(
        (&found["compared"], &found["disagreed"], &found["name"]),
        (&json!(240), &json!(240), &json!("fallback"))
    );
    let kept = disagreements(&rig).await;
    assert_eq!(kept.len(), 100);
    for disagreement in &kept {
        let moves = |said: &Value| said["move_home"].clone();
        assert_eq!(
            (
                moves(&disagreement["call"]["said"]),
                moves(&disagreement["shadow_said"])
            ),
            (json!(true), json!(false))
        );
        assert_eq!(
            disagreement["call"]["members"][0][0], "a",
            "its arguments are kept"
        );
    }
    let last = kept.last().expect("one")["call"]["request"]["request_id"]
        .as_str()
        .expect("an id");
    assert_eq!(last, ids[239], "the last are kept");
    let metrics = rig.metrics().await;
    assert_eq!(
        metrics.value(
            "tollgate_policy_shadow_disagreements_total",
            &[("policy", "mine")]
        ),
        240.0
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_shadow_is_reloaded() {
    let mut rig = Rig::new().await;
    let shadow = rig.write(
        "shadow.wasm",
        fs::read(component("fallback")).expect("it is built"),
    );
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "mine" }));
    config["policies"] = json!([{ "tag": "mine", "kind": "balancer", "path": component("round-robin"), "shadow": shadow }]);
    let client = rig.start(config).await.token("token-alice");
    turns(&client, 4).await;
    assert_eq!(wait_for_compared(&rig, 4).await["disagreed"], 4);
    tollgate_tests::replace_file(
        &rig.path("shadow.wasm"),
        fs::read(component("round-robin")).expect("it is built"),
    );
    let is_new = |policy: &Value| policy["shadow"]["name"] == "round-robin";
    let found = rig.wait_for_policy("mine", "the new shadow", is_new).await;
    assert_eq!(
        found["shadow"]["compared"], 0,
        "it is counted from its own beginning"
    );
    assert_eq!(found["generation"], 1, "the same generation serves");
    turns(&client, 4).await;
    assert_eq!(wait_for_compared(&rig, 4).await["disagreed"], 0);
    rig.stop().await;
}

/// A shadow that takes a while to read and to hash. It is not a component and could be half
/// written, so it is read several times.
const LARGE_SHADOW_BYTES: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_reported_while_a_large_shadow_is_read() {
    let rig = Rig::new().await;
    let shadow = rig.write(
        "shadow.wasm",
        fs::read(component("fallback")).expect("it is built"),
    );
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "mine" }));
    config["policies"] = json!([{ "tag": "mine", "kind": "balancer", "path": component("round-robin"), "shadow": shadow }]);
    let program = rig.spawn(&config).await;
    let large = rig.path("large.wasm");
    fs::File::create(&large)
        .and_then(|file| file.set_len(LARGE_SHADOW_BYTES))
        .expect("a file");
    let started = Instant::now();
    fs::rename(large, rig.path("shadow.wasm")).expect("it can be renamed");
    let mut longest = Duration::ZERO;
    while !program.log().contains("shadow reload failed") {
        assert!(started.elapsed() < WAIT_MAX, "the shadow is rejected");
        let asked = Instant::now();
        rig.policies().await;
        longest = longest.max(asked.elapsed());
    }
    let whole = started.elapsed();
    assert!(
        longest < whole / 4,
        "a report took {longest:?} of the {whole:?} that reading the shadow took"
    );
    program.kill();
}
