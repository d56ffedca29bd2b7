//! Metering: what a response used, what it cost, and that it is on file before its client has it
//! whole.

use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Account, Encoding, End, Gate, Reply, Standing, Usage};
use tollgate_tests::{
    Client, Protocol, Rig, Row, over_both, rows, turn, unix_in, user, wait_for_rows,
};

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

/// A gateway with an API key and no users.
async fn key_rig() -> (Rig, Client, Account) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let account = rig.upstream.api_key("sk-k", "k");
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

fn whole(stream: bool) -> Value {
    let mut body = turn("one");
    body["stream"] = json!(stream);
    body
}

// What a response used

over_both!(usage_is_counted_however_the_response_is_written);
async fn usage_is_counted_however_the_response_is_written() {
    let ok = || Reply::ok().usage(USED);
    let odd = || {
        ok().crlf()
            .comments()
            .without_space()
            .without_final_newline()
            .without_content_type()
    };
    let cases = [
        ("plain", ok()),
        ("CRLF", ok().crlf()),
        ("comments", ok().comments()),
        ("no space", ok().without_space()),
        ("no final newline", ok().without_final_newline()),
        ("no content type", ok().without_content_type()),
        (
            "a content type with a charset",
            ok().header("content-type", "text/event-stream; charset=utf-8"),
        ),
        ("all of these", odd()),
        ("a byte at a time", odd().chunks(&[1])),
        ("in odd pieces", odd().chunks(&[1, 7, 100, 3])),
        ("many and long deltas", ok().deltas(2000).delta_bytes(500)),
        ("gzip", ok().encoded(Encoding::Gzip)),
        ("deflate", ok().encoded(Encoding::Deflate)),
        ("zstd", ok().encoded(Encoding::Zstd)),
        ("br", ok().encoded(Encoding::Brotli)),
        (
            "gzip a byte at a time",
            odd().encoded(Encoding::Gzip).chunks(&[1]),
        ),
        (
            "zstd in odd pieces",
            odd().encoded(Encoding::Zstd).chunks(&[5, 1, 30]),
        ),
        (
            "br a byte at a time",
            odd().encoded(Encoding::Brotli).chunks(&[1]),
        ),
        (
            "long and by br",
            ok().deltas(2000).delta_bytes(500).encoded(Encoding::Brotli),
        ),
        (
            "long and packed",
            ok().deltas(2000)
                .delta_bytes(500)
                .encoded(Encoding::Deflate),
        ),
    ];
    let (mut rig, client, account) = open_rig().await;
    for (place, (name, reply)) in cases.into_iter().enumerate() {
        account.then(reply.response_id("resp_counted"));
        let answer = client.turn(&whole(true)).await;
        assert!(answer.status == StatusCode::OK && answer.whole, "{name}");
        let row = next_row(&rig, place).await;
        check_used(name, &row, USED);
        assert_eq!(row.number("cache_write_tokens"), Some(100), "{name}");
        assert_eq!(
            (row.text("end"), row.text("response_id")),
            (Some("complete"), Some("resp_counted")),
            "{name}"
        );
        assert_eq!(row.text("unpriced_reason"), None, "{name}");
        assert!(
            row.number("cost_nanousd").is_some_and(|cost| cost > 0),
            "{name}"
        );
    }
    rig.stop().await;
}

over_both!(usage_of_a_response_that_is_one_object_is_counted);
async fn usage_of_a_response_that_is_one_object_is_counted() {
    let ok = || Reply::ok().usage(USED);
    let cases = [
        ("plain", ok()),
        ("no content type", ok().without_content_type()),
        ("a byte at a time", ok().chunks(&[1])),
        ("gzip", ok().encoded(Encoding::Gzip)),
        ("deflate", ok().encoded(Encoding::Deflate)),
        ("zstd", ok().encoded(Encoding::Zstd).chunks(&[3])),
        ("br", ok().encoded(Encoding::Brotli).chunks(&[3])),
        (
            "a long text before the usage",
            ok().deltas(1).delta_bytes(2 << 20),
        ),
    ];
    let (mut rig, client, account) = open_rig().await;
    for (place, (name, reply)) in cases.into_iter().enumerate() {
        account.then(reply.response_id("resp_counted"));
        assert!(client.turn(&whole(false)).await.whole, "{name}");
        let row = next_row(&rig, place).await;
        check_used(name, &row, USED);
        assert_eq!(row.number("cache_write_tokens"), Some(100), "{name}");
        assert_eq!(
            (row.text("end"), row.text("response_id")),
            (Some("complete"), Some("resp_counted")),
            "{name}"
        );
    }
    rig.stop().await;
}

