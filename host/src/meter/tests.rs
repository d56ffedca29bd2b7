use std::io::Write;

use http::HeaderMap;

use super::*;
use crate::values::exchange::counts::TokenCounts;

const DELTA: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\n\n";
const LAST: &str = concat!(
    "event: response.completed\n",
    r#"data: {"type":"response.completed","response":{"id":"resp_1","object":"response","model":"gpt-5.4","#,
    r#""output":[{"content":[{"text":"}{\"usage\": 1"}]}],"service_tier":"flex","#,
    r#""usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":40,"cache_write_tokens":5},"#,
    r#""output_tokens":20,"output_tokens_details":{"reasoning_tokens":7},"total_tokens":120}}}"#,
    "\n\n"
);
const COUNTS: TokenCounts = TokenCounts {
    input: 100,
    cached: 40,
    cache_write: 5,
    output: 20,
    reasoning: 7,
};

fn headers(content_type: &str, encoding: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", content_type),
        ("content-encoding", encoding),
    ] {
        if !value.is_empty() {
            headers.insert(name, value.parse().expect("a value"));
        }
    }
    headers
}

fn meter(headers: &HeaderMap, body: &[u8], piece: usize) -> (Meter, Vec<BodyProgress>) {
    let mut meter = Meter::new(headers, 1 << 20);
    let progress = body.chunks(piece).map(|piece| meter.feed(piece)).collect();
    (meter, progress)
}

#[track_caller]
fn check_sse(body: &str, expected: Option<TokenCounts>, end: ExchangeEnd) {
    for piece in [1, 2, 3, 5, 11, 64, 1 << 20] {
        let (mut meter, progress) =
            meter(&headers("text/event-stream", ""), body.as_bytes(), piece);
        assert_eq!(meter.finish(), end, "in pieces of {piece}");
        assert_eq!(meter.metered().counts, expected, "in pieces of {piece}");
        let complete = progress
            .iter()
            .filter(|step| **step == BodyProgress::Complete)
            .count();
        assert_eq!(
            complete,
            usize::from(end != ExchangeEnd::UpstreamGone),
            "in pieces of {piece}"
        );
    }
}

