//! Bodies in both directions, status codes, and HTTP/2 in clear.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::upstream::{Encoding, Gate, Reply, Upstream};
use tollgate_tests::{Client, Protocol, Rig, over_both, turn, wait_for_rows};

use super::{NOT_UNDER_V1, check_absent, check_error, open_rig, team_rig};

/// `{"model":"gpt-5.4","stream":true,"input":[],"prompt_cache_key":"packed"}`, packed by gzip 1.12
/// and zstd 1.5.
const GZIP_TURN: &str = "1f8b0800000000000203ab56cacd4f49cd51b2524a2f28d135d53351d2512a2e294a4dcc55b22a292a4dd551cacc2b282d51b28a8ed5512a28cacf2d28894f4e4cce488dcf4ead04ea2a484cce4e4d51aa050003e9267b48000000";

const ZSTD_TURN: &str = "28b52ffd24480d020082440f11907d64240fc913ea127157b002c6fa8f25dbd73f95a817cfffd0379514ba34ce4a1d1c53fc622a9d83c7f5168fe9ebb50e7c08122e655e1cfe9ad175002d1a604f";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

// Status and body from upstream

over_both!(upstreams_status_and_body_pass_as_they_are);
async fn upstreams_status_and_body_pass_as_they_are() {
    let explained = json!({"error": {"message": "Unsupported parameter: 'foo'", "type": "invalid_request_error",
        "param": "foo", "code": "unsupported_parameter"}});
    let cases = [
        (400, explained.to_string()),
        (201, "made".to_owned()),
        (204, String::new()),
        (304, String::new()),
        (403, "<html>blocked</html>".to_owned()),
        (404, "not here".to_owned()),
        (409, String::new()),
        (413, "too large".to_owned()),
        (418, "short and stout".to_owned()),
        (422, "{".to_owned()),
        (500, r#"{"error": {"message": "oops"}}"#.to_owned()),
        (502, "bad".to_owned()),
        (503, "busy".to_owned()),
        (529, "overloaded".to_owned()),
    ];
    let (mut rig, client) = open_rig().await;
    for (status, body) in cases {
        rig.account("a")
            .then(Reply::raw(status, body.clone()).header("x-theirs", "kept"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, body));
        assert!(answer.whole, "{status}");
        assert_eq!(answer.header("x-theirs"), Some("kept"), "{status}");
    }
    rig.stop().await;
}

over_both!(a_transport_failure_is_502_api_error);
async fn a_transport_failure_is_502_api_error() {
    let (mut rig, client) = open_rig().await;
    for reply in [
        Reply::close_before_head(),
        Reply::close_before_head().by_reset(),
        Reply::garbage("no HTTP\r\n\r\n"),
    ] {
        rig.account("a").then(reply);
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.json()["error"]["type"], "api_error");
    }
    rig.stop().await;
}

over_both!(an_upstream_that_never_answers_is_504);
async fn an_upstream_that_never_answers_is_504() {
    let mut rig = Rig::new().await;
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    config["limits"] = json!({ "upstream_head_timeout": "200ms" });
    let client = rig.start(config).await;
    let never = Gate::new();
    rig.account("a").then(Reply::ok().hold_head(&never));
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::GATEWAY_TIMEOUT
    );
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(row.attempts(), [("a".to_owned(), "timed_out".to_owned())]);
    rig.stop().await;
}

// Bodies