over_both!(usage_of_a_compaction_is_counted);
async fn usage_of_a_compaction_is_counted() {
    let (mut rig, client, account) = open_rig().await;
    account.then(Reply::ok().usage(USED));
    client
        .ask(
            Method::POST,
            "/v1/responses/compact",
            whole(false).to_string(),
        )
        .await;
    check_used("compaction", &next_row(&rig, 0).await, USED);
    rig.stop().await;
}

over_both!(chat_completions_with_an_api_key_are_counted);
async fn chat_completions_with_an_api_key_are_counted() {
    let chat = |more: Value| {
        let mut body =
            json!({"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}]});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        body.to_string()
    };
    let ok = || {
        Reply::ok().usage(Usage {
            cache_write: 0,
            ..USED
        })
    };
    let odd = || {
        ok().crlf()
            .comments()
            .without_space()
            .without_final_newline()
            .chunks(&[3])
    };
    let streamed = || chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let cases = [
        ("one object", ok(), chat(json!({}))),
        (
            "one object by gzip",
            ok().encoded(Encoding::Gzip),
            chat(json!({})),
        ),
        ("a stream by br", ok().encoded(Encoding::Brotli), streamed()),
        ("a stream", ok(), streamed()),
        ("a stream written oddly", odd(), streamed()),
        ("a stream by zstd", ok().encoded(Encoding::Zstd), streamed()),
    ];
    let (mut rig, client, account) = key_rig().await;
    for (place, (name, reply, body)) in cases.into_iter().enumerate() {
        account.then(reply.response_id("chatcmpl_1"));
        assert!(
            client
                .ask(Method::POST, "/v1/chat/completions", body)
                .await
                .whole,
            "{name}"
        );
        let row = next_row(&rig, place).await;
        check_used(name, &row, USED);
        assert_eq!(
            (row.text("end"), row.text("response_id")),
            (Some("complete"), Some("chatcmpl_1")),
            "{name}"
        );
        assert_eq!(
            (row.text("credential"), row.text("model")),
            (Some("k"), Some("gpt-4.1")),
            "{name}"
        );
        // 400 at 2.00, 600 at 0.50 and 200 at 8.00 USD per million.
        assert_eq!(row.number("cost_nanousd"), Some(2_700_000), "{name}");
    }
    rig.stop().await;
}

over_both!(a_response_that_tells_no_usage_is_unpriced_with_a_reason);
async fn a_response_that_tells_no_usage_is_unpriced_with_a_reason() {
    let (mut rig, client, account) = key_rig().await;
    account
        .then(Reply::ok().without_usage())
        .then(Reply::ok().without_usage())
        .then(Reply::ok());
    client.turn(&whole(true)).await;
    client.turn(&whole(false)).await;
    // A stream of chunks has the usage only if the request asked for it.
    let chat = json!({"model": "gpt-4.1", "stream": true, "messages": []});
    client
        .ask(Method::POST, "/v1/chat/completions", chat.to_string())
        .await;
    for (row, name) in
        wait_for_rows(&rig.ledger(), 3)
            .await
            .iter()
            .zip(["a stream", "an object", "chunks"])
    {
        check_unknown(name, row);
        assert!(
            row.text("unpriced_reason")
                .is_some_and(|reason| !reason.is_empty()),
            "{name}"
        );
        assert_eq!(row.text("end"), Some("complete"), "{name}");
    }
    rig.stop().await;
}

over_both!(a_response_that_ended_early_or_failed_is_counted_as_what_it_is);
async fn a_response_that_ended_early_or_failed_is_counted_as_what_it_is() {
    let (mut rig, client, account) = open_rig().await;
    let ends = [(End::Incomplete, "incomplete"), (End::Failed, "failed")];
    let cases = ends.map(|end| [(end, true), (end, false)]).concat();
    for (place, ((end, name), stream)) in cases.into_iter().enumerate() {
        account.then(Reply::ok().end(end).usage(USED));
        assert!(client.turn(&whole(stream)).await.whole);
        let row = next_row(&rig, place).await;
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some(name), Some(200)),
            "streamed: {stream}"
        );
        check_used(name, &row, USED);
        assert!(
            row.number("cost_nanousd").is_some_and(|cost| cost > 0),
            "{name}, streamed: {stream}"
        );
    }
    rig.stop().await;
}

