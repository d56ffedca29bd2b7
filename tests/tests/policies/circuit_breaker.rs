//! Components that fail repeatedly: a new generation is rolled back, and the circuit breaker of a
//! first generation opens.

use serde_json::{Value, json};
use tollgate_tests::{Client, Conduct, OWN, Rig, guest, marked_pricer, turn, wait_for_rows};

/// A short pause of the circuit breaker. The second pause is twice as long.
fn short() -> Value {
    json!({ "policy_quarantine": "1s" })
}

/// Longer than any test.
fn long() -> Value {
    json!({ "policy_quarantine": "10m", "policy_faults": 3 })
}

/// Sends two requests that fail: enough to open the breaker of a new generation.
async fn fail_twice(rig: &Rig, bob: &Client) {
    for _ in 0..2 {
        let answer = bob.turn(&turn("bob's")).await;
        assert!(
            answer.status.is_success() && answer.whole,
            "a pricer's fault is no client's: {}",
            answer.text()
        );
    }
    let back = |policy: &Value| policy["last_reload"]["outcome"] == "taken_back";
    let policy = rig
        .wait_for_policy(OWN, "the generation before", back)
        .await;
    assert_eq!(policy["generation"], 1, "{policy:#}");
    let reason = policy["last_reload"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("generation 2 failed too often"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_fails_in_its_first_calls_is_rolled_back_and_retried_until_it_is_good() {
    let mut rig = Rig::new().await;
    let alice = rig.start_priced(short()).await;
    let bob = Client::new(alice.address()).token("token-bob");
    rig.replace_own(&marked_pricer(2, Conduct::PanicsForBob));
    rig.wait_for_generation(OWN, 2).await;
    fail_twice(&rig, &bob).await;
    // Tried again, it fails again.
    let policy = rig.wait_for_generation(OWN, 2).await;
    assert_eq!(policy["state"], "on_probation", "{policy:#}");
    assert_eq!(
        policy["last_reload"]["outcome"], "tried_again",
        "{policy:#}"
    );
    fail_twice(&rig, &bob).await;
    rig.wait_for_generation(OWN, 2).await;
    // Now it works, for longer than its probation.
    let before = wait_for_rows(&rig.ledger(), 4).await;
    for row in &before {
        let reason = row.text("unpriced_reason").expect("a reason");
        assert!(reason.contains("panic for bob"), "{reason}");
    }
    for _ in 0..100 {
        alice.turn(&turn("alice's")).await;
    }
    let rows = wait_for_rows(&rig.ledger(), 104).await;
    assert!(
        rows[4..]
            .iter()
            .all(|row| row.number("cost_nanousd") == Some(2)),
        "the new price"
    );
    let policy = rig.policy(OWN).await;
    assert_eq!(policy["generation"], 2, "{policy:#}");
    assert_eq!(policy["faults"], json!({ "trap": 4 }), "{policy:#}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_generation_prices_during_a_trial() {
    let mut rig = Rig::new().await;
    let alice = rig
        .start_priced(json!({ "policy_quarantine": "10m" }))
        .await;
    let bob = Client::new(alice.address()).token("token-bob");
    rig.replace_own(&marked_pricer(2, Conduct::Panics));
    rig.wait_for_generation(OWN, 2).await;
    fail_twice(&rig, &bob).await;
    bob.turn(&turn("again")).await;
    let rows = wait_for_rows(&rig.ledger(), 3).await;
    assert_eq!(rows[2].number("cost_nanousd"), Some(1));
    // A newer generation is used at once, even if a suspended one exists.
    rig.replace_own(&marked_pricer(3, Conduct::Fine));
    rig.wait_for_generation(OWN, 3).await;
    bob.turn(&turn("newer")).await;
    assert_eq!(
        wait_for_rows(&rig.ledger(), 4).await[3].number("cost_nanousd"),
        Some(3)
    );
    rig.stop().await;
}

/// A team whose policy of `kind` fails for every request, is the first generation, and is
/// switched off after three faults.
async fn faulty(rig: &mut Rig, kind: &str, more: Value) -> Client {
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
    let path = guest(&format!("faulty-{kind}"));
    let mut policy =
        json!({ "tag": OWN, "kind": kind, "path": path, "config": { "fault": "panic" } });
    policy
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    config["policies"] = json!([policy]);
    config["limits"] = long();
    rig.start(config).await.token("token-alice")
}

/// Runs ten turns, one after the other. Returns the statuses and the errors' codes; three calls
/// reached the guest.
async fn ten_turns(rig: &Rig, client: &Client) -> Vec<(u16, Value)> {
    let mut answers = Vec::new();
    for number in 0..10 {
        let answer = client.turn(&turn(&format!("session {number}"))).await;
        let code = if answer.status.is_success() {
            Value::Null
        } else {
            answer.json()["error"]["code"].clone()
        };
        answers.push((answer.status.as_u16(), code));
    }
    let policy = rig.policy(OWN).await;
    assert_eq!(policy["state"], "quarantined", "{policy:#}");
    assert_eq!(policy["faults"]["trap"], 3, "{policy:#}");
    assert!(
        policy["faults"]["quarantined"].as_u64() >= Some(7),
        "{policy:#}"
    );
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_balancer_replaces_one_whose_breaker_is_open() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "balancer", json!({})).await;
    assert_eq!(ten_turns(&rig, &client).await, vec![(200, Value::Null); 10]);
    let rows = wait_for_rows(&rig.ledger(), 10).await;
    let used: std::collections::BTreeSet<String> =
        rows.iter().map(|row| row.attempts()[0].0.clone()).collect();
    assert!(
        !used.is_empty() && used.iter().all(|tag| tag == "a" || tag == "b"),
        "{used:?}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewriter_with_an_open_breaker_that_may_not_be_skipped_refuses_as_unavailable() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", json!({})).await;
    let answers = ten_turns(&rig, &client).await;
    assert_eq!(answers[..3], vec![(500, json!("policy_failed")); 3]);
    assert_eq!(answers[3..], vec![(503, json!("policy_unavailable")); 7]);
    let handshake = client.socket().await.expect_err("no socket");
    assert_eq!(
        (
            handshake.status.as_u16(),
            &handshake.json()["error"]["code"]
        ),
        (503, &json!("policy_unavailable"))
    );
    assert!(handshake.header("retry-after").is_some());
    assert_eq!(
        rig.forwarded().len(),
        0,
        "upstream sees nothing that was not rewritten"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewriter_with_an_open_breaker_that_may_be_skipped_is() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "rewriter", json!({ "on_failure": "skip" })).await;
    assert_eq!(ten_turns(&rig, &client).await, vec![(200, Value::Null); 10]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pricer_with_an_open_breaker_leaves_rows_unpriced_with_the_reason() {
    let mut rig = Rig::new().await;
    let client = faulty(&mut rig, "pricer", json!({})).await;
    assert_eq!(ten_turns(&rig, &client).await, vec![(200, Value::Null); 10]);
    let rows = wait_for_rows(&rig.ledger(), 10).await;
    for (place, row) in rows.iter().enumerate() {
        let expected = if place < 3 {
            "the guest's panic message"
        } else {
            "circuit breaker open after too many faults; half-open in "
        };
        let reason = row.text("unpriced_reason").expect("a reason");
        assert!(
            row.number("cost_nanousd").is_none() && reason.contains(expected),
            "row {place}: {reason}"
        );
        assert_eq!(row.number("input_tokens"), Some(1200), "row {place}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_file_closes_the_breaker_of_a_policy() {
    let mut rig = Rig::new().await;
    rig.write("own.wasm", marked_pricer(1, Conduct::Panics));
    let mut config = rig.priced();
    config["limits"] = long();
    let client = rig.start(config).await.token("token-alice");
    ten_turns(&rig, &client).await;
    rig.replace_own(&marked_pricer(2, Conduct::Fine));
    let policy = rig.wait_for_generation(OWN, 2).await;
    assert_eq!(policy["state"], "serving", "{policy:#}");
    client.turn(&turn("good")).await;
    assert_eq!(
        wait_for_rows(&rig.ledger(), 11).await[10].number("cost_nanousd"),
        Some(2)
    );
    rig.stop().await;
}
