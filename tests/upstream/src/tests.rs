//! The upstream's own promises, seen by a bare client.

mod login;
mod socket;

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const RESPONSES: &str = "/backend-api/codex/responses";
const CHAT: &str = "/v1/chat/completions";

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Name (from the data's `type`) and data of each event.
    fn events(&self) -> Vec<(String, Value)> {
        events(&self.body)
    }
}

fn events(body: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(body).expect("text");
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let events = data
        .map(str::trim)
        .filter(|data| *data != "[DONE]")
        .map(|data| {
            let data: Value = serde_json::from_str(data).expect("an event's data is JSON");
            (data["type"].as_str().unwrap_or("chunk").to_owned(), data)
        });
    events.collect()
}

fn request(path: &str, token: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "upstream");
    request
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(body))
        .expect("a request")
}

async fn send(
    upstream: &Upstream,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

async fn ask(upstream: &Upstream, path: &str, body: Value) -> Answered {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = send(upstream, request(path, "at-ana", body))
        .await
        .expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answered {
        status: head.status,
        headers: head.headers,
        body,
    }
}

async fn start() -> (Upstream, Account) {
    let upstream = Upstream::start().await;
    let ana = upstream.account("at-ana", "acct-ana");
    (upstream, ana)
}

fn turn() -> Value {
    json!({"model": "gpt-5.4", "stream": true, "input": []})
}

#[tokio::test]
async fn an_unscripted_turn_is_a_well_formed_stream() {
    let (upstream, _ana) = start().await;
    let answered = ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(answered.headers["content-type"], "text/event-stream");
    let events = answered.events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    let sequence: Vec<u64> = events
        .iter()
        .filter_map(|(_, data)| data["sequence_number"].as_u64())
        .collect();
    assert_eq!(sequence, Vec::from_iter(0..11));
    let response = &events[10].1["response"];
    assert_eq!(response["model"], "gpt-5.4");
    assert_eq!(response["service_tier"], "default");
    assert_eq!(response["id"], events[0].1["response"]["id"]);
    assert_eq!(
        response["usage"]["input_tokens_details"]["cached_tokens"],
        800
    );
    assert_eq!(response["usage"]["total_tokens"], 1350);
    assert_eq!(
        response["output"][0]["content"][0]["text"],
        "tick tick tick "
    );
}

#[tokio::test]
async fn without_stream_the_turn_is_one_object_with_an_id_of_its_own() {
    let (upstream, _ana) = start().await;
    let body = json!({"model": "gpt-5.4", "service_tier": "priority"});
    let first = ask(&upstream, RESPONSES, body.clone()).await;
    let second = ask(&upstream, "/v1/responses", body).await;
    assert_eq!(
        first.headers["content-length"],
        first.body.len().to_string()
    );
    assert_eq!(first.json()["service_tier"], "priority");
    assert_ne!(first.json()["id"], second.json()["id"]);
    assert_eq!(first.json()["status"], "completed");
}

#[tokio::test]
async fn the_queue_goes_before_always_and_always_before_the_upstreams() {
    let (upstream, ana) = start().await;
    upstream.always(Reply::server_error(503));
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 503);
    ana.always(Reply::server_error(500)).then(
        Reply::usage_limit_reached()
            .resets_in_seconds(60)
            .retry_after("60"),
    );
    let limited = ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(limited.status, 429);
    assert_eq!(limited.headers["retry-after"], "60");
    assert_eq!(limited.json()["error"]["type"], "usage_limit_reached");
    assert_eq!(limited.json()["error"]["resets_in_seconds"], 60);
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 500);
    ana.clear_script();
    assert_eq!(ask(&upstream, RESPONSES, turn()).await.status, 503);
}

#[tokio::test]
async fn strangers_and_unknown_paths_are_refused() {
    let (upstream, _ana) = start().await;
    assert_eq!(ask(&upstream, "/v1/nothing", turn()).await.status, 404);
    let stranger = send(&upstream, request(RESPONSES, "at-unknown", "{}"))
        .await
        .expect("an answer");
    assert_eq!(stranger.status(), 401);
    let mut crossed = request(RESPONSES, "at-ana", "{}");
    crossed
        .headers_mut()
        .insert("chatgpt-account-id", "acct-ben".parse().expect("a value"));
    assert_eq!(
        send(&upstream, crossed).await.expect("an answer").status(),
        401
    );
    let broken = send(&upstream, request(RESPONSES, "at-ana", "{"))
        .await
        .expect("an answer");
    assert_eq!(broken.status(), 400);
}