over_both!(an_answer_that_is_an_error_failed_and_cost_nothing);
async fn an_answer_that_is_an_error_failed_and_cost_nothing() {
    let (mut rig, client, account) = open_rig().await;
    for (place, status) in [400, 404, 500].into_iter().enumerate() {
        account.then(Reply::error(status, "invalid_request_error", "no"));
        client.turn(&whole(true)).await;
        let row = next_row(&rig, place).await;
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(i64::from(status)))
        );
        assert_eq!(
            (row.number("cost_nanousd"), row.text("unpriced_reason")),
            (None, None),
            "{status}"
        );
        assert_eq!(row.text("model"), Some("gpt-5.4"), "as it was asked for");
    }
    rig.stop().await;
}

// Cut short

over_both!(a_row_has_the_status_that_the_client_got_and_not_upstreams);
async fn a_row_has_the_status_that_the_client_got_and_not_upstreams() {
    for (is_http2, bytes) in [(false, 0), (false, 1000), (true, 0), (true, 1000)] {
        let (mut rig, client, account) = open_rig().await;
        let client = if is_http2 { client.http2() } else { client };
        // An error response is read to its end, which never comes: no byte of it was sent by then.
        account
            .then(Reply::error(429, "usage_limit_reached", &"x".repeat(2000)).close_after(bytes));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        let row = next_row(&rig, 0).await;
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(502), Some("upstream_gone"))
        );
        // Without any byte of its body, the head may not get out before the break; over HTTP/2, a
        // reset can overtake it.
        if bytes > 0 && Protocol::current() == Protocol::Http1 {
            assert_eq!(row.attempts(), [("a".to_owned(), "429".to_owned())]);
        }
        rig.stop().await;
    }
}

over_both!(a_client_that_leaves_in_the_middle_is_recorded);
async fn a_client_that_leaves_in_the_middle_is_recorded() {
    let (mut rig, client, account) = open_rig().await;
    for (place, (name, client)) in [("HTTP/1.1", client.clone()), ("HTTP/2", client.http2())]
        .into_iter()
        .enumerate()
    {
        let never = Gate::new();
        account.then(Reply::ok().response_id("resp_left").hold_after(3, &never));
        let mut stream = client.start_turn(&turn("one")).await;
        stream.until("output_text.delta").await;
        never.wait_until_reached().await;
        drop(stream);
        let row = next_row(&rig, place).await;
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("client_gone"), Some(200)),
            "{name}"
        );
        assert_eq!(
            (row.text("model"), row.text("response_id")),
            (Some("gpt-5.4"), Some("resp_left")),
            "{name}"
        );
        check_unknown(name, &row);
        rig.upstream.wait_for_abandoned(place + 1).await;
    }
    rig.stop().await;
}

