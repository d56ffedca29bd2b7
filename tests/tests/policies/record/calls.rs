//! Recorded calls: their content, their rotation, and the secrets that they must not have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_tests::upstream::WAIT_MAX;
use tollgate_tests::{Rig, component, wait_for_rows};

use super::{ALICE, HEADER, config, turns};

const COOKIE: &str = "canary-cookie";

const SENT: &str = "canary-header-of-the-client";

const ACCESS: &str = "access-canary";

/// The smallest value that `limits.policy_record_bytes` accepts.
const RECORD_BYTES: u64 = 4096;

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

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_a_line_with_its_arguments_its_result_and_its_generation() {
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
async fn a_record_continues_after_a_restart_and_keeps_its_mode() {
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
