//! Gateways that connect: over another route than before, and two with one token.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::reverse::{ReverseScene, back_config, eager, front_config};
use tollgate_tests::upstream::{Gate, Reply, WAIT_MAX};
use tollgate_tests::{Proxy, Rig, turn};

/// How long two connectors with one token are watched.
const WATCHED: Duration = Duration::from_secs(6);

/// How often two connectors may replace each other meanwhile. Without pauses it would be hundreds
/// of times.
const REPLACEMENTS_MAX: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_detour_applies_to_the_connection_and_cuts_no_response() {
    let (before, after) = (Proxy::start().await, Proxy::start().await);
    let scene = ReverseScene::new().await;
    let mut config = back_config(&scene.back, scene.alice.address());
    config["limits"] = eager();
    config["services"][0]["credentials"][1]["detour"] = json!("out");
    config["outbounds"] = json!([before.outbound("socks", "out")]);
    scene.back.configure(&config).await.expect("applied");
    wait_for_tunnel(&before).await;
    scene.front.wait_for_state("x", "ready").await;
    let gate = Gate::new();
    let account = scene.back.account("far");
    account.then(Reply::ok().deltas(5).hold_after(2, &gate));
    let stream = scene.alice.start_turn(&turn("before")).await;
    gate.wait_until_reached().await;

    config["outbounds"] = json!([after.outbound("socks", "out")]);
    scene.back.configure(&config).await.expect("applied");
    wait_for_tunnel(&after).await;

    scene.front.wait_for_state("x", "ready").await;
    let answer = scene.alice.turn(&turn("after")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    gate.open();
    let answer = stream.finish().await;
    assert!(answer.whole && answer.text().contains("response.completed"));
    assert_eq!(scene.back.upstream.turns().len(), 2);
    assert_eq!(before.tunnels().len(), 1, "no further connection");
    // What does not change the route makes no other connection.
    config["limits"]["reverse_keep_alive"] = json!("20s");
    scene.back.configure(&config).await.expect("applied");
    assert_eq!(scene.alice.turn(&turn("last")).await.status, StatusCode::OK);
    assert_eq!(after.tunnels().len(), 1);
    scene.stop().await;
}

async fn wait_for_tunnel(proxy: &Proxy) {
    let begun = Instant::now();
    while proxy.tunnels().is_empty() {
        assert!(begun.elapsed() < WAIT_MAX, "no connection over the route");
        // A proxy can only be asked.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connectors_with_one_token_pause_and_no_request_fails() {
    let front = Rig::new().await;
    let mut config = front_config(&front);
    // Nothing else could answer.
    config["services"][0]["users"][0]["credential"] = json!("x");
    let program = front.spawn(&config).await;
    let alice = program.client().token("token-alice");
    let mut backs = [Rig::new().await, Rig::new().await];
    for back in &mut backs {
        let config = back_config(back, alice.address());
        back.start(config).await;
        front.wait_for_state("x", "ready").await;
        let answer = alice.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let answer = alice.turn(&turn("more")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    for back in &backs {
        assert!(!back.upstream.turns().is_empty(), "each was connected");
    }
    let replaced = program.log().matches("connection replaced").count();
    assert!(
        (1..=REPLACEMENTS_MAX).contains(&replaced),
        "{replaced} replacements:\n{}",
        program.log()
    );
    for back in &mut backs {
        back.stop().await;
    }
}
