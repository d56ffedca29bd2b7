//! Bad upstreams: what they send reaches the client as far as it goes, or is an error of the
//! gateway's own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tollgate_tests::peer::Peer;
use tollgate_tests::upstream::{Encoding, Gate, Reply, Upstream};
use tollgate_tests::{Answer, BadPeerScene, Client, Row, ends, over_both, turn};

/// What a good upstream answers, byte by byte.
const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{\"id\": \"resp_one\"}";

/// What a bare upstream does when its bytes are out.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    /// Waits for the gateway to close.
    Stay,
}

/// An upstream that answers the first turn with these bytes, and all other requests well.
async fn bare(bytes: impl Into<Vec<u8>>, then: Then) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let first = Arc::new(Mutex::new(Some(bytes.into())));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let first = Arc::clone(&first);
            tokio::spawn(async move {
                let mut peer = Peer::new(stream);
                while let Some(request) = peer.message().await {
                    // The gateway asks for the account's use besides, whenever it likes.
                    let is_turn = request.head.starts_with("post ");
                    let bad = is_turn
                        .then(|| first.lock().expect("no holder panics").take())
                        .flatten();
                    let Some(bytes) = bad else {
                        peer.send(GOOD).await;
                        continue;
                    };
                    peer.send(bytes).await;
                    if then == Then::Stay {
                        peer.rest().await;
                    }
                    return;
                }
            });
        }
    });
    address
}

fn turn_as_json() -> Value {
    let mut body = turn("bad");
    body["stream"] = json!(false);
    body
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some("api_error"), Some(code))
    );
}

over_both!(an_upstream_that_closes_before_its_head_is_502);
async fn an_upstream_that_closes_before_its_head_is_502() {
    let scene = BadPeerScene::new(json!({})).await;
    // Once on a fresh connection, and once on a reused connection.
    for reply in [
        Reply::close_before_head(),
        Reply::close_before_head().by_reset(),
    ] {
        for _ in 0..2 {
            scene.account().then(reply.clone());
            check_error(
                &scene.client.turn(&turn("bad")).await,
                502,
                "upstream_broken",
            );
            scene.client.turn(&turn("between")).await;
        }
    }
    assert_eq!(
        scene.upstream().turns().len(),
        8,
        "a request was sent twice"
    );
    let rows = scene.end(8).await;
    let broken: Vec<&Row> = rows
        .iter()
        .filter(|row| row.text("session") == Some("bad"))
        .collect();
    for row in broken {
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(502), Some("upstream_gone"))
        );
        assert_eq!(row.attempts().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_nobody_listens_on_is_502() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    };
    let mut scene = BadPeerScene::before(closed, json!({})).await;
    check_error(
        &scene.client.turn(&turn("bad")).await,
        502,
        "upstream_unreachable",
    );
    // It comes up later: the gateway goes there again.
    let listener = TcpListener::bind(closed)
        .await
        .expect("the port is still free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut peer = Peer::new(stream);
            peer.message().await;
            peer.send(GOOD).await;
        }
    });
    scene.serves().await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(502, "upstream_gone")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_speaks_no_http_is_502() {
    let endless = format!("HTTP/1.1 200 OK\r\nx-filler: {}", "f".repeat(2_000_000));
    let fields: String = (0..5000)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let many = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let cases: [&[u8]; 9] = [
        b"\0\xff\0\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/7.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 O",
        endless.as_bytes(),
        many.as_bytes(),
    ];
    for bytes in cases {
        let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let answer = scene.client.turn(&turn("bad")).await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_GATEWAY,
            "{shown:?}: {}",
            answer.text()
        );
        let rows = scene.end(1).await;
        assert_eq!(ends(&rows), [(502, "upstream_gone")], "{shown:?}");
    }
}

over_both!(an_upstream_that_does_not_answer_is_504);
async fn an_upstream_that_does_not_answer_is_504() {
    let scene = BadPeerScene::new(json!({ "upstream_head_timeout": "200ms" })).await;
    let gate = Gate::new();
    scene.account().then(Reply::ok().hold_head(&gate));
    check_error(
        &scene.client.turn(&turn("bad")).await,
        504,
        "upstream_timeout",
    );
    scene.upstream().wait_for_abandoned(0).await;
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(504, "upstream_gone")]);
    assert_eq!(rows[0].attempts().len(), 1);
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_begins_its_head_and_stops_is_504() {
    let address = bare("HTTP/1.1 200 OK\r\nx-slow: ", Then::Stay).await;
    let scene = BadPeerScene::before(address, json!({ "upstream_head_timeout": "300ms" })).await;
    check_error(
        &scene.client.turn(&turn("bad")).await,
        504,
        "upstream_timeout",
    );
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(504, "upstream_gone")]);
}

