//! Guests that fail, loop or return nonsense while requests are served.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Client, OWN, Rig, guest, turn, wait_for_rows};

use super::{MEASURING, MEMORY, slowest, start};
use crate::wat::{balancer, pricer, rewriter};

/// Concurrent clients of a hostile guest, and the total number of their requests: enough for every
/// thread that serves requests.
const CLIENTS: usize = 4;

const TURNS: usize = 24;

/// Sends a client's share of the turns, each in another session.
async fn ask(client: Client, number: usize, status: u16) {
    for turn_number in 0..TURNS / CLIENTS {
        let answer = client
            .turn(&turn(&format!("session {number} {turn_number}")))
            .await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    }
}

/// Checks that every call failed, all of them by `fault`, and what is left of the instances.
fn check_faults(name: &str, policy: &Value, fault: &str) {
    let count = policy["faults"][fault].as_u64().unwrap_or_default();
    assert!(
        count >= TURNS as u64,
        "{name}: expected {TURNS} faults of {fault}: {policy:#}"
    );
    let faults: u64 = policy["faults"]
        .as_object()
        .expect("an object")
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(faults, count, "{name}: {policy:#}");
    // An instance that trapped is gone; one with a bad result may stay warm, one per thread.
    let (instances, memory) = (
        policy["instances"].as_u64(),
        policy["memory_bytes"].as_u64(),
    );
    assert!(
        instances <= Some(32) && memory <= instances.map(|count| count * MEMORY),
        "{name}: {policy:#}"
    );
    if matches!(fault, "trap" | "deadline" | "memory") {
        assert!(
            instances <= Some(2),
            "{name}: instances of calls that are over: {policy:#}"
        );
    }
}

/// Checks that no row of the hostile service has a price, and that each says why.
async fn check_unpriced(name: &str, rig: &Rig) {
    let rows = wait_for_rows(&rig.ledger(), TURNS + 30).await;
    let own: Vec<_> = rows
        .iter()
        .filter(|row| row.text("service") == Some("hostile"))
        .collect();
    assert_eq!(own.len(), TURNS);
    for row in own {
        assert!(
            row.number("cost_nanousd").is_none() && row.text("unpriced_reason").is_some(),
            "{name}: {row:?}"
        );
    }
}

/// Checks that a hostile guest affects no other request. Each of its calls is a fault of the kind
/// `fault`, and its clients receive `status`.
async fn check(name: &str, kind: &str, component: &[u8], fault: &str, status: u16) {
    let _measuring = MEASURING.lock().await;
    let mut rig = Rig::new().await;
    let (client, beside) = start(&mut rig, kind, component)
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    slowest(&beside).await;
    let alone = slowest(&beside).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(ask(client.clone(), number, status)))
        .collect();
    let with = slowest(&beside).await;
    for client in clients {
        client
            .await
            .unwrap_or_else(|_| panic!("{name}: its clients' answers"));
    }
    // Generous, for a busy machine. A guest that held a thread until its timeout in each call would
    // still exceed it.
    assert!(
        with < alone * 10 + Duration::from_millis(500),
        "{name}: alone {alone:?}, beside it {with:?}"
    );
    let policy = rig.policy(OWN).await;
    println!(
        "{name}: alone {alone:?}, beside it {with:?}, its calls {}",
        policy["call_us"]
    );
    check_faults(name, &policy, fault);
    if kind == "pricer" {
        check_unpriced(name, &rig).await;
    }
    rig.stop().await;
}

