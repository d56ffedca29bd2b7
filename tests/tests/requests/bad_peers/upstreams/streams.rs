//! Streams of unusual lines and encodings.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::{Encoding, Reply, Upstream};
use tollgate_tests::{Answer, BadPeerScene, Client, ends, over_both, turn};

/// The last event of a stream that used 11 and 5 tokens, with `more` in its output.
fn completed(more: &str) -> String {
    let data = format!(
        r#"{{"type":"response.completed","response":{{"id":"resp_long","model":"gpt-5.4","output":"{more}","usage":{{"input_tokens":11,"output_tokens":5}}}}}}"#
    );
    format!("event: response.completed\ndata: {data}\n\n")
}

/// The stream reaches the client byte for byte, and its row has its tokens.
async fn check_stream(what: &str, stream: impl Into<Vec<u8>>) {
    let stream = stream.into();
    let scene = BadPeerScene::new(json!({})).await;
    scene
        .account()
        .then(Reply::sse(stream.clone()))
        .then(Reply::sse(stream.clone()).chunks(&[1, 8191, 65_537]));
    for _ in 0..2 {
        let answer = scene.client.turn(&turn("long")).await;
        assert!(answer.status == StatusCode::OK && answer.whole, "{what}");
        assert!(
            answer.body == stream,
            "{what}: {} bytes came out of {}",
            answer.body.len(),
            stream.len()
        );
    }
    let rows = scene.end(2).await;
    for row in &rows {
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(200), Some("complete")),
            "{what}"
        );
        let tokens = (row.number("input_tokens"), row.number("output_tokens"));
        assert_eq!(tokens, (Some(11), Some(5)), "{what}: {row:#?}");
    }
}

over_both!(lines_of_several_megabytes_pass_and_are_metered);
async fn lines_of_several_megabytes_pass_and_are_metered() {
    let long = "l".repeat(5_000_000);
    check_stream(
        "a long event",
        format!(
            "data: {{\"type\":\"x\",\"delta\":\"{long}\"}}\n\n{}",
            completed("")
        ),
    )
    .await;
    check_stream("a long last event", completed(&long)).await;
    check_stream("a long comment", format!(": {long}\n\n{}", completed(""))).await;
    check_stream("a long field name", format!("{long}\n\n{}", completed(""))).await;
    check_stream(
        "many empty lines",
        format!("{}{}", "\n".repeat(1_000_000), completed("")),
    )
    .await;
}

over_both!(nul_and_invalid_bytes_pass_and_what_is_around_is_metered);
async fn nul_and_invalid_bytes_pass_and_what_is_around_is_metered() {
    let mut odd =
        b"data: \0\0\0 \xff\xfe\n\n\0\n\n: \0\n\nevent: \0\ndata: {\"type\":\"a\0b\"}\n\n".to_vec();
    odd.extend(completed("").bytes());
    check_stream("NUL and invalid UTF-8", odd).await;
}

over_both!(a_stream_without_a_final_newline_is_metered);
async fn a_stream_without_a_final_newline_is_metered() {
    check_stream(
        "no empty line at the end",
        completed("").trim_end_matches('\n').to_owned() + "\n",
    )
    .await;
    check_stream(
        "no newline at the end",
        completed("").trim_end_matches('\n'),
    )
    .await;
}

over_both!(lines_that_end_in_cr_are_lines);
async fn lines_that_end_in_cr_are_lines() {
    check_stream("CR LF", completed("").replace('\n', "\r\n")).await;
    check_stream("CR", completed("").replace('\n', "\r")).await;
}

/// Returns what upstream answers to a client without a gateway.
async fn directly(reply: &Reply) -> Answer {
    let upstream = Upstream::start().await;
    upstream
        .account("access-a", "account-a")
        .then(reply.clone());
    let client = Client::new(upstream.address()).token("access-a");
    client
        .ask(
            Method::POST,
            "/backend-api/codex/responses",
            turn("direct").to_string(),
        )
        .await
}

async fn check_undecodable(what: &str, limits: Value, reply: Reply, reason: &str) {
    let scene = BadPeerScene::new(limits).await;
    let direct = directly(&reply).await;
    scene.account().then(reply);
    let answer = scene.client.turn(&turn("encoded")).await;
    assert!(answer.status == StatusCode::OK && answer.whole, "{what}");
    assert!(
        answer.body == direct.body,
        "{what}: the gateway changed the body"
    );
    assert_eq!(
        answer.header("content-encoding"),
        direct.header("content-encoding"),
        "{what}"
    );
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")], "{what}");
    let told = rows[0]
        .text("unpriced_reason")
        .unwrap_or_else(|| panic!("{what}: no reason: {rows:#?}"));
    assert!(told.contains(reason), "{what}: {told:?}");
}

over_both!(a_compressed_bomb_is_delivered_untouched_and_its_row_says_why_it_is_unpriced);
async fn a_compressed_bomb_is_delivered_untouched_and_its_row_says_why_it_is_unpriced() {
    for encoding in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Brotli,
    ] {
        let limits = json!({ "decoded_bytes": 1_000_000 });
        let stream = format!(": {}\n\n{}", " ".repeat(50_000_000), completed(""));
        let reply = Reply::sse(stream).encoded(encoding);
        check_undecodable(encoding.name(), limits, reply, "limits.decoded_bytes").await;
    }
}

over_both!(a_content_encoding_that_lies_is_delivered_untouched_and_its_row_says_why_it_is_unpriced);
async fn a_content_encoding_that_lies_is_delivered_untouched_and_its_row_says_why_it_is_unpriced() {
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let reply = Reply::sse(completed("")).header("content-encoding", encoding);
        check_undecodable(encoding, json!({}), reply, "cannot be decoded").await;
    }
    for encoding in ["nonsense", "gzip, zstd"] {
        let reply = Reply::sse(completed("")).header("content-encoding", encoding);
        check_undecodable(encoding, json!({}), reply, "unknown content encoding").await;
    }
}

over_both!(a_compressed_stream_that_breaks_off_is_a_cut);
async fn a_compressed_stream_that_breaks_off_is_a_cut() {
    let scene = BadPeerScene::new(json!({})).await;
    scene
        .account()
        .then(Reply::ok().encoded(Encoding::Gzip).close_after(50));
    scene.client.turn_cut_off(&turn("bad")).await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone")]);
}