over_both!(a_request_body_is_forwarded_byte_for_byte);
async fn a_request_body_is_forwarded_byte_for_byte() {
    let spaced = "{ \"model\" :\t\"gpt-5.4\",\r\n \"input\": \"\\u00e9 é \u{1f600}\", \"stream\":true , \"n\": 1.0e0 }\n\n";
    let twice = r#"{"model":"a","model":"b","input":[]}"#;
    let large = format!(r#"{{"model":"gpt-5.4","input":"{}"}}"#, "x".repeat(3 << 20));
    let cases: [(&str, Vec<u8>); 6] = [
        ("spaces", spaced.into()),
        ("a key twice", twice.into()),
        ("3 MiB", large.into()),
        ("no JSON", b"not json at all".to_vec()),
        ("no UTF-8", vec![0xff, 0x00, 0xfe, b'{']),
        ("nothing", Vec::new()),
    ];
    let (mut rig, client) = open_rig().await;
    for (name, body) in cases {
        rig.account("a").then(Reply::ok());
        let answer = client
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        assert!(
            rig.upstream.turns().pop().expect("a turn").body == body,
            "{name}: the body was changed"
        );
    }
    rig.stop().await;
}

over_both!(a_compressed_body_is_forwarded_unchanged_and_metered);
async fn a_compressed_body_is_forwarded_unchanged_and_metered() {
    let (mut rig, client) = open_rig().await;
    for (place, (encoding, hex)) in [("gzip", GZIP_TURN), ("zstd", ZSTD_TURN)]
        .into_iter()
        .enumerate()
    {
        let body = bytes_of(hex);
        let client = client.header("content-encoding", encoding);
        // The response names no model, so that of the row comes from the request.
        rig.account("a")
            .then(Reply::raw(200, "fine").header("content-type", "text/plain"));
        let answer = client
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = rig.upstream.turns().pop().expect("a turn");
        assert_eq!(seen.header("content-encoding"), Some(encoding));
        assert_eq!(seen.body, Bytes::from(body));
        let row = &wait_for_rows(&rig.ledger(), place + 1).await[place];
        assert_eq!(
            (row.text("model"), row.text("session")),
            (Some("gpt-5.4"), Some("packed")),
            "{encoding}"
        );
    }
    rig.stop().await;
}

over_both!(an_invalid_compressed_body_is_forwarded_unchanged);
async fn an_invalid_compressed_body_is_forwarded_unchanged() {
    let (mut rig, client) = open_rig().await;
    for encoding in ["gzip", "zstd", "br", "no-such-coding", "gzip, zstd"] {
        rig.account("a").then(Reply::ok());
        let client = client.header("content-encoding", encoding);
        let answer = client
            .ask(Method::POST, "/v1/responses", "not packed")
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{encoding}");
        assert_eq!(
            rig.upstream.turns().pop().expect("a turn").body,
            "not packed"
        );
    }
    rig.stop().await;
}

over_both!(a_response_body_is_returned_byte_for_byte);
async fn a_response_body_is_returned_byte_for_byte() {
    let all: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    let events = "event: response.output_text.delta\r\ndata:{\"delta\" : \"\u{1f600}\"}\r\n\r\n: comment\n\ndata: \0x";
    let cases = [
        ("bytes", Reply::raw(200, all.clone()), all.clone()),
        (
            "bytes in pieces",
            Reply::raw(200, all.clone()).chunks(&[1, 999, 7]),
            all.clone(),
        ),
        (
            "bytes as JSON",
            Reply::raw(200, all.clone()).header("content-type", "application/json"),
            all.clone(),
        ),
        ("bytes as events", Reply::sse(all.clone()), all),
        ("events", Reply::sse(events), events.into()),
        (
            "events a byte at a time",
            Reply::sse(events).chunks(&[1]),
            events.into(),
        ),
    ];
    let (mut rig, client) = open_rig().await;
    for (name, reply, expected) in cases {
        rig.account("a").then(reply);
        let answer = client.turn(&turn("one")).await;
        assert!(
            answer.whole && answer.body == expected,
            "{name}: {} bytes",
            answer.body.len()
        );
    }
    rig.stop().await;
}

over_both!(a_compressed_response_reaches_the_client_unchanged);
async fn a_compressed_response_reaches_the_client_unchanged() {
    let (mut rig, client) = open_rig().await;
    let unrelated = Upstream::start().await;
    let direct = Client::new(unrelated.address()).token("access-a");
    for encoding in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Brotli,
    ] {
        let reply =
            Reply::sse("event: ping\ndata: {\"type\":\"ping\"}\n\n".repeat(500)).encoded(encoding);
        unrelated.account("access-a", "a").then(reply.clone());
        rig.account("a").then(reply);
        let expected = direct
            .ask(Method::POST, "/backend-api/codex/responses", "{}")
            .await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.header("content-encoding"), Some(encoding.name()));
        assert!(answer.whole && answer.body == expected.body, "{encoding:?}");
    }
    rig.stop().await;
}

over_both!(parts_of_a_response_are_not_delayed);
async fn parts_of_a_response_are_not_delayed() {
    let (mut rig, client) = open_rig().await;
    let gate = Gate::new();
    // Not even a whole event: the line has no end yet.
    rig.account("a").then(
        Reply::sse("data: {\"unfinished\": 1}\n\n")
            .chunks(&[9, 100])
            .hold_after(1, &gate),
    );
    let mut stream = client.start_turn(&turn("one")).await;
    assert_eq!(stream.until("data: {\"u").await, "data: {\"u");
    gate.open();
    assert_eq!(stream.finish().await.text(), "nfinished\": 1}\n\n");
    rig.stop().await;
}

// HTTP/2

over_both!(a_client_speaks_http2_by_prior_knowledge);
async fn a_client_speaks_http2_by_prior_knowledge() {
    let (mut rig, client) = team_rig().await;
    let client = client
        .token("token-alice")
        .http2()
        .header("x-forwarded-for", "192.0.2.1")
        .header("cookie", "a=b");
    rig.account("a").then(
        Reply::ok()
            .header("connection", "x-named")
            .header("x-named", "1")
            .header("set-cookie", "a"),
    );

    let (one, two) = (turn("one"), turn("two"));
    let (first, second) = tokio::join!(client.turn(&one), client.turn(&two));

    for answer in [&first, &second] {
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.whole && answer.text().contains("response.completed"));
        check_absent(&answer.headers, &["x-named", "set-cookie", "connection"]);
    }
    for seen in rig.upstream.turns() {
        assert_eq!(seen.version, Protocol::current().version());
        assert_eq!(
            seen.header("host"),
            Some(rig.upstream.address().to_string().as_str())
        );
        check_absent(&seen.headers, &["x-forwarded-for", "cookie"]);
    }
    check_error(
        &client.get("/v2").await,
        404,
        "invalid_request_error",
        None,
        NOT_UNDER_V1,
    );
    rig.stop().await;
}
