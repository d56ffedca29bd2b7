//! The log of the real binary: the event of a request, and the effects of `log` in a configuration.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Usage};
use tollgate_tests::{Client, Program, Rig, Row, turn, wait_for_rows};

/// Starts the real binary with a team on `a` and then `b` and with this `log`. Returns alice's
/// client as well.
async fn start(rig: &Rig, log: Value) -> (Program, Client) {
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    config["log"] = log;
    let program = rig.spawn(&config).await;
    let client = program.client().token("token-alice");
    (program, client)
}

/// The events of a log of JSON.
fn events(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Waits until the log has a line that contains all of `parts`. Returns the line.
async fn wait_for_line(program: &Program, parts: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let log = program.log();
        if let Some(line) = log
            .lines()
            .find(|line| parts.iter().all(|part| line.contains(part)))
        {
            return line.to_owned();
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "no line has {parts:?}:\n{log}"
        );
        // Another process writes the file: only its content can be awaited.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// A request's event

/// Returns the value of a column as the log writes it.
fn as_logged(column: &str, value: Value, row: &Row) -> Value {
    match column {
        "attempts" => {
            let attempts = row
                .attempts()
                .into_iter()
                .map(|(credential, outcome)| format!("{credential}={outcome}"));
            attempts.collect::<Vec<_>>().join(",").into()
        }
        "prewarm" => (value != 0).into(),
        _ => value,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_request_has_a_field_for_every_column_of_its_row() {
    let rig = Rig::new().await;
    let (program, client) = start(&rig, json!({ "format": "json" })).await;
    let client = client.header("session-id", "session-1");
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    let used = Usage {
        input: 1000,
        cached: 600,
        cache_write: 100,
        output: 200,
        reasoning: 50,
    };
    rig.account("b")
        .then(Reply::ok().usage(used).response_id("resp_2"))
        .then(Reply::ok().without_usage());
    let mut body = turn("one");
    body["service_tier"] = json!("flex");
    body["previous_response_id"] = json!("resp_1");
    // Only the second is unpriced.
    for _ in 0..2 {
        client.turn(&body).await;
    }
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    let mut told = BTreeSet::new();
    for row in &rows {
        let id = row.text("request_id").expect("an id");
        let event: Value =
            serde_json::from_str(&wait_for_line(&program, &[id, r#""message":"request""#]).await)
                .expect("JSON");
        for (column, value) in row.columns().filter(|(column, _)| *column != "id") {
            if value.is_null() {
                assert!(event[column].is_null(), "{column}: {event}");
            } else {
                assert_eq!(
                    event[column],
                    as_logged(column, value, row),
                    "{column}: {event}"
                );
                told.insert(column.to_owned());
            }
        }
    }
    let silent: Vec<_> = rows[0]
        .columns()
        .map(|(column, _)| column)
        .filter(|column| !told.contains(*column))
        .collect();
    assert_eq!(
        silent,
        ["id"],
        "columns that neither request filled show nothing"
    );
    program.kill();
}

// log.format, log.level, log.timestamp, log.output, log.disabled

/// Returns the log of a request that `a` rejected and `b` answered, and of a poll without figures.
async fn log_of(log: Value) -> String {
    let rig = Rig::new().await;
    let last = ["error", "warn"]
        .iter()
        .all(|level| log["level"] != *level)
        .then_some("request_id");
    rig.upstream
        .account("access-a", "account-a")
        .always_for_poll(Reply::error(500, "server_error", "no"));
    let (program, client) = start(&rig, log).await;
    rig.wait_for_credential("a", Duration::from_secs(10), "polled", |found| {
        !found["poll_failure"].is_null()
    })
    .await;
    rig.account("a").then(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    );
    client.turn(&turn("one")).await;
    wait_for_rows(&rig.ledger(), 1).await;
    if let Some(part) = last {
        wait_for_line(&program, &[part]).await;
    }
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(20)).await.success());
    fs::read_to_string(rig.path("gateway.log")).expect("it was made for it")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_a_terminal_is_json_unless_text_is_configured() {
    for log in [json!({}), json!({ "format": "json" })] {
        let events = events(&log_of(log.clone()).await);
        assert!(
            events
                .iter()
                .any(|event| event["message"] == "request" && event["level"] == "INFO"),
            "{log}"
        );
    }
    let text = log_of(json!({ "format": "text" })).await;
    assert!(
        text.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_err()),
        "{text}"
    );
    let line = text
        .lines()
        .find(|line| line.contains(" request "))
        .expect("the request's");
    assert!(
        line.contains(" INFO ") && line.contains("user=\"alice\"") && line.contains("status=200"),
        "{line}"
    );
    assert!(
        !text.contains('\u{1b}'),
        "colours are for terminals: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_contains_events_of_its_level_and_above() {
    let levels = ["trace", "debug", "info", "warn", "error"];
    // The level of each event, the most verbose first.
    let messages = [
        ("poll failed", 1),
        ("request", 2),
        ("credential rate-limited", 3),
    ];
    for (place, level) in levels.into_iter().enumerate() {
        let events = events(&log_of(json!({ "level": level })).await);
        for (message, least) in messages {
            let is_there = events.iter().any(|event| event["message"] == message);
            assert_eq!(
                is_there,
                place <= least,
                "{message:?} at {level}: {events:#?}"
            );
        }
        let of_level = |event: &Value| {
            levels
                .iter()
                .position(|name| event["level"] == name.to_uppercase())
        };
        assert!(
            events.iter().all(|event| of_level(event) >= Some(place)),
            "{level}: {events:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_a_timestamp_unless_it_is_disabled() {
    for (log, timed) in [
        (json!({}), true),
        (json!({ "timestamp": true }), true),
        (json!({ "timestamp": false }), false),
    ] {
        for event in events(&log_of(log.clone()).await) {
            assert_eq!(event.get("timestamp").is_some(), timed, "{log}: {event}");
        }
    }
    let text = log_of(json!({ "format": "text", "timestamp": false })).await;
    assert!(
        text.lines().all(|line| line.starts_with(' ')),
        "the level is what comes first: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_log_is_empty_and_requests_are_recorded() {
    let rig = Rig::new().await;
    let (program, client) = start(
        &rig,
        json!({ "disabled": true, "output": rig.path("own.log") }),
    )
    .await;
    rig.account("a").then(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    );
    assert!(client.turn(&turn("one")).await.whole);
    wait_for_rows(&rig.ledger(), 1).await;
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(20)).await.success());
    assert_eq!(
        fs::read_to_string(rig.path("gateway.log")).expect("it was made for it"),
        ""
    );
    assert!(!rig.path("own.log").exists());
}
