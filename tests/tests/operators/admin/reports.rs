//! What reports contain.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::{ask_socket, turn};

use super::{ADMIN, ALICE, CHANGES, HEADER, LOOKS, check, running};

const ACCESS: &str = "access-canary";

/// Checks what a policy reports of its component and its calls.
fn check_figures(found: &Value) {
    let digest = found["digest"].as_str().expect("a digest");
    assert!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{digest}"
    );
    assert!(
        found["version"]
            .as_str()
            .is_some_and(|version| version.contains('.')),
        "{found:#}"
    );
    let micros = |name: &str| found["call_us"][name].as_f64().expect("a time");
    assert!(
        0.0 < micros("p50") && micros("p50") <= micros("p99"),
        "{found:#}"
    );
    assert!(micros("max") > 0.0, "{found:#}");
    for count in ["instances", "memory_bytes"] {
        assert!(
            found[count].as_u64().is_some_and(|count| count > 0),
            "{count}: {found:#}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_policies_are_reported_with_all_that_an_operator_needs() {
    let (mut rig, client, admin) = running(json!({})).await;
    for _ in 0..3 {
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    }
    let status = admin.get("/api/status").await.json();
    assert_eq!(
        status["services"][0]["credentials"][0]["credential"],
        "canary"
    );
    let mine = |all: &Value| {
        let all = all["policies"].as_array().expect("a list");
        all.iter()
            .find(|policy| policy["tag"] == "mine")
            .expect("mine")
            .clone()
    };
    let found = mine(&admin.get("/api/policies").await.json());
    for (field, value) in [
        ("kind", json!("pricer")),
        ("source", json!("builtin:openai-pricing")),
        ("name", json!("openai-pricing")),
        ("generation", json!(1)),
        ("generation_before", Value::Null),
        ("state", json!("serving")),
        ("loading", Value::Null),
        ("calls", json!(3)),
        ("faults", json!({})),
        ("refusals", json!(0)),
        ("last_reload", Value::Null),
        ("shadow", Value::Null),
    ] {
        assert_eq!(found[field], value, "{field}: {found:#}");
    }
    check_figures(&found);
    check(
        &ask_socket(&rig.socket(), Method::POST, CHANGES[0]).await,
        200,
        "a reload",
    );
    let last = mine(&admin.get("/api/policies").await.json())["last_reload"].clone();
    assert_eq!(
        (&last["outcome"], &last["generation"]),
        (&json!("ok"), &json!(2))
    );
    assert!(
        last["at"].as_u64().is_some_and(|at| at > 0) && last["took_ms"].is_u64(),
        "{last:#}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_response_contains_a_secret() {
    let (mut rig, client, admin) = running(json!({ "token": ADMIN })).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    let mut asked = Vec::new();
    for admin in [admin.clone(), admin.token(ADMIN), admin.token(ALICE)] {
        for path in LOOKS.iter().chain(&["/healthz", "/readyz", "/nowhere"]) {
            asked.push((*path, admin.get(path).await));
        }
        for path in CHANGES {
            asked.push((path, admin.ask(Method::POST, path, "").await));
        }
    }
    for (path, answer) in asked {
        let said = format!("{:?} {}", answer.headers, answer.text());
        for canary in [ADMIN, ALICE, HEADER, ACCESS, "token-bob", "refresh-access"] {
            assert!(
                !said.contains(canary),
                "{canary} is in the answer of {path}: {said}"
            );
        }
    }
    rig.stop().await;
}