over_both!(a_stream_that_falls_silent_is_cut);
async fn a_stream_that_falls_silent_is_cut() {
    let scene = BadPeerScene::new(json!({ "upstream_idle_timeout": "200ms" })).await;
    let gate = Gate::new();
    for client in [scene.client.clone(), scene.client.http2()] {
        scene.account().then(Reply::ok().hold_after(2, &gate));
        let answer = client.turn(&turn("bad")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(
            !answer.whole && answer.text().contains("response.created"),
            "{}",
            answer.text()
        );
        assert!(!answer.text().contains("response.completed"));
    }
    scene.upstream().wait_for_abandoned(2).await;
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone"); 2]);
    gate.open();
}

over_both!(a_stream_that_is_slow_and_not_silent_is_not_cut);
async fn a_stream_that_is_slow_and_not_silent_is_not_cut() {
    let scene = BadPeerScene::new(json!({ "upstream_idle_timeout": "400ms" })).await;
    // 700 ms in all.
    scene.account().then(
        Reply::ok()
            .deltas(10)
            .pause_between(Duration::from_millis(50)),
    );
    let answer = scene.client.turn(&turn("slow")).await;
    assert!(answer.whole && answer.text().contains("response.completed"));
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
}

/// The client sees that its answer is not whole: where the cut came at once, even the head may be
/// missing, and where it came before the first byte of the body, the gateway may say so instead.
/// Returns what the row should contain.
async fn check_cut(what: &str, client: &Client, body: &Value) -> (i64, &'static str) {
    let sent = client
        .try_send(Method::POST, "/v1/responses", body.to_string())
        .await;
    let Ok(answer) = sent else {
        return (200, "upstream_gone");
    };
    let answer = answer.finish().await;
    if answer.status == StatusCode::BAD_GATEWAY {
        check_error(&answer, 502, "upstream_broken");
        return (502, "upstream_gone");
    }
    assert_eq!(answer.status, StatusCode::OK, "{what}");
    assert!(
        !answer.whole,
        "{what}: a broken answer passes for a whole one"
    );
    (200, "upstream_gone")
}

over_both!(an_upstream_that_closes_in_the_middle_is_cut);
async fn an_upstream_that_closes_in_the_middle_is_cut() {
    let scene = BadPeerScene::new(json!({})).await;
    let mut told = Vec::new();
    for body in [turn("bad"), turn_as_json()] {
        for reply in [
            Reply::ok().close_after(300),
            Reply::ok().close_after(300).by_reset(),
        ] {
            for client in [scene.client.clone(), scene.client.http2()] {
                scene.account().then(reply.clone());
                told.push(check_cut(&format!("{reply:?}"), &client, &body).await);
            }
        }
    }
    assert_eq!(
        scene.upstream().turns().len(),
        told.len(),
        "a request was sent again after its answer had begun"
    );
    let rows = scene.end(told.len()).await;
    assert_eq!(ends(&rows), told);
}

over_both!(what_came_before_a_cut_reaches_the_client);
async fn what_came_before_a_cut_reaches_the_client() {
    let scene = BadPeerScene::new(json!({})).await;
    for client in [scene.client.clone(), scene.client.http2()] {
        let gate = Gate::new();
        scene
            .account()
            .then(Reply::ok().hold_after(2, &gate).close_after(1500));
        let mut stream = client.start_turn(&turn("bad")).await;
        stream.until("response.created").await;
        gate.open();
        assert!(!stream.finish().await.whole);
    }
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone"); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_length_that_is_too_long_is_a_cut() {
    let bytes = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"id\": \"resp_1\"}";
    let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert_eq!(
        (answer.status, answer.whole, answer.text().as_str()),
        (StatusCode::OK, false, "{\"id\": \"resp_1\"}")
    );
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "upstream_gone")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_the_content_length_is_nobodys_answer() {
    let bytes = format!("{GOOD}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged");
    let scene = BadPeerScene::before(bare(bytes, Then::Stay).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert!(answer.whole);
    assert_eq!(answer.text(), "{\"id\": \"resp_one\"}");
    let next = scene.client.turn(&turn_as_json()).await;
    assert_eq!(next.text(), "{\"id\": \"resp_one\"}");
    let rows = scene.end(2).await;
    assert_eq!(ends(&rows), [(200, "complete"); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_with_its_connection_is_whole() {
    let bytes = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"id\": \"resp_old\", \"model\": \"gpt-5.4\", \
        \"usage\": {\"input_tokens\": 7, \"output_tokens\": 3}}";
    let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
    let answer = scene.client.turn(&turn_as_json()).await;
    assert!(answer.whole && answer.json()["id"] == "resp_old");
    let rows = scene.end(1).await;
    assert_eq!(ends(&rows), [(200, "complete")]);
    assert_eq!(
        (
            rows[0].number("input_tokens"),
            rows[0].number("output_tokens")
        ),
        (Some(7), Some(3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_chunks_are_a_cut() {
    for chunks in [
        "5\r\nhello\r\nzz\r\n",
        "5\r\nhelloworld\r\n",
        "ffffffffffffffffff\r\n",
        "5\r\nhello\r\n",
    ] {
        let bytes = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let scene = BadPeerScene::before(bare(bytes, Then::Close).await, json!({})).await;
        let told = check_cut(chunks, &scene.client, &turn("bad")).await;
        let rows = scene.end(1).await;
        assert_eq!(ends(&rows), [told], "{chunks:?}");
    }
}

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
