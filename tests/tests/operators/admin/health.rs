//! Health and readiness.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Rig, turn};

use super::{ADMIN, ALICE, CHANGES, check, config};

/// The longest wait for what the gateway does by itself.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_gateway_is_healthy_and_not_ready() {
    let rig = Rig::new().await;
    let program = rig.spawn(&config(&rig, json!({ "token": ADMIN }))).await;
    let admin = program.admin();
    check(&admin.get("/readyz").await, 200, "before");
    let gate = Gate::new();
    rig.account("canary").then(Reply::ok().hold_after(2, &gate));
    let stream = program
        .client()
        .token(ALICE)
        .start_turn(&turn("held"))
        .await;
    gate.wait_until_reached().await;
    program.signal(libc::SIGTERM);
    let begun = Instant::now();
    let answer = loop {
        let answer = admin.get("/readyz").await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        assert!(begun.elapsed() < SOON, "still ready");
    };
    check(&answer, 503, "draining");
    assert_eq!(
        answer.json(),
        json!({ "status": "not ready", "reason": "the gateway is shutting down" })
    );
    check(&admin.get("/healthz").await, 200, "draining");
    check(
        &admin.token(ADMIN).get("/api/status").await,
        200,
        "draining",
    );
    check(
        &admin.token(ADMIN).ask(Method::POST, CHANGES[0], "").await,
        503,
        "a reload while draining",
    );
    gate.open();
    assert!(stream.finish().await.whole);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_ledger_fails_is_healthy_and_not_ready() {
    let mut rig = Rig::new().await;
    let mut config = config(&rig, json!({}));
    config["limits"] = json!({ "ledger_bytes": 96 * 1024, "settle_queue": 8, "commit_timeout": "200ms", "drain_timeout": "2s" });
    let client = rig.start(config).await.token(ALICE);
    let admin = rig.admin();
    check(&admin.get("/readyz").await, 200, "before");
    let begun = Instant::now();
    while client.turn(&turn("one")).await.status != StatusCode::SERVICE_UNAVAILABLE {
        assert!(begun.elapsed() < 2 * SOON, "the ledger never fills");
    }
    let answer = admin.get("/readyz").await;
    check(&answer, 503, "the ledger is full");
    assert_eq!(answer.json()["reason"], "the ledger cannot be written");
    check(&admin.get("/healthz").await, 200, "the ledger is full");
    assert_eq!(
        rig.metrics().await.value("tollgate_ledger_failing", &[]),
        1.0
    );
    rig.stop().await;
}
