//! The row of a request: its columns, and that it is stored before its client sees the end.

use http::Method;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Encoding, End, Reply, Standing};
use tollgate_tests::{Rig, Row, over_both, rows, turn, unix_in};

use super::{USED, check_used, next_row, object_turn, open_rig, stream_turn};

// The row

/// Checks the numbers of a row whose request began at `began`, in Unix seconds, in the week that
/// ends at `reset`.
fn check_numbers(row: &Row, began: u64, reset: u64) {
    let number = |column: &str| {
        row.number(column)
            .unwrap_or_else(|| panic!("{column} is NULL"))
    };
    assert_eq!(
        (
            number("status"),
            number("cache_write_tokens"),
            number("context_window")
        ),
        (200, 100, 272_000)
    );
    assert_eq!(
        number("week_start_unix"),
        i64::try_from(reset).expect("a time") - 10_080 * 60
    );
    assert!(number("cost_nanousd") > 0);
    let priced_by = row.text("priced_by").expect("a policy");
    assert!(
        priced_by.contains("openai-pricing") && priced_by.len() > 64,
        "name, version and digest: {priced_by:?}"
    );
    let (started, finished) = (number("started_at"), number("finished_at"));
    let began = i64::try_from(began).expect("a time") * 1000;
    assert!(
        (began..began + 60_000).contains(&started) && (started..began + 60_000).contains(&finished)
    );
    assert!(number("ttfb_ms") >= 0 && number("ttfb_ms") <= number("duration_ms"));
    assert!(number("duration_ms") <= finished - started + 1000);
}

over_both!(a_row_records_everything_about_its_request);
async fn a_row_records_everything_about_its_request() {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    let client = rig
        .start(config)
        .await
        .token("token-bob")
        .header("session-id", "session-1");
    let reset = unix_in(100_000);
    rig.account("a")
        .then(Reply::usage_limit_reached().resets_in_seconds(600));
    rig.account("b")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    rig.account("b").then(
        Reply::ok()
            .usage(USED)
            .response_id("resp_7")
            .model("gpt-5.4-2026-03-05"),
    );
    let mut body = turn("another key");
    body["service_tier"] = json!("flex");
    body["previous_response_id"] = json!("resp_6");

    let began = unix_in(0);
    let answer = client
        .ask(Method::POST, "/v1/responses?x=1", body.to_string())
        .await;

    let row = next_row(&rig, 0).await;
    let texts = [
        ("request_id", Some(answer.request_id())),
        ("user", Some("bob".to_owned())),
        ("credential", Some("b".to_owned())),
        ("service", Some("ocm".to_owned())),
        ("model", Some("gpt-5.4-2026-03-05".to_owned())),
        ("service_tier", Some("flex".to_owned())),
        ("transport", Some("http".to_owned())),
        ("path", Some("/v1/responses".to_owned())),
        ("end", Some("complete".to_owned())),
        ("session", Some("session-1".to_owned())),
        ("response_id", Some("resp_7".to_owned())),
        ("previous_response_id", Some("resp_6".to_owned())),
        ("unpriced_reason", None),
    ];
    for (column, expected) in texts {
        assert_eq!(row.text(column), expected.as_deref(), "{column}");
    }
    let outcomes =
        [("a", "429"), ("b", "200")].map(|(tag, outcome)| (tag.to_owned(), outcome.to_owned()));
    assert_eq!(row.attempts(), outcomes);
    check_used("all columns", &row, USED);
    check_numbers(&row, began, reset);
    rig.stop().await;
}

// Recorded before it is seen

/// Checks that the ledger has the row of this request now, not soon.
#[track_caller]
fn check_on_file(rig: &Rig, request_id: &str, name: &str) {
    let found = rows(&rig.ledger())
        .iter()
        .any(|row| row.text("request_id") == Some(request_id));
    assert!(
        found,
        "{name}: the client has it whole, and the ledger has not"
    );
}

over_both!(a_row_is_committed_before_its_client_has_the_last_byte);
async fn a_row_is_committed_before_its_client_has_the_last_byte() {
    let cases = [
        ("a stream", Reply::ok(), stream_turn()),
        (
            "a stream in pieces",
            Reply::ok().chunks(&[50]),
            stream_turn(),
        ),
        ("an object", Reply::ok(), object_turn()),
        (
            "an object in pieces",
            Reply::ok().chunks(&[50]),
            object_turn(),
        ),
    ];
    let (mut rig, client, account) = open_rig().await;
    for round in 0..10 {
        for (name, reply, body) in cases.clone() {
            account.then(reply);
            let mut stream = client.start_turn(&body).await;
            let id = stream.headers["x-tollgate-request-id"]
                .to_str()
                .expect("text")
                .to_owned();
            let mut read = Vec::new();
            while let Some(part) = stream.part().await {
                read.extend_from_slice(&part.expect("it continues"));
                let text = String::from_utf8_lossy(&read);
                // The last byte of content, not the end of the transport.
                let has_all = if body["stream"] == true {
                    text.contains("response.completed") && text.ends_with("\n\n")
                } else {
                    serde_json::from_slice::<Value>(&read).is_ok()
                };
                if has_all {
                    check_on_file(&rig, &id, &format!("{name}, round {round}"));
                }
            }
        }
    }
    rig.stop().await;
}

over_both!(a_row_is_committed_before_its_client_sees_the_end_of_any_response);
async fn a_row_is_committed_before_its_client_sees_the_end_of_any_response() {
    let cases = [
        ("gzip", Reply::ok().encoded(Encoding::Gzip)),
        ("no usage", Reply::ok().without_usage()),
        ("no last event", Reply::ok().end(End::Missing)),
        ("failed", Reply::ok().end(End::Failed)),
        ("no final newline", Reply::ok().without_final_newline()),
        ("an error", Reply::server_error(500)),
        ("nothing", Reply::raw(204, "")),
        ("an empty error", Reply::raw(404, "")),
        (
            "a page",
            Reply::raw(200, "<html>").header("content-type", "text/html"),
        ),
        ("an upstream that breaks", Reply::close_before_head()),
        ("a refusal", Reply::usage_limit_reached()),
        ("no usable credential", Reply::ok()),
    ];
    let (mut rig, client, account) = open_rig().await;
    for (name, reply) in cases {
        account.then(reply);
        let answer = client.turn(&turn("one")).await;
        assert!(answer.whole, "{name}");
        check_on_file(&rig, &answer.request_id(), name);
    }
    rig.stop().await;
}