#[tokio::test]
async fn a_chat_stream_tells_usage_only_if_asked() {
    let (upstream, _ana) = start().await;
    let plain = ask(
        &upstream,
        CHAT,
        json!({"model": "gpt-4.1-mini", "stream": true}),
    )
    .await;
    assert!(plain.body.ends_with(b"data: [DONE]\n\n"));
    assert!(
        plain
            .events()
            .iter()
            .all(|(_, chunk)| chunk.get("usage").is_none())
    );
    let options =
        json!({"model": "gpt-4.1-mini", "stream": true, "stream_options": {"include_usage": true}});
    let told = ask(&upstream, CHAT, options).await;
    assert_eq!(
        told.events().last().expect("a chunk").1["usage"]["prompt_tokens"],
        1200
    );
    let whole = ask(&upstream, CHAT, json!({"model": "gpt-4.1-mini"})).await;
    assert_eq!(
        whole.json()["choices"][0]["message"]["content"],
        "tick tick tick "
    );
}

#[tokio::test]
async fn the_other_routes_answer() {
    let (upstream, ana) = start().await;
    ana.set_standing(
        Standing::new("pro")
            .five_hour_used(12.0)
            .weekly_used(30.5)
            .slots(Slots::WeeklyFirst),
    );
    let usage = ask(&upstream, "/backend-api/wham/usage", Value::Null)
        .await
        .json();
    assert_eq!(usage["plan_type"], "pro");
    assert_eq!(usage["rate_limit"]["primary_window"]["used_percent"], 30.5);
    assert_eq!(
        usage["rate_limit"]["secondary_window"]["limit_window_seconds"],
        18_000
    );
    assert_eq!(usage["rate_limit"]["secondary_window"]["used_percent"], 12);
    ana.then_for_poll(Reply::server_error(500));
    assert_eq!(
        ask(&upstream, "/backend-api/wham/usage", Value::Null)
            .await
            .status,
        500
    );
    assert_eq!(
        ask(&upstream, "/v1/models", Value::Null).await.json()["object"],
        "list"
    );
    assert_eq!(
        ask(&upstream, "/backend-api/codex/models", Value::Null)
            .await
            .json(),
        json!({"models": []})
    );
    let compacted = ask(
        &upstream,
        "/backend-api/codex/responses/compact",
        json!({"model": "gpt-5.4"}),
    )
    .await
    .json();
    assert_eq!(compacted["output"][0]["type"], "compaction");
}

#[tokio::test]
async fn rate_limit_headers_come_in_each_form() {
    let (upstream, ana) = start().await;
    let standing = Standing::new("plus")
        .five_hour_used(97.0)
        .weekly_resets_at(2_000_000_000);
    for (form, active, name) in [
        (HeaderForm::Plain, None, "x-codex-primary-used-percent"),
        (
            HeaderForm::ActiveLimit,
            Some("codex_bengalfox"),
            "x-codex-bengalfox-primary-used-percent",
        ),
        (
            HeaderForm::PlainBesideActiveLimit,
            Some("codex_bengalfox"),
            "x-codex-primary-used-percent",
        ),
    ] {
        ana.set_standing(standing.clone().header_form(form));
        let headers = ask(&upstream, RESPONSES, turn()).await.headers;
        assert_eq!(headers[name], "97", "{form:?}");
        assert_eq!(
            headers
                .get("x-codex-active-limit")
                .map(|value| value.to_str().expect("text")),
            active,
            "{form:?}"
        );
        assert_eq!(
            headers[name.replace("primary-used-percent", "secondary-reset-at")],
            "2000000000"
        );
        assert_eq!(
            headers[name.replace("primary-used-percent", "secondary-window-minutes")],
            "10080"
        );
    }
    ana.set_standing(standing.header_form(HeaderForm::Absent));
    let headers = ask(&upstream, RESPONSES, turn()).await.headers;
    assert!(
        headers
            .keys()
            .all(|name| !name.as_str().starts_with("x-codex"))
    );
}

#[tokio::test]
async fn a_turn_uses_up_the_windows() {
    let (upstream, ana) = start().await;
    let mut standing = Standing::new("plus").weekly_used(40.0);
    standing.weekly.used_percent_per_turn = 6.0;
    ana.set_standing(standing);
    let headers = ask(&upstream, RESPONSES, turn()).await.headers;
    assert_eq!(headers["x-codex-secondary-used-percent"], "46");
    ana.then(Reply::server_error(500));
    ask(&upstream, RESPONSES, turn()).await;
    assert_eq!(ana.standing().weekly.used_percent, 46.0);
}