/// What a pricer does in `price`, and the fault that it is.
const PRICERS: [(&str, &str, &str); 18] = [
    ("loops", "(loop $ever (br $ever))", "deadline"),
    ("recurses", "(drop (call $recurse (i32.const 1)))", "trap"),
    (
        "allocates for ever",
        "(loop $ever (drop (memory.grow (i32.const 8))) (br $ever))",
        "memory",
    ),
    ("traps", "unreachable", "trap"),
    (
        "divides by zero",
        "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
        "trap",
    ),
    (
        "reads past its memory",
        "(drop (i32.load (i32.const -4)))",
        "trap",
    ),
    (
        "answers outside of its memory",
        "(return (i32.const -8))",
        "trap",
    ),
    (
        "answers an unknown case",
        "(i32.store8 (i32.const 1024) (i32.const 9))",
        "trap",
    ),
    (
        "a list longer than its memory",
        "(i32.store (i32.const 1036) (i32.const 0x7ffffff))",
        "trap",
    ),
    (
        "a list too long",
        "(i32.store (i32.const 1036) (i32.const 7000))",
        "bad_output",
    ),
    (
        "no list",
        "(i32.store (i32.const 1036) (i32.const 0))",
        "bad_output",
    ),
    (
        "a total that is no number",
        "(f64.store (i32.const 1040) (f64.const nan))",
        "bad_output",
    ),
    (
        "a kind that is no number",
        "(f64.store (i32.const 2048) (f64.const nan))",
        "bad_output",
    ),
    (
        "an infinite total",
        "(f64.store (i32.const 1040) (f64.const inf))",
        "bad_output",
    ),
    (
        "a negative price",
        "(f64.store (i32.const 2048) (f64.const -3)) (f64.store (i32.const 1040) (f64.const -3))",
        "bad_output",
    ),
    (
        "half a nano-dollar",
        "(f64.store (i32.const 2048) (f64.const 0.5)) (f64.store (i32.const 1040) (f64.const 0.5))",
        "bad_output",
    ),
    (
        "a sum that is none",
        "(f64.store (i32.const 1040) (f64.const 4))",
        "bad_output",
    ),
    (
        "words that are no UTF-8",
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 3000) (i32.const 255)) (i32.store (i32.const 1032) (i32.const 3000)) (i32.store (i32.const 1036) (i32.const 1))",
        "trap",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_pricer_only_leaves_rows_unpriced() {
    for (name, price, fault) in PRICERS {
        check(name, "pricer", &pricer(price), fault, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_balancer_replaces_a_hostile_one() {
    let cases = [
        (
            "past the end",
            "(i32.store (i32.const 1028) (i32.const 2))",
            "bad_output",
        ),
        (
            "far past the end",
            "(i32.store (i32.const 1028) (i32.const 0x7fffffff))",
            "bad_output",
        ),
        (
            "before the beginning",
            "(i32.store (i32.const 1028) (i32.const -2))",
            "bad_output",
        ),
        ("loops", "(loop $ever (br $ever))", "deadline"),
        ("traps", "unreachable", "trap"),
        (
            "a reason longer than its memory",
            "(i32.store (i32.const 1028) (i32.const -1)) (i32.store (i32.const 1040) (i32.const 0x7ffffff))",
            "trap",
        ),
    ];
    for (name, pick, fault) in cases {
        check(name, "balancer", &balancer("", pick), fault, 200).await;
    }
}

/// Requests succeed whatever weights this balancer returns for its members.
#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_no_numbers_are_not_used() {
    let cases = [
        (
            "not a number",
            "(f64.store (i32.const 2048) (f64.const nan))",
        ),
        ("infinite", "(f64.store (i32.const 2048) (f64.const inf))"),
        ("negative", "(f64.store (i32.const 2048) (f64.const -1))"),
        ("nothing", "(f64.store (i32.const 2048) (f64.const 0))"),
        ("too few", "(i32.store (i32.const 1028) (i32.const 1))"),
        (
            "far too many",
            "(i32.store (i32.const 1028) (i32.const 7000))",
        ),
    ];
    for (name, members) in cases {
        let mut rig = Rig::new().await;
        let started = start(&mut rig, "balancer", &balancer(members, "")).await;
        let (client, _) = started.unwrap_or_else(|error| panic!("{name}: {error}"));
        for number in 0..TURNS {
            let answer = client.turn(&turn(&format!("session {number}"))).await;
            assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
        }
        // The status of the pool counts its capacity by weights.
        let status = client.get("/ocm/v1/status").await;
        assert_eq!(status.status, StatusCode::OK, "{name}: {}", status.text());
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_rewriter_fails_only_its_own_requests() {
    // Identical edits of 20 bytes each: case, name, value.
    let many = |count: usize, length: usize| {
        format!(
            "(i32.store8 (i32.const 3000) (i32.const 97))
             (drop (memory.grow (i32.const 30)))
             (memory.fill (i32.const 600000) (i32.const 97) (i32.const {length}))
             (i32.store (i32.const 1028) (i32.const 65536))
             (i32.store (i32.const 1032) (i32.const {count}))
             (loop $more
               (i32.store offset=65540 (i32.mul (local.get $at) (i32.const 20)) (i32.const 3000))
               (i32.store offset=65544 (i32.mul (local.get $at) (i32.const 20)) (i32.const 1))
               (i32.store offset=65548 (i32.mul (local.get $at) (i32.const 20)) (i32.const 600000))
               (i32.store offset=65552 (i32.mul (local.get $at) (i32.const 20)) (i32.const {length}))
               (br_if $more (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const {count}))))"
        )
    };
    let cases = [
        (
            "a list of nothing without end",
            "(i32.store (i32.const 1032) (i32.const 0x7ffffff))".to_owned(),
            "trap",
        ),
        ("too many edits", many(2000, 4), "bad_output"),
        ("edits too large", many(10, 100_000), "bad_output"),
    ];
    for (name, rewrite, fault) in cases {
        check(name, "rewriter", &rewriter(&rewrite), fault, 500).await;
    }
}

/// The faults of a rewriter with `on_failure: skip`: upstream sees none of its edits.
#[tokio::test(flavor = "multi_thread")]
async fn no_component_can_set_a_field_with_a_secret_or_of_framing() {
    for fault in [
        "reserved",
        "api-key",
        "auth-token",
        "hop-by-hop",
        "new-line",
    ] {
        let mut rig = Rig::new().await;
        let mut config = rig.team(&["a"], json!({}));
        config["services"][0]["rewriters"] = json!([OWN]);
        let (path, fault_config) = (guest("faulty-rewriter"), json!({ "fault": fault }));
        config["policies"] = json!([{ "tag": OWN, "kind": "rewriter", "path": path, "config": fault_config, "on_failure": "skip" }]);
        let client = rig.start(config).await.token("token-alice");
        assert_eq!(
            client.turn(&turn("one")).await.status,
            StatusCode::OK,
            "{fault}"
        );
        let seen = &rig.upstream.turns()[0];
        for field in [
            "x-good",
            "x-api-key",
            "my-auth-token",
            "transfer-encoding",
            "x-split",
            "b",
        ] {
            assert_eq!(seen.header(field), None, "{fault}: {field}");
        }
        let policy = rig.policy(OWN).await;
        assert_eq!(
            policy["faults"],
            json!({ "bad_output": 1 }),
            "{fault}: {policy:#}"
        );
        rig.stop().await;
    }
}

/// The real binary with its log in a file, which contains a limited number of lines per second.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_a_guests_log_and_output_are_cut() {
    const LINES: u64 = 20;
    for fault in ["log-flood", "stdout-flood"] {
        let rig = Rig::new().await;
        let mut config = rig.team(&["a"], json!({}));
        config["services"][0]["rewriters"] = json!([OWN]);
        let (path, fault_config) = (guest("faulty-rewriter"), json!({ "fault": fault }));
        config["policies"] = json!([{ "tag": OWN, "kind": "rewriter", "path": path, "config": fault_config, "timeout": "200ms" }]);
        config["limits"] = json!({ "policy_log_lines": LINES });
        let program = rig.spawn(&config).await;
        let client = program.client().token("token-alice");
        let begun = Instant::now();
        for number in 0..20 {
            let answer = client.turn(&turn(&format!("session {number}"))).await;
            assert_eq!(answer.status, StatusCode::OK, "{fault}: {}", answer.text());
        }
        let seconds = begun.elapsed().as_secs() + 2;
        let log = program.log();
        let flood: Vec<&str> = log.lines().filter(|line| line.contains("flood ")).collect();
        assert!(
            flood.len() as u64 <= LINES * seconds,
            "{fault}: {} lines in {seconds} s",
            flood.len()
        );
        assert!(
            flood.iter().all(|line| line.len() < 1500),
            "{fault}: a line is cut"
        );
        if fault == "log-flood" {
            assert!(!flood.is_empty());
            assert!(
                rig.policy(OWN).await["unlogged"].as_u64() > Some(0),
                "what is left out is counted"
            );
        }
        program.kill();
    }
}

/// The policies' clock is parked while there are no calls; the first call wakes it.
#[tokio::test(flavor = "multi_thread")]
async fn looping_guest_is_stopped_though_there_was_no_call_for_a_while() {
    let mut rig = Rig::new().await;
    let (client, _) = start(
        &mut rig,
        "balancer",
        &balancer("", "(loop $ever (br $ever))"),
    )
    .await
    .expect("it starts");
    for turns in 1..=3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let session = turn(&format!("session {turns}"));
        // A parked clock also wakes by itself, but not so soon.
        let answer = tokio::time::timeout(Duration::from_secs(5), client.turn(&session))
            .await
            .expect("in time");
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let policy = rig.policy(OWN).await;
        assert_eq!(policy["faults"], json!({ "deadline": turns }), "{policy:#}");
    }
    rig.stop().await;
}
