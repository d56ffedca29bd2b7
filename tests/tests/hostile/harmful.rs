//! Hostile guests: each fails its own call and nothing else. None ends the process, keeps an
//! instance or memory beyond its call, or delays other requests.

use std::time::{Duration, Instant};

use crate::wat::{CONFIGURE, balancer, pricer, pricer_with, rewriter};
use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Client, OWN, Rig, guest, turn, wait_for_rows};

/// Concurrent clients of a hostile guest, and the total number of their requests: enough for every
/// thread that serves requests.
const CLIENTS: usize = 4;
const TURNS: usize = 24;
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
    let ask = |number: usize| {
        let client = client.clone();
        async move {
            for turn_number in 0..TURNS / CLIENTS {
                let answer = client
                    .turn(&turn(&format!("session {number} {turn_number}")))
                    .await;
                assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
            }
        }
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(ask(number)))
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
    if kind == "pricer" {
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
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pricer_that_means_harm_leaves_rows_unpriced_and_no_more() {
    let nan = "(f64.store (i32.const 1040) (f64.const nan))";
    let cases = [
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
        ("a total that is no number", nan, "bad_output"),
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
    for (name, price, fault) in cases {
        check(name, "pricer", &pricer(price), fault, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_means_harm_is_stood_in_for() {
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
async fn a_rewriter_that_means_harm_refuses_its_requests_and_no_others() {
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
async fn a_field_that_carries_a_secret_or_frames_a_message_is_set_by_no_component() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_traps_in_configure_stops_the_start_in_words() {
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
async fn a_guest_that_loops_in_configure_is_given_up_and_told() {
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
