//! The admin API: who may do what, and what its responses contain.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Answer, Client, Rig, Said, ask_socket, tollgate, turn};

const ADMIN: &str = "canary-admin-token";
const ALICE: &str = "canary-token-of-alice";
const HEADER: &str = "canary-header-value";
const ACCESS: &str = "access-canary";

/// The longest wait for what the gateway does by itself.
const SOON: Duration = Duration::from_secs(20);

/// A team on a pool of `canary`, a policy `mine`, and an admin listener.
fn config(rig: &Rig, admin: Value) -> Value {
    let mut config = rig.team(&["canary"], json!({}));
    let service = &mut config["services"][0];
    service["users"][0]["token"] = json!(ALICE);
    service["headers"] = json!({ "x-own": HEADER });
    service["pricer"] = json!("mine");
    config["policies"] =
        json!([{ "tag": "mine", "kind": "pricer", "path": "builtin:openai-pricing" }]);
    let mut whole = json!({ "listen_port": 0 });
    whole
        .as_object_mut()
        .expect("an object")
        .extend(admin.as_object().expect("an object").clone());
    config["admin"] = whole;
    config
}

/// A running gateway, a client of its service, and one of its admin listener.
async fn running(admin: Value) -> (Rig, Client, Client) {
    let mut rig = Rig::new().await;
    let config = config(&rig, admin);
    let client = rig.start(config).await.token(ALICE);
    let admin = rig.admin();
    (rig, client, admin)
}

#[track_caller]
fn check(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text());
    let kind = answer.header("content-type").unwrap_or_default();
    let json = kind == "application/json" && answer.json().is_object();
    assert!(json || kind.starts_with("text/plain"), "{what}: {kind}");
    if status >= 400 && status != 503 {
        assert!(
            answer.json()["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{what}: {}",
            answer.text()
        );
    }
}

// Access

