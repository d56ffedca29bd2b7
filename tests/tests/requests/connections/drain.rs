//! Shutdown by a signal: no new connections, requests in flight end or are recorded as aborted, and
//! the files are written.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Program, Rig, over_both, rows, turn};

/// Far less than the default of `limits.drain_timeout`.
const SOON: Duration = Duration::from_secs(10);

/// A team whose credential `a` has a usage file, with these limits.
fn config(rig: &Rig, limits: Value) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["credentials"][0]["usages_path"] = json!(rig.path("usages.json"));
    config["limits"] = limits;
    config
}

/// Waits until `address` refuses connections.
async fn wait_until_closed(address: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(begun.elapsed() < SOON, "it still takes connections");
        // There is no other signal.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Returns the requests and output tokens in the usage file.
fn usage(rig: &Rig) -> (u64, u64) {
    let text = std::fs::read_to_string(rig.path("usages.json")).expect("the usage file is written");
    let file: Value = serde_json::from_str(&text).expect("the usage file is JSON");
    let totals = file["combinations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|combination| &combination["total"]);
    totals.fold((0, 0), |sum, total| {
        let number = |name: &str| total[name].as_u64().expect("a number");
        (
            sum.0 + number("request_count"),
            sum.1 + number("output_tokens"),
        )
    })
}

async fn check_drain(signal: i32) {
    let rig = Rig::new().await;
    let program = rig.spawn(&config(&rig, json!({}))).await;
    let client = program.client().token("token-alice");
    let gate = Gate::new();
    assert_eq!(client.turn(&turn("before")).await.status, StatusCode::OK);
    rig.account("a").always(Reply::ok().hold_after(2, &gate));
    let over_http1 = client.start_turn(&turn("in flight")).await;
    let over_http2 = client.http2().start_turn(&turn("in flight")).await;
    program.signal(signal);
    wait_until_closed(client.address()).await;
    gate.open();
    for stream in [over_http1, over_http2] {
        let answer = stream.finish().await;
        assert!(
            answer.whole && answer.text().contains("response.completed"),
            "{}",
            answer.text()
        );
    }
    let status = program.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", log(&rig));
    let rows = rows(&rig.ledger());
    assert_eq!(rows.len(), 3);
    assert!(
        rows.iter().all(|row| row.text("end") == Some("complete")),
        "{rows:#?}"
    );
    assert_eq!(usage(&rig), (3, 450));
}

fn log(rig: &Rig) -> String {
    std::fs::read_to_string(rig.path("gateway.log")).unwrap_or_default()
}

over_both!(sigterm_lets_streams_end_and_accepts_nothing_new);
async fn sigterm_lets_streams_end_and_accepts_nothing_new() {
    check_drain(libc::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_lets_streams_end_and_accepts_nothing_new() {
    check_drain(libc::SIGINT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_accepts_no_new_request_after_the_signal() {
    let rig = Rig::new().await;
    let program = rig.spawn(&config(&rig, json!({}))).await;
    let idle = program.client().token("token-alice");
    assert_eq!(idle.turn(&turn("idle")).await.status, StatusCode::OK);
    let gate = Gate::new();
    rig.account("a").always(Reply::ok().hold_after(2, &gate));
    let held = program
        .client()
        .token("token-alice")
        .start_turn(&turn("held"))
        .await;
    program.signal(libc::SIGTERM);
    wait_until_closed(idle.address()).await;
    let refused = idle.try_send(http::Method::GET, "/v1/models", "").await;
    assert!(refused.is_err(), "a request is served after the signal");
    gate.open();
    assert!(held.finish().await.whole);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    assert_eq!(rows(&rig.ledger()).len(), 2);
}

over_both!(streams_past_drain_timeout_are_aborted_and_recorded);
async fn streams_past_drain_timeout_are_aborted_and_recorded() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&config(&rig, json!({ "drain_timeout": "300ms" })))
        .await;
    let client = program.client().token("token-alice");
    let gate = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_after(2, &gate))
        .then(Reply::ok().hold_after(2, &gate));
    rig.account("a").then(Reply::ok().hold_head(&gate));
    let over_http1 = client.start_turn(&turn("cut")).await;
    let over_http2 = client.http2().start_turn(&turn("cut")).await;
    let unanswered = tokio::spawn({
        let client = program.client().token("token-bob");
        async move {
            client
                .try_send(http::Method::POST, "/v1/responses", turn("cut").to_string())
                .await
                .is_ok()
        }
    });
    rig.upstream.wait_for_turns(3).await;
    let since = Instant::now();
    program.signal(libc::SIGTERM);
    for stream in [over_http1, over_http2] {
        assert!(
            !stream.finish().await.whole,
            "a cut stream passes for a whole one"
        );
    }
    assert!(!unanswered.await.expect("no panic"), "there is an answer");
    let status = program.wait(SOON).await;
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!(status.code(), Some(0), "{}", log(&rig));
    let rows = rows(&rig.ledger());
    assert_eq!(rows.len(), 3, "{rows:#?}");
    for row in &rows {
        let end = row.text("end").expect("an end");
        assert!(["client_gone", "upstream_gone"].contains(&end), "{row:#?}");
    }
    gate.open();
}

/// Without requests in flight there is nothing to wait for, even with open connections.
#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_do_not_delay_the_shutdown() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&config(&rig, json!({ "drain_timeout": "60s" })))
        .await;
    let (over_http1, over_http2) = (
        program.client().token("token-alice"),
        program.client().token("token-bob").http2(),
    );
    assert_eq!(over_http1.turn(&turn("idle")).await.status, StatusCode::OK);
    assert_eq!(over_http2.turn(&turn("idle")).await.status, StatusCode::OK);
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    assert_eq!(usage(&rig), (2, 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_does_not_delay_the_shutdown() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&config(&rig, json!({ "drain_timeout": "60s" })))
        .await;
    let client = program.client().token("token-alice");
    let silent = TcpStream::connect(client.address())
        .await
        .expect("connects");
    // The gateway accepts in order: this one comes after the silent one.
    assert_eq!(client.turn(&turn("idle")).await.status, StatusCode::OK);
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    drop(silent);
}

over_both!(a_second_signal_aborts_at_once_and_aborted_requests_are_recorded);
async fn a_second_signal_aborts_at_once_and_aborted_requests_are_recorded() {
    let rig = Rig::new().await;
    let program = rig
        .spawn(&config(&rig, json!({ "drain_timeout": "60s" })))
        .await;
    let client = program.client().token("token-alice");
    assert_eq!(client.turn(&turn("before")).await.status, StatusCode::OK);
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let stream = client.start_turn(&turn("cut")).await;
    program.signal(libc::SIGTERM);
    wait_until_closed(client.address()).await;
    // Sooner it would count as the same signal.
    tokio::time::sleep(Duration::from_millis(60)).await;
    program.signal(libc::SIGTERM);
    assert!(!stream.finish().await.whole);
    ended(program).await;
    let rows = rows(&rig.ledger());
    assert_eq!(rows.len(), 2, "{rows:#?}");
    let end = rows[1].text("end").expect("an end");
    assert!(["client_gone", "upstream_gone"].contains(&end), "{rows:#?}");
    gate.open();
}

/// It exits with a code, and is not killed by the signal.
async fn ended(program: Program) {
    let status = program.wait(SOON).await;
    assert!(status.code().is_some(), "it died of the signal: {status}");
}

over_both!(a_stopped_gateway_starts_again_with_its_files);
async fn a_stopped_gateway_starts_again_with_its_files() {
    let rig = Rig::new().await;
    let config = config(&rig, json!({}));
    for round in 1..=2 {
        let program = rig.spawn(&config).await;
        assert_eq!(
            program
                .client()
                .token("token-alice")
                .turn(&turn("again"))
                .await
                .status,
            StatusCode::OK
        );
        program.signal(libc::SIGTERM);
        assert_eq!(program.wait(SOON).await.code(), Some(0));
        assert_eq!(rows(&rig.ledger()).len(), round);
        assert_eq!(usage(&rig), (round as u64, 150 * round as u64));
    }
}