over_both!(a_client_that_leaves_before_the_answer_is_recorded);
async fn a_client_that_leaves_before_the_answer_is_recorded() {
    let (mut rig, client, account) = open_rig().await;
    let never = Gate::new();
    account.then(Reply::ok().hold_head(&never));
    let asking = tokio::spawn(async move { client.turn(&turn("one")).await.status });
    never.wait_until_reached().await;
    asking.abort();
    assert!(asking.await.is_err_and(|error| error.is_cancelled()));
    let row = next_row(&rig, 0).await;
    assert_eq!(row.text("end"), Some("client_gone"));
    assert_eq!(row.attempts().len(), 1);
    check_unknown("before the head", &row);
    rig.stop().await;
}

/// The client sees that its answer is not whole: where the cut came at once, even the head may be
/// missing, and where it came before the first byte of the body, the gateway may say so instead.
/// Returns the status that the row should have.
async fn status_of_cut(name: &str, client: &Client, body: &Value) -> i64 {
    let client = client.header("content-type", "application/json");
    let sent = client
        .try_send(Method::POST, "/v1/responses", body.to_string())
        .await;
    let Ok(answer) = sent else { return 200 };
    let answer = answer.finish().await;
    if answer.status == StatusCode::BAD_GATEWAY {
        return 502;
    }
    assert_eq!(
        (answer.status, answer.whole),
        (StatusCode::OK, false),
        "{name}"
    );
    200
}

over_both!(an_upstream_that_breaks_off_is_recorded_and_its_client_sees_the_cut);
async fn an_upstream_that_breaks_off_is_recorded_and_its_client_sees_the_cut() {
    let (mut rig, client, account) = open_rig().await;
    let cases = [
        ("closed", Reply::ok().close_after(400), true),
        ("reset", Reply::ok().close_after(400).by_reset(), true),
        (
            "packed",
            Reply::ok()
                .deltas(500)
                .encoded(Encoding::Zstd)
                .close_after(100),
            true,
        ),
        ("one object", Reply::ok().close_after(100), false),
    ];
    let mut place = 0;
    for client in [client.clone(), client.http2()] {
        for (name, reply, stream) in cases.clone() {
            account.then(reply);
            let status = status_of_cut(name, &client, &whole(stream)).await;
            let row = next_row(&rig, place).await;
            place += 1;
            assert_eq!(
                (row.text("end"), row.number("status")),
                (Some("upstream_gone"), Some(status)),
                "{name}"
            );
            check_unknown(name, &row);
        }
    }
    rig.stop().await;
}

// The row

over_both!(a_row_tells_everything_about_its_request);
async fn a_row_tells_everything_about_its_request() {
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
    rig.stop().await;
}

// What it cost

struct Priced {
    name: &'static str,
    reply: Reply,
    /// The requested model and tier.
    asked: (&'static str, Option<&'static str>),
    /// Nano-dollars and the context window.
    cost: (i64, i64),
}