#[tokio::test]
async fn a_gate_holds_the_stream_until_told() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(2, &gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    gate.wait_until_reached().await;
    let mut body = response.into_body();
    let mut seen = Vec::new();
    // The events before the first delta, and that delta.
    while events(&seen).len() < 5 {
        let frame = body.frame().await.expect("a frame").expect("no error");
        seen.extend_from_slice(frame.data_ref().expect("data"));
    }
    assert_eq!(events(&seen).len(), 5);
    gate.open();
    seen.extend_from_slice(&body.collect().await.expect("the rest").to_bytes());
    assert_eq!(events(&seen).len(), 11);
    assert_eq!(upstream.abandoned(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_is_seen() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(1, &gate))
        .then(Reply::ok().hold_head(&gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    drop(response);
    upstream.wait_for_abandoned(1).await;
    // The second never gets a head.
    let asking = tokio::spawn({
        let upstream = upstream.clone();
        async move { ask(&upstream, RESPONSES, turn()).await }
    });
    gate.wait_until_reached_times(2).await;
    asking.abort();
    upstream.wait_for_abandoned(2).await;
}

/// All bytes that a bare client gets.
async fn raw_answer(upstream: &Upstream) -> Vec<u8> {
    let mut stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let body = turn().to_string();
    let head = format!(
        "POST {RESPONSES} HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer at-ana\r\ncontent-length: {}\r\n\r\n",
        body.len(),
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .expect("written");
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn connections_break_where_the_script_says() {
    let (upstream, ana) = start().await;
    ana.then(Reply::close_before_head());
    assert_eq!(raw_answer(&upstream).await, b"");
    ana.then(Reply::close_before_head().by_reset());
    assert_eq!(raw_answer(&upstream).await, b"");
    ana.then(Reply::garbage("\x16\x03\x01 what?"));
    assert_eq!(raw_answer(&upstream).await, b"\x16\x03\x01 what?");
    ana.then(Reply::json(200, &json!({"a": "0123456789"})).close_after(4));
    let cut = raw_answer(&upstream).await;
    let text = String::from_utf8(cut).expect("text");
    assert!(
        text.contains("content-length: 18\r\n") && text.ends_with("\r\n\r\n{\"a\""),
        "{text}"
    );
    ana.then(Reply::ok().close_after(20));
    let text = String::from_utf8(raw_answer(&upstream).await).expect("text");
    assert!(
        text.ends_with("event: response.crea\r\n"),
        "a chunk and no last chunk: {text}"
    );
    assert_eq!(upstream.abandoned(), 0);
}

#[tokio::test]
async fn a_compressed_stream_reads_part_by_part() {
    let (upstream, ana) = start().await;
    for encoding in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Brotli,
    ] {
        ana.then(Reply::ok().encoded(encoding).chunks(&[1, 7]));
        let answered = ask(&upstream, RESPONSES, turn()).await;
        assert_eq!(answered.headers["content-encoding"], encoding.name());
        assert_eq!(
            events(&decoded(encoding, &answered.body)).len(),
            11,
            "{encoding:?}"
        );
        let gate = Gate::new();
        ana.then(Reply::ok().encoded(encoding).hold_after(3, &gate));
        let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
            .await
            .expect("a head");
        let (mut body, mut seen) = (response.into_body(), Vec::new());
        while events(&decoded(encoding, &seen)).len() < 6 {
            seen.extend_from_slice(
                body.frame()
                    .await
                    .expect("a frame")
                    .expect("no error")
                    .data_ref()
                    .expect("data"),
            );
        }
        gate.open();
        seen.extend_from_slice(&body.collect().await.expect("the rest").to_bytes());
        assert_eq!(events(&decoded(encoding, &seen)).len(), 11, "{encoding:?}");
    }
}

/// What can be decoded of a stream that may be unfinished.
fn decoded(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
    let mut reader: Box<dyn Read + '_> = match encoding {
        Encoding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        Encoding::Deflate => Box::new(flate2::read::ZlibDecoder::new(bytes)),
        Encoding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).expect("a decoder")),
        Encoding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
    };
    let mut out = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = reader.read(&mut piece) {
        out.extend_from_slice(&piece[..read]);
    }
    out
}

#[tokio::test]
async fn streams_are_spelt_as_told() {
    let (upstream, ana) = start().await;
    ana.then(
        Reply::ok()
            .crlf()
            .comments()
            .without_space()
            .without_final_newline()
            .without_content_type(),
    );
    let answered = ask(&upstream, RESPONSES, turn()).await;
    assert!(!answered.headers.contains_key("content-type"));
    let text = std::str::from_utf8(&answered.body).expect("text");
    assert!(
        text.starts_with(":a comment\r\nevent:response.created\r\ndata:{"),
        "{text}"
    );
    assert!(text.ends_with("}}"), "{text}");
    assert_eq!(answered.events().len(), 11);
}

#[tokio::test]
async fn ends_and_figures_are_as_told() {
    let (upstream, ana) = start().await;
    let usage = Usage {
        input: 10,
        cached: 4,
        cache_write: 3,
        output: 2,
        reasoning: 1,
    };
    for (end, last) in [
        (End::Incomplete, "response.incomplete"),
        (End::Failed, "response.failed"),
        (End::Missing, "response.output_text.delta"),
    ] {
        ana.then(
            Reply::ok()
                .end(end)
                .usage(usage)
                .deltas(2)
                .delta_bytes(9)
                .model("gpt-5")
                .response_id("resp_x"),
        );
        let events = ask(&upstream, RESPONSES, turn()).await.events();
        let (name, data) = events.last().expect("an event");
        assert_eq!(name, last);
        if end != End::Missing {
            assert_eq!(
                data["response"]["usage"]["input_tokens_details"]["cache_write_tokens"],
                3
            );
            assert_eq!(
                (&data["response"]["id"], &data["response"]["model"]),
                (&json!("resp_x"), &json!("gpt-5"))
            );
        }
    }
    ana.then(Reply::ok().without_usage());
    assert!(ask(&upstream, RESPONSES, turn()).await.events()[5].1["response"]["usage"].is_null());
}

#[tokio::test]
async fn requests_are_kept_as_they_came() {
    let (upstream, _ana) = start().await;
    ask(&upstream, &format!("{RESPONSES}?a=1"), turn()).await;
    ask(&upstream, "/v1/models", Value::Null).await;
    let requests = upstream.wait_for_requests(2).await;
    assert_eq!(requests[0].target, format!("{RESPONSES}?a=1"));
    assert_eq!(requests[0].body, turn().to_string());
    assert_eq!(requests[0].account.as_deref(), Some("acct-ana"));
    assert_eq!(requests[0].header("authorization"), Some("Bearer at-ana"));
    assert_ne!(requests[0].connection, requests[1].connection);
    assert_eq!(upstream.wait_for_turns(1).await.len(), 1);
}

#[tokio::test]
async fn http2_is_spoken_by_prior_knowledge() {
    let (upstream, _ana) = start().await;
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    let mut asked = request(RESPONSES, "at-ana", turn().to_string());
    asked.headers_mut().remove("host");
    *asked.uri_mut() = format!("{}{RESPONSES}", upstream.api_url())
        .parse()
        .expect("a URI");
    let response = sender.send_request(asked).await.expect("an answer");
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(events(&body).len(), 11);
    assert_eq!(upstream.requests()[0].version, http::Version::HTTP_2);
}

#[tokio::test]
async fn compressed_requests_are_read() {
    let (upstream, _ana) = start().await;
    let body = zstd::stream::encode_all(turn().to_string().as_bytes(), 3).expect("encoded");
    let mut asked = request(RESPONSES, "at-ana", body.clone());
    asked
        .headers_mut()
        .insert("content-encoding", "zstd".parse().expect("a value"));
    let response = send(&upstream, asked).await.expect("an answer");
    let answer = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    assert_eq!(
        events(&answer).last().expect("an event").1["response"]["model"],
        "gpt-5.4"
    );
    assert_eq!(upstream.requests()[0].body, body);
}

#[tokio::test]
async fn stopping_closes_listener_and_connections() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then(Reply::ok().hold_after(1, &gate));
    let response = send(&upstream, request(RESPONSES, "at-ana", turn().to_string()))
        .await
        .expect("a head");
    upstream.stop().await;
    assert!(
        response.into_body().collect().await.is_err(),
        "the stream was cut"
    );
    assert!(TcpStream::connect(upstream.address()).await.is_err());
    assert_eq!(upstream.abandoned(), 0);
}
