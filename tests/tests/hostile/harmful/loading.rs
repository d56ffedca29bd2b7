//! Guests that fail or take long while they are loaded.

use std::time::{Duration, Instant};

use serde_json::Value;
use tollgate_tests::{OWN, Rig, turn};

use super::{MEASURING, slowest, start};
use crate::wat::{CONFIGURE, pricer, pricer_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_traps_in_configure_stops_the_start_with_a_message() {
    let trap = r#"(func (export "tollgate:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32) unreachable)"#;
    let grows = r#"(func (export "tollgate:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32)
        (loop $ever (drop (memory.grow (i32.const 8))) (br $ever)) unreachable)"#;
    for (configure, words) in [(trap, "unreachable"), (grows, "memory limit")] {
        let mut rig = Rig::new().await;
        let refused = start(&mut rig, "pricer", &pricer_with("", configure, ""))
            .await
            .err()
            .expect("no start");
        assert!(
            refused.contains("rejected at configure") && refused.contains(words),
            "{words}: {refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_loops_in_configure_is_stopped_and_reported() {
    let loops = r#"(func (export "tollgate:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32)
        (loop $ever (br $ever)) unreachable)"#;
    let _measuring = MEASURING.lock().await;
    let mut rig = Rig::new().await;
    let (client, beside) = start(&mut rig, "pricer", &pricer(""))
        .await
        .expect("it serves");
    rig.replace_own(&pricer_with("", loops, ""));
    let is_loading = |policy: &Value| !policy["loading"].is_null();
    rig.wait_for_policy(OWN, "the load", is_loading).await;
    slowest(&beside).await;
    // Each attempt to read the file has a separate timeout: all of them together take longer than
    // other waits of a test.
    let begun = Instant::now();
    let policy = loop {
        let policy = rig.policy(OWN).await;
        if policy["last_reload"]["outcome"] == "failed" {
            break policy;
        }
        slowest(&beside).await;
        assert!(begun.elapsed() < Duration::from_secs(60), "{policy:#}");
    };
    println!("given up after {:?}", begun.elapsed());
    let reason = policy["last_reload"]["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("rejected at configure") && reason.contains("interrupt"),
        "{reason}"
    );
    assert_eq!(policy["generation"], 1);
    client.turn(&turn("still")).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn component_of_ten_thousand_functions_is_loaded_while_requests_are_served() {
    let functions: String = (0..10_000)
        .map(|number| {
            format!("(func $f{number} (param i32) (result i32) (i32.mul (local.get 0) (i32.const {number})))\n")
        })
        .collect();
    let large = pricer_with(
        "",
        &format!("{CONFIGURE}{functions}"),
        "(drop (call $f9999 (i32.const 1)))",
    );
    let _measuring = MEASURING.lock().await;
    let mut rig = Rig::new().await;
    let (client, beside) = start(&mut rig, "pricer", &pricer(""))
        .await
        .expect("it serves");
    slowest(&beside).await;
    let alone = slowest(&beside).await;
    rig.replace_own(&large);
    let mut with = Duration::ZERO;
    let begun = Instant::now();
    while rig.policy(OWN).await["generation"] != 2 {
        with = with.max(slowest(&beside).await);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:#}",
            rig.policy(OWN).await
        );
    }
    println!(
        "alone {alone:?}, beside the load {with:?}, loaded after {:?}",
        begun.elapsed()
    );
    assert!(
        with < alone * 10 + Duration::from_millis(300),
        "alone {alone:?}, beside the load {with:?}"
    );
    assert!(client.turn(&turn("one")).await.whole);
    rig.stop().await;
}