over_both!(a_response_costs_what_its_model_tier_and_length_cost);
async fn a_response_costs_what_its_model_tier_and_length_cost() {
    // 1200 in, 800 of them cached, and 150 out.
    let usual = || Reply::ok();
    let of = |input: u64, cached: u64, output: u64| {
        Reply::ok().usage(Usage {
            input,
            cached,
            output,
            cache_write: 0,
            reasoning: 0,
        })
    };
    let case = |name, reply, model, tier, cost, window| Priced {
        name,
        reply,
        asked: (model, tier),
        cost: (cost, window),
    };
    let cases = [
        case("as listed", usual(), "gpt-5.4", None, 3_450_000, 272_000),
        case(
            "a dated name is its family's",
            usual(),
            "gpt-5.4-2026-03-05",
            None,
            3_450_000,
            272_000,
        ),
        case(
            "flex is half",
            usual(),
            "gpt-5.4",
            Some("flex"),
            1_725_000,
            272_000,
        ),
        case(
            "priority is double",
            usual(),
            "gpt-5.4",
            Some("priority"),
            6_900_000,
            272_000,
        ),
        case(
            "auto is default",
            usual(),
            "gpt-5.4",
            Some("auto"),
            3_450_000,
            272_000,
        ),
        case(
            "scale is default",
            usual(),
            "gpt-5.4",
            Some("scale"),
            3_450_000,
            272_000,
        ),
        case(
            "an unknown tier is default",
            usual(),
            "gpt-5.4",
            Some("platinum"),
            3_450_000,
            272_000,
        ),
        case(
            "up to 272,000",
            of(272_000, 0, 100),
            "gpt-5.4",
            None,
            681_500_000,
            272_000,
        ),
        case(
            "past it",
            of(272_001, 1, 100),
            "gpt-5.4",
            None,
            1_362_250_500,
            1_050_000,
        ),
        case(
            "past it without a long price",
            of(300_000, 0, 0),
            "gpt-5",
            None,
            375_000_000,
            272_000,
        ),
        case(
            "a longer name wins",
            usual(),
            "gpt-5.1-codex-mini-2026-01-01",
            None,
            420_000,
            272_000,
        ),
        case(
            "pro is another model",
            usual(),
            "gpt-5.4-pro",
            None,
            63_000_000,
            272_000,
        ),
        case(
            "gpt-4o",
            usual(),
            "gpt-4o-2024-08-06",
            None,
            3_500_000,
            272_000,
        ),
        case("o3-mini", usual(), "o3-mini", None, 1_540_000, 272_000),
        case(
            "the model that answered",
            usual().model("gpt-5-nano-2025-08-07"),
            "gpt-5.4",
            None,
            84_000,
            272_000,
        ),
        case(
            "the tier that was charged",
            usual().service_tier("default"),
            "gpt-5.4",
            Some("flex"),
            3_450_000,
            272_000,
        ),
    ];
    let (mut rig, client, account) = open_rig().await;
    for (place, case) in cases.into_iter().enumerate() {
        account.then(case.reply);
        let mut body = turn("one");
        body["model"] = json!(case.asked.0);
        if let Some(tier) = case.asked.1 {
            body["service_tier"] = json!(tier);
        }
        client.turn(&body).await;
        let row = next_row(&rig, place).await;
        let found = (row.number("cost_nanousd"), row.number("context_window"));
        assert_eq!(
            found,
            (Some(case.cost.0), Some(case.cost.1)),
            "{}",
            case.name
        );
        assert_eq!(row.text("unpriced_reason"), None, "{}", case.name);
    }
    rig.stop().await;
}