#[test]
fn usage_is_found_in_the_last_event() {
    check_sse(
        &[DELTA, DELTA, LAST].concat(),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
    let (meter, _) = meter(&headers("text/event-stream", ""), LAST.as_bytes(), 7);
    let metered = meter.metered();
    assert_eq!(metered.model.as_deref(), Some("gpt-5.4"));
    assert_eq!(metered.service_tier.as_deref(), Some("flex"));
    assert_eq!(metered.response_id.as_deref(), Some("resp_1"));
}

#[test]
fn every_form_of_a_line_is_read() {
    let body = [DELTA, LAST].concat();
    check_sse(
        &body.replace('\n', "\r\n"),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
    check_sse(
        &body.replace('\n', "\r"),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
    check_sse(
        &body.replace("data: ", "data:"),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
    check_sse(
        &format!(": a comment\n\n{body}"),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
    check_sse(body.trim_end(), Some(COUNTS), ExchangeEnd::Complete);
    check_sse(
        &body.replace(",\"response\"", "\ndata: ,\"response\""),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
}

#[test]
fn a_stream_that_ends_early_is_counted_and_says_how() {
    check_sse(
        &LAST.replace("response.completed", "response.incomplete"),
        Some(COUNTS),
        ExchangeEnd::Incomplete,
    );
    check_sse(
        &LAST.replace("response.completed", "response.failed"),
        Some(COUNTS),
        ExchangeEnd::Failed,
    );
    check_sse(DELTA, None, ExchangeEnd::UpstreamGone);
    check_sse("", None, ExchangeEnd::UpstreamGone);
}

#[test]
fn lines_without_data_are_skipped() {
    let line = "x".repeat(100_000);
    check_sse(
        &format!("{line}\ndata: \0\0\n\ndata: {line}\n\ndata: [1]\n\n{LAST}"),
        Some(COUNTS),
        ExchangeEnd::Complete,
    );
}

#[test]
fn chat_completions_have_the_usage_before_done() {
    let body = concat!(
        "data: {\"id\":\"c1\",\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"hi\"}}],\"usage\":null}\n\n",
        "data: {\"id\":\"c1\",\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens\":3}}\n\n",
        "data: [DONE]\n\n"
    );
    check_sse(
        body,
        Some(TokenCounts {
            input: 9,
            cached: 4,
            output: 3,
            ..TokenCounts::default()
        }),
        ExchangeEnd::Complete,
    );
}

#[test]
fn a_json_body_is_read_and_only_its_transport_knows_where_it_ends() {
    let body = br#"{"id":"resp_1","status":"incomplete","model":"gpt-5","usage":{"input_tokens":5,"output_tokens":1}}"#;
    for piece in [1, 9, 1000] {
        let (mut meter, progress) =
            meter(&headers("application/json; charset=utf-8", ""), body, piece);
        assert!(progress.iter().all(|step| *step == BodyProgress::Open));
        assert_eq!(meter.finish(), ExchangeEnd::Incomplete);
        assert_eq!(
            meter.metered().counts,
            Some(TokenCounts {
                input: 5,
                output: 1,
                ..TokenCounts::default()
            })
        );
    }
}

#[test]
fn the_first_byte_stands_in_for_a_missing_content_type() {
    let (sse, _) = meter(&headers("", ""), LAST.as_bytes(), 3);
    assert_eq!(sse.metered().counts, Some(COUNTS));
    let (json, _) = meter(&headers("", ""), b"  {\"usage\":{\"input_tokens\":1}}", 3);
    assert!(json.metered().counts.is_some());
}

fn encoded(encoding: &str, body: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::fast();
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(body).expect("writes");
            encoder.finish().expect("ends")
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(body).expect("writes");
            encoder.finish().expect("ends")
        }
        _ => zstd::encode_all(body, 1).expect("encodes"),
    }
}

#[test]
fn compressed_bodies_are_read() {
    let body = [&DELTA.repeat(50), LAST].concat();
    for encoding in ["gzip", "deflate", "zstd"] {
        let compressed = encoded(encoding, body.as_bytes());
        for piece in [1, 7, 1 << 20] {
            let (mut meter, _) = meter(&headers("text/event-stream", encoding), &compressed, piece);
            assert_eq!(
                meter.finish(),
                ExchangeEnd::Complete,
                "{encoding} in pieces of {piece}"
            );
            assert_eq!(
                meter.metered().counts,
                Some(COUNTS),
                "{encoding} in pieces of {piece}"
            );
        }
    }
}

#[test]
fn raw_deflate_is_read_too() {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(LAST.as_bytes()).expect("writes");
    let (meter, _) = meter(
        &headers("text/event-stream", "deflate"),
        &encoder.finish().expect("ends"),
        9,
    );
    assert_eq!(meter.metered().counts, Some(COUNTS));
}

#[test]
fn a_body_that_expands_past_the_limit_is_abandoned_with_a_reason() {
    let body = ": ".repeat(1 << 20);
    for encoding in ["gzip", "deflate", "zstd"] {
        let (meter, _) = meter(
            &headers("text/event-stream", encoding),
            &encoded(encoding, body.as_bytes()),
            64,
        );
        assert_eq!(
            meter.metered().unknown,
            Some(UnknownUsage::TooLarge),
            "{encoding}"
        );
    }
}

#[test]
fn an_unknown_or_violated_encoding_is_a_reason() {
    let (unknown, _) = meter(
        &headers("text/event-stream", "compress"),
        LAST.as_bytes(),
        64,
    );
    assert_eq!(
        unknown.metered().unknown,
        Some(UnknownUsage::UnknownEncoding)
    );
    let (broken, _) = meter(&headers("text/event-stream", "gzip"), LAST.as_bytes(), 64);
    assert_eq!(broken.metered().unknown, Some(UnknownUsage::Undecodable));
}
