//! Metering: what a response used, what it cost, and that it is on file before its client has it
//! whole.

mod cost;
mod cut_short;
mod row;
mod usage;
mod usage_files;

use serde_json::{Value, json};
use tollgate_tests::upstream::{Account, Usage};
use tollgate_tests::{Client, Rig, Row, turn, wait_for_rows};

const USED: Usage = Usage {
    input: 1000,
    cached: 600,
    cache_write: 100,
    output: 200,
    reasoning: 50,
};

/// A gateway with one account and no users.
async fn open_rig() -> (Rig, Client, Account) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start(config).await;
    let account = rig.account("a");
    (rig, client, account)
}

/// Returns the next row, after `before` others.
async fn next_row(rig: &Rig, before: usize) -> Row {
    wait_for_rows(&rig.ledger(), before + 1)
        .await
        .remove(before)
}

#[track_caller]
fn check_used(name: &str, row: &Row, used: Usage) {
    let number = |count: u64| Some(i64::try_from(count).expect("a small number"));
    let found = ["input", "cached", "output", "reasoning"]
        .map(|kind| row.number(&format!("{kind}_tokens")));
    assert_eq!(
        found,
        [used.input, used.cached, used.output, used.reasoning].map(number),
        "{name}"
    );
}

/// Checks that the usage is unknown.
#[track_caller]
fn check_unknown(name: &str, row: &Row) {
    for column in [
        "input_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "output_tokens",
        "cost_nanousd",
    ] {
        assert_eq!(row.number(column), None, "{name}: {column}");
    }
}

/// A turn whose response is an event stream.
fn stream_turn() -> Value {
    let mut body = turn("one");
    body["stream"] = json!(true);
    body
}

/// A turn whose response is one JSON object.
fn object_turn() -> Value {
    let mut body = turn("one");
    body["stream"] = json!(false);
    body
}
