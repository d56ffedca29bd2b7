//! Records of policies' calls: their content, their bounds, and the absence of secrets.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::WAIT_MAX;
use tollgate_tests::{Client, Mounted, Rig, component, make_fifo, turn, wait_for_rows};

const ALICE: &str = "canary-token-of-alice";
const COOKIE: &str = "canary-cookie";
const SENT: &str = "canary-header-of-the-client";
const HEADER: &str = "canary-configured-header";
const ACCESS: &str = "access-canary";

/// The smallest `limits.policy_record_bytes`.
const RECORD_BYTES: u64 = 4096;

/// A team of two accounts whose balancer, rewriter and pricer are recorded, in a file each.
fn config(rig: &Rig) -> Value {
    let mut config = rig.team(&["canary", "other"], json!({ "strategy": "chooses" }));
    let service = &mut config["services"][0];
    service["users"][0]["token"] = json!(ALICE);
    service["pricer"] = json!("prices");
    service["rewriters"] = json!(["writes"]);
    let own = |tag: &str, kind: &str, name: &str, settings: Value| {
        json!({
            "tag": tag, "kind": kind, "path": format!("builtin:{name}"), "config": settings,
            "record": rig.path(&format!("{tag}.jsonl")),
        })
    };
    config["policies"] = json!([
        own("chooses", "balancer", "round-robin", json!({})),
        own(
            "writes",
            "rewriter",
            "standard-headers",
            json!({ "set": { "x-own": [HEADER] } })
        ),
        own("prices", "pricer", "openai-pricing", json!({})),
    ]);
    config
}

