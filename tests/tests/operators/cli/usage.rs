//! `tollgate usage`.

use super::*;

/// A rig whose gateway has served alice two turns and bob one, and was stopped.
async fn served() -> Rig {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a"], json!({}));
    rig.write("case.json", config.to_string());
    let client = rig.start(config).await;
    for (token, session) in [
        ("token-alice", "one"),
        ("token-alice", "one"),
        ("token-bob", "two"),
    ] {
        assert_eq!(client.token(token).turn(&turn(session)).await.status, 200);
    }
    rig.stop().await;
    rig
}

fn usage(rig: &Rig, args: &[&str]) -> String {
    let said = tollgate(
        rig.folder(),
        &[&["usage", "-c", "case.json"], args].concat(),
    );
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    said.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn is_a_table_for_people() {
    let rig = served().await;
    let expected = "\
user   requests  not complete  input  cached  output  reasoning     cost  unpriced
----------------------------------------------------------------------------------
alice         2             0  2,400   1,600     300        100  $0.0069         0
bob           1             0  1,200     800     150         50  $0.0035         0
----------------------------------------------------------------------------------
all           3             0  3,600   2,400     450        150  $0.0104         0
";
    let table = usage(&rig, &[]);
    assert_eq!(table, expected);
    assert_eq!(
        usage(&rig, &["--by", "user"]),
        table,
        "by user is the default"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_what_the_ledger_has_in_every_form() {
    let rig = served().await;
    let rows = wait_for_rows(&rig.ledger(), 3).await;
    let of = |user: &str, column: &str| -> i64 {
        let of_user = rows.iter().filter(|row| row.text("user") == Some(user));
        of_user
            .map(|row| row.number(column).expect("a number"))
            .sum()
    };

    let found: Value = serde_json::from_str(&usage(&rig, &["--json"])).expect("JSON");
    let row = |user: &str, requests: i64| {
        json!({
            "user": user, "requests": requests, "not_complete": 0,
            "input_tokens": of(user, "input_tokens"), "cached_tokens": of(user, "cached_tokens"),
            "output_tokens": of(user, "output_tokens"), "reasoning_tokens": of(user, "reasoning_tokens"),
            "cost_nanousd": of(user, "cost_nanousd"), "unpriced": 0,
        })
    };
    assert_eq!(
        found,
        json!([row("alice", 2), row("bob", 1)]),
        "the most expensive first"
    );

    let csv = usage(&rig, &["--csv"]);
    let line = |user: &str, requests: i64| {
        let cost = of(user, "cost_nanousd");
        let tokens = [
            "input_tokens",
            "cached_tokens",
            "output_tokens",
            "reasoning_tokens",
        ]
        .map(|name| of(user, name));
        let tokens: Vec<String> = tokens.iter().map(i64::to_string).collect();
        format!(
            "{user},{requests},0,{},{}.{:09},0\n",
            tokens.join(","),
            cost / 1_000_000_000,
            cost % 1_000_000_000
        )
    };
    let head = "user,requests,not_complete,input,cached,output,reasoning,cost_usd,unpriced\n";
    assert_eq!(csv, format!("{head}{}{}", line("alice", 2), line("bob", 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn can_be_summed_by_each_thing() {
    let rig = served().await;
    let started = wait_for_rows(&rig.ledger(), 3).await[0]
        .number("started_at")
        .expect("a number");
    let at = time::OffsetDateTime::from_unix_timestamp(started / 1000).expect("a time");
    for (by, expected) in [
        ("model", "gpt-5.4".to_owned()),
        ("credential", "a".to_owned()),
        ("day", at.date().to_string()),
    ] {
        let found: Value =
            serde_json::from_str(&usage(&rig, &["--by", by, "--json"])).expect("JSON");
        assert_eq!(
            (&found[0][by], &found[0]["requests"]),
            (&json!(expected), &json!(3)),
            "{by}"
        );
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{by}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn is_printed_while_the_gateway_runs() {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a"], json!({}));
    rig.write("case.json", config.to_string());
    let client = rig.start(config).await.token("token-alice");
    client.turn(&turn("one")).await;
    wait_for_rows(&rig.ledger(), 1).await;
    assert!(usage(&rig, &["--csv"]).contains("\nalice,1,0,"));
    assert_eq!(
        client.turn(&turn("one")).await.status,
        200,
        "and the gateway keeps running"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_ledger_without_requests_is_empty_in_every_form() {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a"], json!({}));
    rig.write("case.json", config.to_string());
    rig.start(config).await;
    rig.stop().await;
    assert_eq!(usage(&rig, &[]), "no requests yet\n");
    assert_eq!(usage(&rig, &["--json"]), "[]\n");
    let head = "user,requests,not_complete,input,cached,output,reasoning,cost_usd,unpriced\n";
    assert_eq!(usage(&rig, &["--csv"]), head);
}

#[track_caller]
fn check_refused(folder: &Path, expected: &str) {
    for form in [&[][..], &["--json"], &["--csv"]] {
        let said = tollgate(folder, &[&["usage", "-c", "case.json"], form].concat());
        let expected = Said {
            code: Some(1),
            stdout: String::new(),
            stderr: format!("tollgate: {expected}\n"),
        };
        assert_eq!(said, expected);
    }
}

fn with_config() -> TempDir {
    let folder = folder();
    let config = json!({ "services": [{ "type": "ocm" }], "data_dir": "data" });
    fs::write(folder.path().join("case.json"), config.to_string()).expect("a file");
    folder
}

#[test]
fn of_a_missing_ledger_asks_whether_the_gateway_has_run() {
    let folder = with_config();
    let expected = "no ledger at data/ledger.db: has the gateway run with this data_dir?";
    check_refused(folder.path(), expected);
    assert!(
        !folder.path().join("data").exists(),
        "reading makes nothing"
    );
}

#[test]
fn of_a_file_that_is_not_a_ledger_reports_it() {
    let folder = with_config();
    fs::create_dir(folder.path().join("data")).expect("a folder");
    fs::write(
        folder.path().join("data/ledger.db"),
        "my diary\n".repeat(100),
    )
    .expect("a file");
    let expected = "data/ledger.db: expected a Tollgate ledger, found another kind of file; the file was not changed";
    check_refused(folder.path(), expected);
}

/// A gateway that was killed while it made its ledger leaves one.
#[test]
fn of_an_empty_file_is_reported() {
    let folder = with_config();
    fs::create_dir(folder.path().join("data")).expect("a folder");
    fs::write(folder.path().join("data/ledger.db"), "").expect("a file");
    let said = tollgate(folder.path(), &["usage", "-c", "case.json"]);
    assert!(
        !said.stderr.contains("no such table"),
        "SQL is shown: {}",
        said.stderr
    );
}

#[test]
fn without_a_configuration_looks_where_run_would_write() {
    let folder = folder();
    let said = tollgate(folder.path(), &["usage"]);
    let ledger = folder.path().join(".local/share/tollgate/ledger.db");
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(text_of(&ledger)), "{}", said.stderr);
}