const LOOKS: [&str; 5] = [
    "/metrics",
    "/status",
    "/api/status",
    "/api/policies",
    "/api/policies/mine/disagreements",
];
const CHANGES: [&str; 2] = ["/api/policies/mine/reload", "/api/policies/mine/rollback"];

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_every_request_reads_and_none_changes() {
    let (mut rig, _, admin) = running(json!({})).await;
    for admin in [admin.clone(), admin.token("anything")] {
        for path in ["/healthz", "/readyz"].iter().chain(&LOOKS[..4]) {
            check(&admin.get(path).await, 200, path);
        }
        check(&admin.get(LOOKS[4]).await, 404, "there is no shadow");
        for path in CHANGES {
            check(&admin.ask(Method::POST, path, "").await, 403, path);
        }
    }
    assert_eq!(rig.policy("mine").await["generation"], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_its_holders_read_and_change_and_others_see_health_alone() {
    let (mut rig, _, admin) = running(json!({ "token": ADMIN })).await;
    let longer = format!("{ADMIN}x");
    let others = [
        ("without a token", admin.clone()),
        ("another's", admin.token("token-bob")),
        ("a user's", admin.token(ALICE)),
        ("empty", admin.token("")),
        ("cut", admin.token(&ADMIN[..ADMIN.len() - 1])),
        ("longer", admin.token(&longer)),
        (
            "of another scheme",
            admin.header("authorization", &format!("Basic {ADMIN}")),
        ),
        ("without a scheme", admin.header("authorization", ADMIN)),
    ];
    for (who, other) in others {
        for path in ["/healthz", "/readyz"] {
            check(&other.get(path).await, 200, who);
        }
        for path in LOOKS.iter().chain(&["/nowhere"]) {
            let answer = other.get(path).await;
            check(&answer, 401, &format!("{who} at {path}"));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{who}");
        }
        for path in CHANGES {
            check(
                &other.ask(Method::POST, path, "").await,
                401,
                &format!("{who} at {path}"),
            );
        }
    }
    let holder = admin.token(ADMIN);
    for path in &LOOKS[..4] {
        check(&holder.get(path).await, 200, path);
    }
    check(
        &holder.ask(Method::POST, CHANGES[1], "").await,
        409,
        "there is nothing to go back to",
    );
    check(
        &holder.ask(Method::POST, CHANGES[0], "").await,
        200,
        "a reload",
    );
    assert_eq!(rig.policy("mine").await["generation"], 2);
    check(&holder.ask(Method::POST, CHANGES[1], "").await, 200, "back");
    assert_eq!(rig.policy("mine").await["generation"], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_socket_its_owner_needs_no_token() {
    let (mut rig, _, _) = running(json!({ "token": ADMIN })).await;
    for path in &LOOKS[..4] {
        check(
            &ask_socket(&rig.socket(), Method::GET, path).await,
            200,
            path,
        );
    }
    check(
        &ask_socket(&rig.socket(), Method::POST, CHANGES[0]).await,
        200,
        "a reload",
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_404_and_unknown_methods_405() {
    let (mut rig, _, admin) = running(json!({ "token": ADMIN })).await;
    let admin = admin.token(ADMIN);
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/nowhere", 404),
        (Method::GET, "/api", 404),
        (Method::GET, "/api/policies/mine", 404),
        (Method::GET, "/api/policies/mine/reload", 404),
        (Method::GET, "/api/policies/unknown/disagreements", 404),
        (Method::GET, "/v1/models", 404),
        (Method::POST, "/metrics", 405),
        (Method::PUT, "/healthz", 405),
        (Method::DELETE, "/api/policies/mine/reload", 405),
        (Method::POST, "/api/policies/mine/remove", 405),
        (Method::POST, "/api/policies/unknown/reload", 409),
        (Method::POST, "/api/policies/unknown/rollback", 409),
        (Method::GET, "/healthz/", 200),
        (Method::GET, "/metrics?name=x", 200),
    ] {
        check(
            &admin.ask(method.clone(), path, "").await,
            status,
            &format!("{method} {path}"),
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_beyond_the_limit_wait_and_none_is_lost() {
    let (mut rig, _, admin) = running(json!({})).await;
    let asking = (0..100).map(|_| {
        let admin = admin.clone();
        tokio::spawn(async move { admin.get("/metrics").await.status })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.expect("it is answered"), StatusCode::OK);
    }
    rig.stop().await;
}

// Health

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

// Reports

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

// The commands

/// Returns a report of policies without what changes between two of them: a gateway that has just
/// started reads its files once more.
fn without_times(mut report: Value) -> Value {
    report["at"] = Value::Null;
    for policy in report["policies"].as_array_mut().expect("a list") {
        policy["loading"] = Value::Null;
    }
    report
}

/// Checks the table of a policy `mine` that was called once.
fn check_list(table: &Said) {
    assert_eq!((table.code, table.stderr.as_str()), (Some(0), ""));
    let lines: Vec<Vec<&str>> = table
        .stdout
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    let head = [
        "policy",
        "kind",
        "component",
        "gen",
        "state",
        "calls",
        "faults",
        "p50",
        "p99",
        "last reload",
    ];
    assert_eq!(lines[0], head);
    let mine = lines.iter().find(|line| line[0] == "mine").expect("a row");
    assert_eq!(
        (mine.len(), mine[1], mine[3], mine[5], mine[6]),
        (10, "pricer", "1", "1", "0"),
        "{mine:?}"
    );
    assert!(mine[4].starts_with("serving"), "{mine:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_policies_is_that_of_the_admin_api() {
    let rig = Rig::new().await;
    let path = rig.write(
        "prices.wasm",
        std::fs::read(tollgate_tests::component("openai-pricing")).expect("it is built"),
    );
    let mut config = config(&rig, json!({ "token": ADMIN }));
    config["policies"][0]["path"] = json!(path);
    let program = rig.spawn(&config).await;
    assert_eq!(
        program
            .client()
            .token(ALICE)
            .turn(&turn("one"))
            .await
            .status,
        StatusCode::OK
    );
    let file = rig.path("config.json");
    let list = |more: &[&str]| {
        tollgate(
            ["policy", "list", "-c", file.to_str().expect("plain")]
                .iter()
                .chain(more),
        )
    };

    let reported = program
        .admin()
        .token(ADMIN)
        .get("/api/policies")
        .await
        .json();
    assert_eq!(
        without_times(list(&["--json"]).json()),
        without_times(reported)
    );
    check_list(&list(&[]));

    // A failure is reported below the table, with its reason.
    rig.write("prices.wasm", b"\0asm\x01\0\0\0");
    let failed = tollgate([
        "policy",
        "reload",
        "mine",
        "-c",
        file.to_str().expect("plain"),
    ]);
    assert_eq!(failed.code, Some(1), "{}", failed.stdout);
    assert!(failed.stderr.contains("core module"), "{}", failed.stderr);
    let table = list(&[]).stdout;
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("mine: failed: ") && line.contains("core module")),
        "{table}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_with_any_tag_can_be_reloaded_by_command() {
    let rig = Rig::new().await;
    let tags = ["with a blank", "mit-Ümlaut", "of/two", "a?b", "per%cent"];
    let mut config = config(&rig, json!({}));
    let own = |tag: &str| json!({ "tag": tag, "kind": "pricer", "path": "builtin:openai-pricing" });
    config["policies"]
        .as_array_mut()
        .expect("a list")
        .extend(tags.map(own));
    let _program = rig.spawn(&config).await;
    let file = rig.path("config.json");
    for tag in tags {
        let said = tollgate(["policy", "reload", tag, "-c", file.to_str().expect("plain")]);
        assert_eq!(
            (said.code, said.stderr.as_str()),
            (Some(0), ""),
            "{tag}: {}",
            said.stdout
        );
    }
}