over_both!(an_unknown_model_is_unpriced_never_free);
async fn an_unknown_model_is_unpriced_never_free() {
    let (mut rig, client, _) = open_rig().await;
    for (place, model) in ["gpt-99", "gpt-99-2026-01-01", "unheard-of"]
        .into_iter()
        .enumerate()
    {
        let mut body = turn("one");
        body["model"] = json!(model);
        client.turn(&body).await;
        let row = next_row(&rig, place).await;
        assert_eq!(row.number("cost_nanousd"), None, "{model}");
        assert!(
            row.text("unpriced_reason")
                .is_some_and(|reason| reason.contains(model)),
            "{model}"
        );
        check_used(model, &row, Usage::default());
    }
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

over_both!(a_row_is_on_file_before_its_client_has_the_last_byte);
async fn a_row_is_on_file_before_its_client_has_the_last_byte() {
    let cases = [
        ("a stream", Reply::ok(), true),
        ("a stream in pieces", Reply::ok().chunks(&[50]), true),
        ("an object", Reply::ok(), false),
        ("an object in pieces", Reply::ok().chunks(&[50]), false),
    ];
    let (mut rig, client, account) = open_rig().await;
    for round in 0..10 {
        for (name, reply, streamed) in cases.clone() {
            account.then(reply);
            let mut stream = client.start_turn(&whole(streamed)).await;
            let id = stream.headers["x-tollgate-request-id"]
                .to_str()
                .expect("text")
                .to_owned();
            let mut read = Vec::new();
            while let Some(part) = stream.part().await {
                read.extend_from_slice(&part.expect("it goes on"));
                let text = String::from_utf8_lossy(&read);
                // The last byte of content, not the end of the transport.
                let has_all = if streamed {
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

over_both!(a_row_is_on_file_before_its_client_sees_the_end_whatever_the_answer);
async fn a_row_is_on_file_before_its_client_sees_the_end_whatever_the_answer() {
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

// Usage files

/// Returns a configuration with the users alice and bob, whose only account has a usage file.
fn config_with_file(rig: &Rig) -> (Value, PathBuf) {
    let file = rig.path("usages.json");
    let mut credential = rig.oauth("a");
    credential["usages_path"] = json!(file);
    let user = |name: &str| user(name, "a");
    (
        rig.config(json!({ "credentials": [credential], "users": [user("alice"), user("bob")] })),
        file,
    )
}

fn usage_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a usage file")).expect("JSON")
}

/// The entry of a model and tier: its sums, and those of each user.
#[track_caller]
fn entry<'a>(file: &'a Value, model: &str, tier: &str) -> &'a Value {
    let entries = file["combinations"].as_array().expect("a list");
    let mut found = entries
        .iter()
        .filter(|entry| entry["model"] == model && entry["service_tier"] == tier);
    let entry = found
        .next()
        .unwrap_or_else(|| panic!("no {model} {tier}: {file}"));
    assert!(found.next().is_none(), "{model} {tier} twice: {file}");
    entry
}

#[track_caller]
fn check_sum(sum: &Value, [requests, input, output, cached]: [u64; 4], cost_usd: f64) {
    let found = [
        "request_count",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
    ]
    .map(|name| sum[name].as_u64());
    assert_eq!(found, [requests, input, output, cached].map(Some), "{sum}");
    check_usd(&sum["cost_usd"], cost_usd);
}

#[track_caller]
fn check_usd(found: &Value, expected: f64) {
    assert!(
        found
            .as_f64()
            .is_some_and(|found| (found - expected).abs() < 1e-9),
        "{found}, expected {expected}"
    );
}

/// The cost of a turn with gpt-5.4 of the scripted upstream: 3,450,000 nano-dollars.
const TURN_USD: f64 = 0.00345;

over_both!(a_usage_file_has_the_sums_when_the_gateway_has_stopped);
async fn a_usage_file_has_the_sums_when_the_gateway_has_stopped() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let client = rig.start(config).await;
    let week = (unix_in(1000), unix_in(1000) - 10_080 * 60);
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(week.0));
    let (alice, bob) = (client.token("token-alice"), client.token("token-bob"));
    alice.turn(&turn("one")).await;
    alice.turn(&turn("one")).await;
    bob.turn(&turn("two")).await;
    let mut flex = turn("two");
    flex["service_tier"] = json!("flex");
    bob.turn(&flex).await;
    rig.stop().await;

    let file = usage_file(&file);
    let default = entry(&file, "gpt-5.4", "default");
    assert_eq!(
        (&default["context_window"], &default["week_start_unix"]),
        (&json!(272_000), &json!(week.1))
    );
    check_sum(&default["total"], [3, 3600, 450, 2400], 3.0 * TURN_USD);
    check_sum(
        &default["by_user"]["alice"],
        [2, 2400, 300, 1600],
        2.0 * TURN_USD,
    );
    check_sum(&default["by_user"]["bob"], [1, 1200, 150, 800], TURN_USD);
    let flex = entry(&file, "gpt-5.4", "flex");
    check_sum(&flex["total"], [1, 1200, 150, 800], TURN_USD / 2.0);
    let costs = &file["costs"];
    check_usd(&costs["total_usd"], 3.5 * TURN_USD);
    check_usd(&costs["by_user"]["alice"], 2.0 * TURN_USD);
    check_usd(&costs["by_user"]["bob"], 1.5 * TURN_USD);
    let weeks = costs["by_week"].as_object().expect("weeks");
    let (name, sum) = weeks.iter().next().expect("a week");
    assert_eq!(weeks.len(), 1);
    check_usd(sum, 3.5 * TURN_USD);
    check_usd(&costs["by_user_and_week"]["bob"][name], 1.5 * TURN_USD);
    assert!(
        file["last_updated"]
            .as_str()
            .is_some_and(|time| time.starts_with("20") && time.contains('T'))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_continues_after_a_restart() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let reset = unix_in(1000);
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    for turns in 1..=3_u64 {
        let client = rig.start(config.clone()).await;
        client.token("token-alice").turn(&turn("one")).await;
        rig.stop().await;
        let sums = usage_file(&file);
        let entry = entry(&sums, "gpt-5.4", "default");
        check_sum(
            &entry["total"],
            [turns, turns * 1200, turns * 150, turns * 800],
            turns as f64 * TURN_USD,
        );
        check_usd(&sums["costs"]["total_usd"], turns as f64 * TURN_USD);
    }
    // Also without a request in between.
    rig.start(config).await;
    rig.stop().await;
    assert_eq!(
        entry(&usage_file(&file), "gpt-5.4", "default")["total"]["request_count"],
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_of_sing_box_is_the_opening_balance() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let reset = unix_in(1000);
    let week = reset - 10_080 * 60;
    let sum = |requests: u64, cost: f64| {
        json!({"request_count": requests, "input_tokens": 10 * requests, "output_tokens": 2 * requests,
            "cached_tokens": 5 * requests, "cost_usd": cost})
    };
    let theirs = json!({
        "last_updated": "2026-11-20T10:00:00Z",
        "costs": {"total_usd": 9.0, "by_user": {"alice": 1.5, "carol": 0.5}, "by_week": {}, "by_user_and_week": {}},
        "combinations": [
            {"model": "gpt-5.4", "service_tier": "default", "context_window": 272_000, "week_start_unix": week,
                "total": sum(20, 2.0), "by_user": {"alice": sum(15, 1.5), "carol": sum(5, 0.5)}},
            {"model": "gpt-5", "service_tier": "priority", "context_window": 272_000,
                "total": sum(7, 7.0), "by_user": {}},
        ],
    });
    std::fs::write(&file, theirs.to_string()).expect("the folder can be written");
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    let client = rig.start(config).await;
    client.token("token-alice").turn(&turn("one")).await;
    rig.stop().await;

    let sums = usage_file(&file);
    let same_week = entry(&sums, "gpt-5.4", "default");
    check_sum(&same_week["total"], [21, 1400, 190, 900], 2.0 + TURN_USD);
    check_sum(
        &same_week["by_user"]["alice"],
        [16, 1350, 180, 875],
        1.5 + TURN_USD,
    );
    check_sum(&same_week["by_user"]["carol"], [5, 50, 10, 25], 0.5);
    check_sum(
        &entry(&sums, "gpt-5", "priority")["total"],
        [7, 70, 14, 35],
        7.0,
    );
    check_usd(&sums["costs"]["total_usd"], 9.0 + TURN_USD);
    check_usd(&sums["costs"]["by_user"]["carol"], 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_usage_file_is_moved_aside() {
    for broken in [
        "",
        "{\"combinations\": [",
        "[]",
        "{\"last_updated\": 5, \"combinations\": \"none\"}",
    ] {
        let mut rig = Rig::new().await;
        let (config, file) = config_with_file(&rig);
        std::fs::write(&file, broken).expect("the folder can be written");
        let client = rig.start(config).await;
        client.token("token-alice").turn(&turn("one")).await;
        rig.stop().await;

        let names = std::fs::read_dir(rig.folder())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path());
        let kept: Vec<PathBuf> = names
            .filter(|path| path.to_string_lossy().contains("usages.json.broken-"))
            .collect();
        assert_eq!(kept.len(), 1, "{broken:?}: {kept:?}");
        assert_eq!(
            std::fs::read_to_string(&kept[0]).expect("it can be read"),
            broken
        );
        check_sum(
            &entry(&usage_file(&file), "gpt-5.4", "default")["total"],
            [1, 1200, 150, 800],
            TURN_USD,
        );
    }
}
