//! An upstream that speaks HTTP/2, and what its servers do that those of HTTP/1.1 cannot: end a
//! stream after its last byte, limit streams, reset one, and send GOAWAY.

use http::{Method, StatusCode, Version};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::values::limits::RESPONSE_DRAIN_BYTES;
use tollgate_tests::upstream::{Gate, Reason, Reply};
use tollgate_tests::{Answer, Client, Rig, rows, turn, wait_for_rows};

/// Requests at a time.
const AT_ONCE: usize = 64;

/// The parts of a scripted stream: its beginning, three deltas, the end of the message, the last
/// event.
const STREAM_PARTS: usize = 6;

/// A turn whose response is one JSON object, with a Content-Length.
fn unstreamed(session: &str) -> Value {
    let mut body = turn(session);
    body["stream"] = json!(false);
    body
}

/// A gateway with one account `a`.
async fn alone() -> (Rig, Client) {
    let mut rig = Rig::over_http2(|_| {}).await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    // Polled first: polls and turns that connect at once would open two connections.
    let client = rig.start_polled(config).await;
    (rig, client)
}

/// A gateway with a pool that asks `a` before `b`.
async fn pool() -> (Rig, Client) {
    let mut rig = Rig::over_http2(|_| {}).await;
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": ["a", "b"] });
    let config = rig.config(json!({ "credentials": [pool, rig.oauth("a"), rig.oauth("b")] }));
    // Polled first: polls and turns that connect at once would open two connections.
    let client = rig.start_polled(config).await;
    (rig, client)
}

/// Sends `count` requests at once. Returns their answers.
async fn at_once(client: &Client, count: usize, body: &Value) -> Vec<Answer> {
    let mut asking = JoinSet::new();
    for _ in 0..count {
        let (client, body) = (client.clone(), body.clone());
        asking.spawn(async move { client.turn(&body).await });
    }
    asking.join_all().await
}

#[track_caller]
fn check_whole(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole, "{}", answer.text());
}

/// Every turn so far came by HTTP/2, and over one connection for each account.
#[track_caller]
fn check_one_connection_each(rig: &Rig, accounts: usize) {
    let mut connections: Vec<u64> = Vec::new();
    for seen in rig.upstream.turns() {
        assert_eq!(seen.version, Version::HTTP_2);
        if !connections.contains(&seen.connection) {
            connections.push(seen.connection);
        }
    }
    assert_eq!(connections.len(), accounts, "{connections:?}");
}

