//! The commands that use the admin API.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Rig, Said, tollgate, turn};

use super::{ADMIN, ALICE, config};

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
