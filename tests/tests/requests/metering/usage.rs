//! What a response used, in every form in which upstream reports it.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Account, Encoding, End, Reply, Usage};
use tollgate_tests::{Client, Rig, over_both, wait_for_rows};

use super::{USED, check_unknown, check_used, next_row, object_turn, open_rig, stream_turn};

/// A gateway with an API key and no users.
async fn key_rig() -> (Rig, Client, Account) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let account = rig.upstream.api_key("sk-k", "k");
    (rig, client, account)
}

/// Returns the ways in which a stream may be written.
fn writings() -> Vec<(&'static str, Reply)> {
    let ok = || Reply::ok().usage(USED);
    let odd = || {
        ok().crlf()
            .comments()
            .without_space()
            .without_final_newline()
            .without_content_type()
    };
    vec![
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
    ]
}

over_both!(usage_is_counted_however_the_response_is_written);
async fn usage_is_counted_however_the_response_is_written() {
    let (mut rig, client, account) = open_rig().await;
    for (place, (name, reply)) in writings().into_iter().enumerate() {
        account.then(reply.response_id("resp_counted"));
        let answer = client.turn(&stream_turn()).await;
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
        assert!(client.turn(&object_turn()).await.whole, "{name}");
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
            object_turn().to_string(),
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

over_both!(a_response_without_usage_data_is_unpriced_with_a_reason);
async fn a_response_without_usage_data_is_unpriced_with_a_reason() {
    let (mut rig, client, account) = key_rig().await;
    account
        .then(Reply::ok().without_usage())
        .then(Reply::ok().without_usage())
        .then(Reply::ok());
    client.turn(&stream_turn()).await;
    client.turn(&object_turn()).await;
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
    let cases = ends.map(|end| [(end, stream_turn()), (end, object_turn())]);
    for (place, ((end, name), body)) in cases.concat().into_iter().enumerate() {
        let stream = &body["stream"];
        account.then(Reply::ok().end(end).usage(USED));
        assert!(client.turn(&body).await.whole);
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
        client.turn(&stream_turn()).await;
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