// Streams that end after their last byte

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_after_their_last_byte_are_not_reset() {
    const ROUNDS: usize = 20;
    let (mut rig, client) = alone().await;
    // Once a connection is there, all requests share it.
    check_whole(&client.turn(&turn("first")).await);
    for round in 0..ROUNDS {
        let end = Gate::new();
        rig.account("a").always(Reply::ok().hold_after(1, &end));
        // The clients have their answers before any stream has ended.
        for answer in at_once(&client, AT_ONCE, &unstreamed("late")).await {
            assert_eq!(
                answer.status,
                StatusCode::OK,
                "round {round}: {}",
                answer.text()
            );
            assert!(answer.whole, "round {round}");
        }
        end.open();
    }
    rig.account("a").always(Reply::ok());
    // What was sent before it has arrived when this is answered.
    check_whole(&client.turn(&turn("last")).await);
    assert_eq!(rig.upstream.stream_resets(), []);
    check_one_connection_each(&rig, 1);
    let all = wait_for_rows(&rig.ledger(), ROUNDS * AT_ONCE + 2).await;
    assert!(all.iter().all(|row| row.text("end") == Some("complete")));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_http2_do_not_wait_for_the_end_of_upstreams_stream() {
    let (mut rig, client) = alone().await;
    let end = Gate::new();
    rig.account("a").always(Reply::ok().hold_after(1, &end));
    check_whole(&client.http2().turn(&unstreamed("late")).await);
    end.open();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_after_the_last_event_reset_no_stream() {
    let (mut rig, client) = alone().await;
    let end = Gate::new();
    rig.account("a")
        .always(Reply::ok().hold_after(STREAM_PARTS, &end));
    for _ in 0..4 {
        let mut stream = client.start_turn(&turn("left")).await;
        stream.until("response.completed").await;
    }
    wait_for_rows(&rig.ledger(), 4).await;
    end.open();
    rig.account("a").always(Reply::ok());
    check_whole(&client.turn(&turn("last")).await);
    assert_eq!(rig.upstream.stream_resets(), []);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_fail_over_are_read_to_their_end() {
    // Of several requests, the first 429 would withdraw those that still wait for their heads.
    for (name, count, refused) in [
        ("503", AT_ONCE, Reply::raw(503, "theirs")),
        (
            "429",
            1,
            Reply::usage_limit_reached().resets_in_seconds(600),
        ),
    ] {
        let (mut rig, client) = pool().await;
        let end = Gate::new();
        rig.account("a").always(refused.hold_after(1, &end));
        // A 429's body is read for its reset time before another account is asked.
        let asking = tokio::spawn({
            let client = client.clone();
            async move { at_once(&client, count, &turn("moved")).await }
        });
        end.wait_until_reached().await;
        end.open();
        for answer in asking.await.expect("no panic") {
            check_whole(&answer);
        }
        rig.account("a").always(Reply::ok());
        check_whole(&client.turn(&turn("last")).await);
        assert_eq!(rig.upstream.stream_resets(), [], "{name}");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_fails_over_is_read_no_further_than_its_bound() {
    let (mut rig, client) = pool().await;
    // More than upstream may send before the gateway reads.
    rig.account("a")
        .then(Reply::raw(503, vec![b'x'; 64 * RESPONSE_DRAIN_BYTES]).chunks(&[16 << 10]));
    check_whole(&client.turn(&turn("moved")).await);
    rig.upstream.wait_for_abandoned(1).await;
    assert_eq!(rig.upstream.stream_resets(), [Reason::CANCEL]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_does_not_end_is_reset_in_the_end() {
    let (mut rig, client) = alone().await;
    let never = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(1, &never));
    check_whole(&client.turn(&unstreamed("endless")).await);
    rig.upstream.wait_for_abandoned(1).await;
    assert_eq!(rig.upstream.stream_resets(), [Reason::CANCEL]);
    check_whole(&client.turn(&turn("good")).await);
    check_one_connection_each(&rig, 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_resets_its_own_stream_alone() {
    let (mut rig, client) = alone().await;
    let (left, stays) = (Gate::new(), Gate::new());
    rig.account("a")
        .then(Reply::ok().hold_after(2, &left))
        .then(Reply::ok().hold_after(2, &stays));
    let mut leaving = client.start_turn(&turn("left")).await;
    leaving.until("output_text.delta").await;
    let mut staying = client.start_turn(&turn("stays")).await;
    staying.until("output_text.delta").await;
    drop(leaving);
    rig.upstream.wait_for_abandoned(1).await;
    assert_eq!(rig.upstream.stream_resets(), [Reason::CANCEL]);
    stays.open();
    check_whole(&staying.finish().await);
    check_one_connection_each(&rig, 1);
    rig.stop().await;
}

// Limits of upstream

#[tokio::test(flavor = "multi_thread")]
async fn requests_past_upstreams_stream_limit_wait_for_their_turn() {
    const STREAMS: usize = 4;
    let mut rig = Rig::over_http2(|tls| tls.streams_max = Some(STREAMS as u32)).await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start_polled(config).await;
    // With its answer, upstream's limit is known.
    check_whole(&client.turn(&turn("first")).await);
    let gate = Gate::new();
    rig.account("a").always(Reply::ok().hold_head(&gate));
    let asking = tokio::spawn({
        let client = client.clone();
        async move { at_once(&client, 4 * STREAMS, &turn("many")).await }
    });
    gate.wait_until_reached_times(STREAMS).await;
    assert_eq!(rig.upstream.turns().len(), 1 + STREAMS);
    gate.open();
    for answer in asking.await.expect("no panic") {
        check_whole(&answer);
    }
    check_one_connection_each(&rig, 1);
    wait_for_rows(&rig.ledger(), 1 + 4 * STREAMS).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_pass_through_upstreams_small_windows() {
    let mut rig = Rig::over_http2(|tls| tls.window_bytes = Some(1000)).await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start_polled(config).await;
    check_whole(&client.turn(&turn("first")).await);
    let mut body = turn("large");
    body["input"] = json!("x".repeat(1_000_000));
    for answer in at_once(&client, 4, &body).await {
        check_whole(&answer);
    }
    let sent = body.to_string();
    for seen in rig.upstream.turns().split_off(1) {
        assert!(seen.body == sent.as_bytes(), "the body was changed");
    }
    check_one_connection_each(&rig, 1);
    rig.stop().await;
}

// Resets and GOAWAY

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_upstream_ends_gracefully_is_replaced() {
    let (mut rig, client) = alone().await;
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let mut stream = client.start_turn(&turn("first")).await;
    stream.until("output_text.delta").await;
    rig.upstream.go_away();
    let old = rig.upstream.turns()[0].connection;
    // A request that crosses the GOAWAY on its way is answered on the old connection.
    let mut newest = old;
    for _ in 0..1000 {
        check_whole(&client.turn(&turn("next")).await);
        newest = rig.upstream.turns().pop().expect("a turn").connection;
        if newest != old {
            break;
        }
    }
    assert_ne!(newest, old, "the connection is still used");
    gate.open();
    check_whole(&stream.finish().await);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_before_the_last_stream_of_a_goaway_are_answered() {
    let (mut rig, client) = alone().await;
    let gate = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_after(2, &gate))
        .then(Reply::close_before_head().by_go_away(Reason::NO_ERROR));
    let mut stream = client.start_turn(&turn("before")).await;
    stream.until("output_text.delta").await;
    check_not_processed("past the last stream", &client.turn(&turn("past")).await);
    gate.open();
    check_whole(&stream.finish().await);
    check_whole(&client.turn(&turn("good")).await);
    wait_for_rows(&rig.ledger(), 3).await;
    rig.stop().await;
}

/// Upstream did not answer: the client gets another account's answer, or 502.
#[track_caller]
fn check_not_processed(case: &str, answer: &Answer) {
    if answer.status == StatusCode::OK {
        assert!(answer.whole, "{case}: {}", answer.text());
    } else {
        assert_eq!(
            answer.status,
            StatusCode::BAD_GATEWAY,
            "{case}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["error"]["type"], "api_error", "{case}");
    }
}

/// How a response can be broken off, by name.
fn breaks() -> [(&'static str, fn(Reply) -> Reply); 8] {
    [
        ("FIN", |reply| reply),
        ("RST", Reply::by_reset),
        ("RST_STREAM refused", |reply| {
            reply.by_stream_reset(Reason::REFUSED_STREAM)
        }),
        ("RST_STREAM internal", |reply| {
            reply.by_stream_reset(Reason::INTERNAL_ERROR)
        }),
        ("RST_STREAM cancel", |reply| {
            reply.by_stream_reset(Reason::CANCEL)
        }),
        ("RST_STREAM http/1.1", |reply| {
            reply.by_stream_reset(Reason::HTTP_1_1_REQUIRED)
        }),
        ("GOAWAY", |reply| reply.by_go_away(Reason::NO_ERROR)),
        ("GOAWAY calm", |reply| {
            reply.by_go_away(Reason::ENHANCE_YOUR_CALM)
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_response_is_502_or_retried_and_makes_one_row() {
    for (name, broken) in breaks() {
        let (mut rig, client) = pool().await;
        rig.account("a").then(broken(Reply::close_before_head()));
        check_not_processed(name, &client.turn(&turn("broken")).await);
        check_whole(&client.turn(&turn("good")).await);
        let all = wait_for_rows(&rig.ledger(), 2).await;
        assert_eq!(all.len(), 2, "{name}: {all:#?}");
        assert_eq!(
            all[0].attempts()[0],
            ("a".to_owned(), "broken".to_owned()),
            "{name}"
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_interrupted_after_its_head_is_cut_and_makes_one_row() {
    for (name, broken) in breaks() {
        check_cut(&format!("{name} after the head"), 0, broken).await;
        check_cut(&format!("{name} in the body"), 2, broken).await;
    }
}

/// A stream that is broken off once the client has its head and `parts` parts.
async fn check_cut(case: &str, parts: usize, broken: fn(Reply) -> Reply) {
    let (mut rig, client) = pool().await;
    let gate = Gate::new();
    let bytes = if parts == 0 { 0 } else { 1500 };
    let reply = Reply::ok().hold_after(parts, &gate).close_after(bytes);
    rig.account("a").then(broken(reply));
    let mut stream = client.start_turn(&turn("broken")).await;
    assert_eq!(stream.status, StatusCode::OK, "{case}");
    if parts > 0 {
        stream.until("output_text.delta").await;
    }
    gate.open();
    let answer = stream.finish().await;
    assert!(!answer.whole, "{case}: {}", answer.text());
    check_whole(&client.turn(&turn("good")).await);
    let all = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(
        (all[0].number("status"), all[0].text("end")),
        (Some(200), Some("upstream_gone")),
        "{case}"
    );
    assert_eq!(rig.account("b").turn_count(), 0, "{case}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_http2_is_502() {
    let (mut rig, client) = alone().await;
    rig.account("a")
        .then(Reply::garbage("HTTP/1.1 200 OK\r\n\r\n"));
    let answer = client
        .ask(Method::POST, "/v1/responses", turn("bad").to_string())
        .await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
    check_whole(&client.turn(&turn("good")).await);
    assert_eq!(rows(&rig.ledger()).len(), 2);
    rig.stop().await;
}