/// Waits until the record `name` has `count` calls, and returns them.
async fn calls(rig: &Rig, name: &str, count: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(rig.path(name)).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let found: Vec<Value> = whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        assert!(
            found.len() <= count,
            "{} calls, expected {count}",
            found.len()
        );
        if found.len() == count {
            return found;
        }
        assert!(
            begun.elapsed() < WAIT_MAX,
            "{} calls, expected {count}",
            found.len()
        );
        // A thread writes it, and no event says when.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn turns(client: &Client, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for session in 0..count {
        let answer = client.turn(&turn(&format!("session {session}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        ids.push(answer.request_id());
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_a_line_with_its_arguments_its_result_and_who_said_it() {
    let mut rig = Rig::new().await;
    let config = config(&rig);
    let client = rig.start_polled(config).await.token(ALICE);
    let ids = turns(&client, 3).await;
    for (tag, call, each) in [
        ("chooses", "pick", 1),
        ("writes", "rewrite-request", 1),
        ("prices", "price", 1),
    ] {
        let policy = rig.policy(tag).await;
        let found = calls(&rig, &format!("{tag}.jsonl"), 3 * each).await;
        for (call_of, id) in found.iter().zip(&ids) {
            assert_eq!(call_of["policy"], tag);
            assert_eq!(
                (&call_of["generation"], &call_of["digest"]),
                (&json!(1), &policy["digest"])
            );
            assert_eq!(call_of["call"], call, "{call_of:#}");
            assert_eq!(call_of["request"]["request_id"], *id);
            assert!(call_of["took_ns"].is_u64(), "{call_of:#}");
        }
        let mode = fs::metadata(rig.path(&format!("{tag}.jsonl")))
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{tag}");
    }
    let picked = calls(&rig, "chooses.jsonl", 3).await;
    let rows = wait_for_rows(&rig.ledger(), 3).await;
    for (call, row) in picked.iter().zip(&rows) {
        let (members, columns, table) = (
            &call["members"],
            call["columns"].as_array().expect("a list"),
            call["table"].as_array().expect("a list"),
        );
        assert_eq!(*members, json!([["canary", "plus"], ["other", "plus"]]));
        assert_eq!(table.len(), 2 * columns.len());
        assert_eq!(call["home"], -1);
        let index = call["said"]["index"].as_u64().expect("an index") as usize;
        assert_eq!(members[index][0].as_str(), row.text("credential"));
    }
    let priced = calls(&rig, "prices.jsonl", 3).await;
    for (call, row) in priced.iter().zip(&rows) {
        assert_eq!(call["said"]["nanousd"].as_i64(), row.number("cost_nanousd"));
    }
    let edits = &calls(&rig, "writes.jsonl", 3).await[0]["said"]["edits"];
    assert_eq!(
        (&edits[0]["edit"], &edits[0]["name"]),
        (&json!("set"), &json!("x-own"))
    );
    assert!(
        edits[0]["value_sha256"]
            .as_str()
            .is_some_and(|digest| digest.len() == 16),
        "{edits:#}"
    );
    rig.stop().await;
}

/// Checks that no record contains a secret if the rewriters run in that order: `spies` requests
/// every header that a rewriter may see.
async fn check_no_secret(rewriters: [&str; 2]) {
    let mut rig = Rig::new().await;
    let mut config = config(&rig);
    config["policies"].as_array_mut().expect("a list").push(json!({
        "tag": "spies", "kind": "rewriter", "path": component("faulty-rewriter"), "config": { "fault": "spy" },
        "record": rig.path("spies.jsonl"),
    }));
    config["services"][0]["rewriters"] = json!(rewriters);
    let client = rig
        .start(config)
        .await
        .token(ALICE)
        .header("cookie", COOKIE)
        .header("x-auth-token", SENT);
    turns(&client, 2).await;
    for (tag, count) in [("chooses", 2), ("writes", 2), ("prices", 2), ("spies", 4)] {
        calls(&rig, &format!("{tag}.jsonl"), count).await;
        let text = fs::read_to_string(rig.path(&format!("{tag}.jsonl"))).expect("it is there");
        for secret in [
            ALICE,
            COOKIE,
            HEADER,
            ACCESS,
            "refresh-access",
            "account-canary",
            SENT,
        ] {
            assert!(
                !text.contains(secret),
                "{secret} is in the record of {tag}: {text}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_has_a_secret() {
    check_no_secret(["spies", "writes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_has_the_header_value_that_an_earlier_policy_set() {
    check_no_secret(["writes", "spies"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_record_is_rotated_and_a_limited_number_is_kept() {
    for (kept, files) in [
        (2, &["r", "r.1", "r.2"][..]),
        (1, &["r", "r.1"]),
        (0, &["r"]),
    ] {
        let mut rig = Rig::new().await;
        let mut config = config(&rig);
        fs::create_dir(rig.path("records")).expect("a folder can be made");
        config["policies"][2]["record"] = json!(rig.path("records/r"));
        config["limits"] =
            json!({ "policy_record_bytes": RECORD_BYTES, "policy_record_files": kept });
        let client = rig.start(config).await.token(ALICE);
        let ids = turns(&client, 60).await;
        // The gateway writes pending calls when it ends.
        rig.stop().await;
        let entries = fs::read_dir(rig.path("records")).expect("it is there");
        let found: BTreeSet<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a plain name")
            })
            .collect();
        assert_eq!(
            found,
            files.iter().map(|name| (*name).to_owned()).collect(),
            "{kept} are kept"
        );
        let mut newest = Vec::new();
        for name in files.iter().rev() {
            let path = rig.path("records").join(name);
            let meta = fs::metadata(&path).expect("it is there");
            assert!(
                meta.len() <= RECORD_BYTES,
                "{name} of {kept}: {} bytes",
                meta.len()
            );
            assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
            for line in fs::read_to_string(&path).expect("it is text").lines() {
                let call: Value = serde_json::from_str(line).expect("a whole call");
                newest.push(
                    call["request"]["request_id"]
                        .as_str()
                        .expect("an id")
                        .to_owned(),
                );
            }
        }
        assert!(
            !newest.is_empty() && ids.ends_with(&newest),
            "{kept}: they are the newest, in order"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_goes_on_after_a_start_and_keeps_its_mode() {
    let mut rig = Rig::new().await;
    let config = config(&rig);
    for count in [2, 4] {
        let client = rig.start(config.clone()).await.token(ALICE);
        turns(&client, 2).await;
        rig.stop().await;
        calls(&rig, "prices.jsonl", count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_record_is_created_again_when_it_is_full() {
    let mut rig = Rig::new().await;
    let mut config = config(&rig);
    config["limits"] = json!({ "policy_record_bytes": RECORD_BYTES });
    let client = rig.start(config).await.token(ALICE);
    turns(&client, 1).await;
    calls(&rig, "prices.jsonl", 1).await;
    // As an operator does to free space.
    fs::remove_file(rig.path("prices.jsonl")).expect("it is there");
    turns(&client, 60).await;
    rig.stop().await;
    assert!(
        rig.path("prices.jsonl").exists(),
        "further calls are recorded"
    );
}

// Where it cannot be written

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_no_file_is_named_at_the_start() {
    for (what, make) in [
        ("a FIFO", make_fifo as fn(&Path)),
        ("a folder", |path| {
            fs::create_dir(path).expect("a folder can be made")
        }),
        ("a socket", |path| {
            drop(std::os::unix::net::UnixListener::bind(path).expect("it binds"))
        }),
        ("a link to nowhere", |path| {
            std::os::unix::fs::symlink("/nowhere/at/all", path).expect("a link can be made")
        }),
        ("a device", |path| {
            std::os::unix::fs::symlink("/dev/null", path).expect("a link can be made")
        }),
    ] {
        let mut rig = Rig::new().await;
        let config = config(&rig);
        make(&rig.path("prices.jsonl"));
        let error = rig
            .try_start(config)
            .await
            .err()
            .unwrap_or_else(|| panic!("{what}: it starts"))
            .to_string();
        for named in ["policies[2]", "prices.jsonl"] {
            assert!(error.contains(named), "{what}: {named} is not in {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_calls_and_no_request() {
    let mut rig = Rig::new().await;
    let Some(disk) = Mounted::new(&rig.path("disk"), 256 * 1024) else {
        return;
    };
    let mut config = config(&rig);
    let record = rig.path("disk/record");
    config["policies"][2]["record"] = json!(record);
    let filler = disk.fill();
    let client = rig.start(config).await.token(ALICE);
    turns(&client, 40).await;
    assert_eq!(wait_for_rows(&rig.ledger(), 40).await.len(), 40);
    fs::remove_file(filler).expect("it is there");
    turns(&client, 5).await;
    rig.stop().await;
    let text = fs::read_to_string(&record).expect("it is there");
    let whole = text
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok())
        .count();
    assert!(
        whole >= 5 && text.ends_with('\n'),
        "{whole} of {} lines are whole",
        text.lines().count()
    );
}

// Shadows

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
