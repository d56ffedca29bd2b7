//! `tollgate policy replay` and `tollgate explain`: what a component would have said, and why a
//! request went where it went.

use std::fs;
use std::path::Path;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Rig, Said, component, tollgate, turn};

/// A stopped gateway, whose balancer and pricer were recorded in one file: twelve picks and twelve
/// prices.
async fn recorded() -> (Rig, Vec<String>) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "chooses" }));
    config["services"][0]["pricer"] = json!("prices");
    config["policies"] = json!([
        { "tag": "chooses", "kind": "balancer", "path": "builtin:round-robin", "record": rig.path("chooses.jsonl") },
        { "tag": "prices", "kind": "pricer", "path": "builtin:openai-pricing", "record": rig.path("prices.jsonl") },
    ]);
    rig.write("config.json", config.to_string());
    let client = rig.start_polled(config).await.token("token-alice");
    let mut ids = Vec::new();
    for session in 0..12 {
        let answer = client.turn(&turn(&format!("session {session}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        ids.push(answer.request_id());
    }
    rig.stop().await;
    let both = ["chooses", "prices"]
        .map(|tag| fs::read_to_string(rig.path(&format!("{tag}.jsonl"))).expect("a record"));
    rig.write("both.jsonl", both.concat());
    (rig, ids)
}

fn replay(component: impl AsRef<Path>, record: &Path, more: &[&str]) -> Said {
    let path = |path: &Path| path.to_str().expect("a plain name").to_owned();
    let mut args = vec![
        "policy".to_owned(),
        "replay".to_owned(),
        path(component.as_ref()),
        path(record),
    ];
    args.extend(more.iter().map(|more| (*more).to_owned()));
    tollgate(args)
}

fn last_line(said: &Said) -> &str {
    said.stdout.lines().last().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_component_returns_the_same_results() {
    let (rig, _) = recorded().await;
    for (component, name) in [
        (component("round-robin"), "chooses.jsonl"),
        ("builtin:round-robin".into(), "chooses.jsonl"),
        (component("openai-pricing"), "prices.jsonl"),
        ("builtin:openai-pricing".into(), "prices.jsonl"),
    ] {
        let said = replay(&component, &rig.path(name), &[]);
        assert_eq!(
            (said.code, said.stderr.as_str()),
            (Some(0), ""),
            "{}",
            said.stdout
        );
        assert_eq!(
            said.stdout,
            "12 calls repeated, 0 differ, 0 of other policies skipped\n"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_components_differences_are_printed_and_it_exits_with_1() {
    let (rig, ids) = recorded().await;
    let good = fs::read_to_string(rig.path("chooses.jsonl")).expect("a record");
    let said_of_b = r#""says":"member","index":1"#;
    let lines: Vec<String> = good
        .lines()
        .enumerate()
        .map(|(place, line)| {
            if place < 4 {
                line.replace(said_of_b, r#""says":"member","index":0"#)
            } else {
                line.to_owned()
            }
        })
        .collect();
    rig.write("altered.jsonl", lines.join("\n"));
    let said = replay("builtin:round-robin", &rig.path("altered.jsonl"), &[]);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert_eq!(
        last_line(&said),
        "12 calls repeated, 2 differ, 0 of other policies skipped"
    );
    assert!(
        said.stderr.contains("gives other results in 2 of 12 calls"),
        "{}",
        said.stderr
    );
    let printed: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(
        printed[0],
        format!("line 2, request {}, policy \"chooses\"", ids[1])
    );
    assert!(
        printed[1].starts_with("  recorded: ") && printed[1].contains("\"index\":0"),
        "{}",
        printed[1]
    );
    assert!(
        printed[2].starts_with("  replayed: ") && printed[2].contains("\"index\":1"),
        "{}",
        printed[2]
    );
    let said = replay("builtin:fallback", &rig.path("chooses.jsonl"), &[]);
    assert_eq!(
        (said.code, last_line(&said)),
        (
            Some(1),
            "12 calls repeated, 12 differ, 0 of other policies skipped"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_the_tag_decide_what_is_repeated() {
    let (rig, _) = recorded().await;
    let expensive = json!({ "prices": { "gpt-5.4": {
        "source": "a test", "date": "2026-01-01", "default": { "input": 99.0, "cached": 9.0, "output": 99.0 },
    } } });
    let both = rig.path("both.jsonl");
    let said = replay(
        "builtin:openai-pricing",
        &both,
        &["--policy-config", &expensive.to_string()],
    );
    assert_eq!(
        (said.code, last_line(&said)),
        (
            Some(1),
            "12 calls repeated, 12 differ, 12 of other policies skipped"
        )
    );
    for (more, code, line) in [
        (
            &[][..],
            0,
            "12 calls repeated, 0 differ, 12 of other policies skipped",
        ),
        (
            &["--tag", "prices"],
            0,
            "12 calls repeated, 0 differ, 12 of other policies skipped",
        ),
        (
            &["--tag", "chooses"],
            1,
            "0 calls repeated, 0 differ, 24 of other policies skipped",
        ),
        (
            &["--tag", "unknown"],
            1,
            "0 calls repeated, 0 differ, 24 of other policies skipped",
        ),
    ] {
        let said = replay("builtin:openai-pricing", &both, more);
        assert_eq!(
            (said.code, last_line(&said)),
            (Some(code), line),
            "{more:?}: {}",
            said.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_twenty_differences_are_printed_and_all_are_counted() {
    let (rig, _) = recorded().await;
    let one = fs::read_to_string(rig.path("chooses.jsonl")).expect("a record");
    rig.write("long.jsonl", one.repeat(10));
    let said = replay("builtin:fallback", &rig.path("long.jsonl"), &[]);
    assert_eq!(
        said.stdout
            .lines()
            .filter(|line| line.starts_with("line "))
            .count(),
        20
    );
    assert!(
        said.stdout.contains("... and 100 more\n"),
        "{}",
        said.stdout
    );
    assert_eq!(
        last_line(&said),
        "120 calls repeated, 120 differ, 0 of other policies skipped"
    );
}

/// Writes records that are cut, foreign or empty, beside the good one.
fn write_broken_records(rig: &Rig) {
    let good = fs::read_to_string(rig.path("chooses.jsonl")).expect("a record");
    let first = good.lines().next().expect("a line");
    rig.write("text.jsonl", format!("{first}\n\nno call\n"));
    rig.write(
        "cut.jsonl",
        format!("{first}\n{}", &first[..first.len() / 2]),
    );
    rig.write("other.jsonl", format!("{first}\n{{\"a\": 1}}\n"));
    rig.write("binary.jsonl", b"\xff\xfe\n");
    rig.write("empty.jsonl", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_cannot_be_replayed_are_named() {
    let (rig, _) = recorded().await;
    write_broken_records(&rig);
    let module = rig.write("module.wasm", b"\0asm\x01\0\0\0");
    let shipped = "builtin:round-robin";
    for (component, name, more, named) in [
        (
            shipped,
            "text.jsonl",
            &[][..],
            "text.jsonl line 3: expected a recorded call",
        ),
        (
            shipped,
            "cut.jsonl",
            &[],
            "cut.jsonl line 2: expected a recorded call",
        ),
        (
            shipped,
            "other.jsonl",
            &[],
            "other.jsonl line 2: expected a recorded call",
        ),
        (shipped, "binary.jsonl", &[], "binary.jsonl"),
        (shipped, "empty.jsonl", &[], "no calls that"),
        (shipped, "missing.jsonl", &[], "missing.jsonl: no such file"),
        (
            "builtin:unknown",
            "chooses.jsonl",
            &[],
            "no shipped policy has this name",
        ),
        (
            "/nowhere/p.wasm",
            "chooses.jsonl",
            &[],
            "/nowhere/p.wasm: no such file",
        ),
        (
            &module,
            "chooses.jsonl",
            &[],
            "expected a balancer, rewriter or pricer",
        ),
        (
            shipped,
            "chooses.jsonl",
            &["--policy-config", "{"],
            "--policy-config: expected JSON",
        ),
        (
            "builtin:openai-pricing",
            "prices.jsonl",
            &["--policy-config", "{\"x\":1}"],
            "x",
        ),
    ] {
        let said = replay(component, &rig.path(name), more);
        assert_eq!(said.code, Some(1), "{component} {name}: {}", said.stdout);
        assert!(
            said.stderr.starts_with("tollgate: ") && said.stderr.contains(named),
            "{name}: {named}: {}",
            said.stderr
        );
    }
}

// Explained

fn explain(rig: &Rig, id: &str) -> Said {
    tollgate([
        "explain",
        id,
        "-c",
        rig.path("config.json").to_str().expect("a plain name"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_explained_by_its_row_and_the_results_of_its_policies() {
    let (rig, ids) = recorded().await;
    let said = explain(&rig, &ids[1]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let cost: Value = serde_json::from_str(
        fs::read_to_string(rig.path("prices.jsonl"))
            .expect("a record")
            .lines()
            .nth(1)
            .expect("a line"),
    )
    .expect("a call");
    assert_eq!(cost["request"]["request_id"], ids[1]);
    for line in [
        &format!("request {}", ids[1]),
        "  /v1/responses by alice at",
        "  model gpt-5.4",
        "  status 200, complete after",
        "  attempts: b: 200",
        "  tokens: 1200 in",
        "policy \"chooses\", generation 1 (sha256:",
        "  the session has no home yet",
        "  result: \"b\"",
        "policy \"prices\", generation 1 (sha256:",
    ] {
        assert!(
            said.stdout.lines().any(|found| found.starts_with(line)),
            "no line {line:?} in\n{}",
            said.stdout
        );
    }
    for member in ["a", "b"] {
        let row = said
            .stdout
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{member} ")));
        assert!(
            row.is_some_and(|row| row.contains("plus") && row.contains("yes")),
            "{member} in\n{}",
            said.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_request_is_reported_as_unknown() {
    let (rig, ids) = recorded().await;
    for id in [
        "unknown",
        "",
        &ids[0][..8],
        "0197aaaa-0000-7000-8000-000000000000",
    ] {
        let said = explain(&rig, id);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{id}");
        assert!(
            said.stderr
                .contains("not found in the ledger or in a policy's record"),
            "{id}: {}",
            said.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_recorded_calls_is_explained_by_its_row() {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    rig.write("config.json", config.to_string());
    let client = rig.start(config).await.token("token-alice");
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK);
    rig.stop().await;
    let said = explain(&rig, &answer.request_id());
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    for text in [
        "attempts: a: 429, then b: 200",
        "No policy call was recorded",
    ] {
        assert!(
            said.stdout.contains(text),
            "no {text:?} in\n{}",
            said.stdout
        );
    }
}
