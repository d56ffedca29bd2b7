//! A row per response.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::upstream::{Gate, Reply, SocketError, SocketReply};
use tollgate_tests::{Client, Event, Rig, rows, turn, wait_for_rows};

use super::{closed, in_order, last_row, open, pool};

/// What a response of gpt-5.4 costs that is as long as the scripted upstream's.
const TURN_NANOUSD: i64 = 3_450_000;

#[tokio::test(flavor = "multi_thread")]
async fn each_response_is_a_complete_row() {
    let (mut rig, client) = in_order(&["a"]).await;
    let client = client.header("session-id", "session-1");
    let mut place = 0;
    for client in [client.clone(), client.http2()] {
        let mut socket = open(&client).await;
        for (tier, id, cost) in [
            ("default", "resp_1", TURN_NANOUSD),
            ("flex", "resp_2", TURN_NANOUSD / 2),
        ] {
            rig.account("a")
                .then_socket(SocketReply::ok().response_id(id));
            let mut body = turn("another key");
            body["service_tier"] = json!(tier);
            socket.turn(&body).await;
            let all = wait_for_rows(&rig.ledger(), place + 1).await;
            let row = &all[place];
            place += 1;
            for (column, expected) in [
                ("user", "alice"),
                ("credential", "a"),
                ("session", "session-1"),
                ("transport", "websocket"),
                ("path", "/v1/responses"),
                ("model", "gpt-5.4"),
                ("service_tier", tier),
                ("response_id", id),
                ("end", "complete"),
            ] {
                assert_eq!(row.text(column), Some(expected), "{column}");
            }
            for (column, expected) in [
                ("prewarm", 0),
                ("input_tokens", 1200),
                ("cached_tokens", 800),
                ("output_tokens", 150),
                ("reasoning_tokens", 50),
                ("cost_nanousd", cost),
            ] {
                assert_eq!(row.number(column), Some(expected), "{column}");
            }
            assert_eq!(row.attempts(), [("a".to_owned(), "101".to_owned())]);
            assert!(
                row.number("ttfb_ms").is_some()
                    && row.number("ttfb_ms") <= row.number("duration_ms")
            );
        }
    }
    let all = rows(&rig.ledger());
    assert!(all.iter().all(|row| {
        all.iter()
            .filter(|other| other.text("request_id") == row.text("request_id"))
            .count()
            == 1
    }));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_header_is_the_cache_keys() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    for session in ["one", "two"] {
        socket.turn(&turn(session)).await;
        assert_eq!(last_row(&rig).text("session"), Some(session));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_committed_before_its_last_frame_is_out() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    for count in 1..=50 {
        let reply = if count % 2 == 0 {
            SocketReply::ok()
        } else {
            SocketReply::ok().fragments(&[7])
        };
        rig.account("a").then_socket(reply);
        socket.turn(&turn("one")).await;
        assert_eq!(rows(&rig.ledger()).len(), count);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_requested_at_once_are_rows_in_order() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    let gate = Gate::new();
    rig.account("a").then_socket(
        SocketReply::begun()
            .hold(&gate)
            .completed()
            .response_id("resp_1"),
    );
    rig.account("a")
        .then_socket(SocketReply::ok().response_id("resp_2"));
    socket.create(&turn("one")).await;
    socket.create(&turn("two")).await;
    rig.upstream.wait_for_socket_messages(2).await;
    gate.open();
    for _ in 0..2 {
        socket.rest_of_turn().await;
    }
    let all = rows(&rig.ledger());
    let found: Vec<_> = all
        .iter()
        .map(|row| (row.text("session"), row.text("response_id")))
        .collect();
    assert_eq!(
        found,
        [(Some("one"), Some("resp_1")), (Some("two"), Some("resp_2"))]
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_of_a_response_is_a_row_with_its_usage() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    for (reply, kind, end) in [
        (
            SocketReply::begun().incomplete(),
            "response.incomplete",
            "incomplete",
        ),
        (SocketReply::begun().failed(), "response.failed", "failed"),
        (SocketReply::ok(), "response.completed", "complete"),
    ] {
        rig.account("a").then_socket(reply);
        let events = socket.turn(&turn("one")).await;
        assert_eq!(events.last().expect("events")["type"], kind);
        let row = last_row(&rig);
        assert_eq!(row.text("end"), Some(end));
        assert_eq!(
            (row.number("output_tokens"), row.number("cost_nanousd")),
            (Some(150), Some(TURN_NANOUSD)),
            "{end}"
        );
    }
    assert_eq!(rows(&rig.ledger()).len(), 3);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_without_usage_is_unpriced_and_not_free() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    let cases = [
        (SocketReply::begun().completed().without_usage(), "complete"),
        (
            SocketReply::begun().incomplete().without_usage(),
            "incomplete",
        ),
        (SocketReply::begun().failed().without_usage(), "failed"),
    ];
    for (reply, end) in cases {
        rig.account("a").then_socket(reply);
        socket.turn(&turn("one")).await;
        let row = last_row(&rig);
        assert_eq!(
            (
                row.text("end"),
                row.number("cost_nanousd"),
                row.number("output_tokens")
            ),
            (Some(end), None, None)
        );
        assert_eq!(
            row.text("unpriced_reason"),
            Some("upstream told no usage"),
            "{end}"
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prewarm_is_recorded_as_one() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    let mut prewarm = turn("one");
    prewarm["generate"] = json!(false);
    let events = socket.turn(&prewarm).await;
    let id = events.last().expect("events")["response"]["id"].clone();
    let mut next = turn("one");
    next["previous_response_id"] = id.clone();
    socket.turn(&next).await;
    let all = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(
        [&all[0], &all[1]].map(|row| row.number("prewarm")),
        [Some(1), Some(0)]
    );
    assert_eq!(
        [&all[0], &all[1]].map(|row| row.text("previous_response_id")),
        [None, id.as_str()]
    );
    assert_eq!(all[0].text("response_id"), id.as_str());
    assert!(all.iter().all(|row| row.text("end") == Some("complete")));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_reaches_the_client_and_its_row_failed_with_its_status() {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut socket = open(&client).await;
    for (error, status) in [
        (SocketError::previous_response_not_found("resp_0"), 400),
        (
            SocketError::connection_limit_reached().with_status_code(),
            400,
        ),
        (SocketError::new(500, "server_error", "theirs"), 500),
    ] {
        rig.account("a").then_socket(error.clone());
        assert_eq!(socket.turn(&turn("one")).await, [error.event()]);
        let row = last_row(&rig);
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(status))
        );
        assert_eq!(
            (row.number("output_tokens"), row.number("cost_nanousd")),
            (None, None)
        );
    }
    socket.turn(&turn("one")).await;
    assert_eq!(rows(&rig.ledger()).len(), 4);
    rig.stop().await;
}

/// A client that leaves in each of these ways in the middle of a turn is recorded as gone.
async fn check_client_gone(ways: &[&str]) {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut count = 0;
    for client in [client.clone(), client.http2()] {
        for &way in ways {
            let gate = Gate::new();
            rig.account("a")
                .then_socket(SocketReply::begun().hold(&gate));
            let mut socket = open(&client).await;
            socket.create(&turn("one")).await;
            gate.wait_until_reached().await;
            match way {
                "a close frame" => socket.close(1000, "").await,
                "FIN" => socket.finish().await,
                "RST" => socket.reset(),
                _ => drop(socket),
            }
            count += 1;
            rig.upstream.wait_for_sockets_ended(count).await;
            let row = wait_for_rows(&rig.ledger(), count).await.remove(count - 1);
            assert_eq!(row.text("end"), Some("client_gone"), "by {way}");
            assert_eq!(row.number("cost_nanousd"), None, "by {way}");
            assert_eq!(
                row.text("unpriced_reason"),
                Some("upstream told no usage"),
                "by {way}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_in_the_middle_of_a_turn_is_recorded() {
    check_client_gone(&["FIN", "RST", "nothing"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_in_a_turn_is_recorded() {
    check_client_gone(&["a close frame"]).await;
}

/// An upstream that leaves in each of these ways in the middle of a turn is recorded as gone, and the client's socket
/// closes with that code.
async fn check_upstream_gone(cases: &[(&str, SocketReply, u16)]) {
    let (mut rig, client) = in_order(&["a"]).await;
    let mut place = 0;
    for client in [client.clone(), client.http2()] {
        for (way, reply, code) in cases.iter().cloned() {
            rig.account("a").then_socket(reply);
            let mut socket = open(&client).await;
            socket.create(&turn("one")).await;
            let code_found = loop {
                match socket.next().await {
                    Event::Text(_) => {}
                    Event::Close(code, _) => break Some(code),
                    _ => break None,
                }
            };
            assert_eq!(code_found, Some(code), "by {way}");
            place += 1;
            let row = wait_for_rows(&rig.ledger(), place).await.remove(place - 1);
            assert_eq!(row.text("end"), Some("upstream_gone"), "by {way}");
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_disconnects_in_a_turn_is_recorded_and_reported_to_its_client() {
    check_upstream_gone(&[
        ("FIN", SocketReply::begun().finish(), 1011),
        ("RST", SocketReply::begun().reset(), 1011),
        (
            "a close frame",
            SocketReply::begun().close(1001, "theirs"),
            1001,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_the_protocol_in_a_turn_is_recorded_and_reported_to_its_client() {
    check_upstream_gone(&[(
        "reserved bits",
        SocketReply::begun().raw(vec![0xff; 64]),
        1011,
    )])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_without_a_turn_makes_no_row_and_a_refused_handshake_makes_one() {
    let (mut rig, client) = in_order(&["a"]).await;
    for client in [client.clone(), client.http2()] {
        let mut socket = open(&client).await;
        socket.send_text("{\"type\":\"session.update\"}").await;
        socket.send_binary("response.create").await;
        socket.ping("").await;
        socket.close(1000, "").await;
    }
    rig.upstream.wait_for_sockets_ended(2).await;
    rig.account("a").then_handshake(Reply::raw(403, "no"));
    client.socket().await.expect_err("refused");
    let row = wait_for_rows(&rig.ledger(), 1).await.remove(0);
    assert_eq!(
        (row.text("transport"), row.text("end"), row.number("status")),
        (Some("websocket"), Some("failed"), Some(403))
    );
    assert_eq!(row.attempts(), [("a".to_owned(), "403".to_owned())]);
    rig.stop().await;
    assert_eq!(rows(&rig.ledger()).len(), 1);
}

/// A gateway with room for a few dozen rows.
async fn with_little_room() -> (Rig, Client) {
    let limits = json!({ "ledger_bytes": 96 * 1024, "ledger_full": "refuse", "settle_queue": 8, "commit_timeout": "200ms" });
    pool(&["a"], json!({}), limits).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ledger_closes_a_socket_that_asks_for_a_further_response() {
    let (mut rig, client) = with_little_room().await;
    let mut socket = open(&client).await;
    let begun = Instant::now();
    while client.turn(&turn("full")).await.status != StatusCode::SERVICE_UNAVAILABLE {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the ledger does not fill"
        );
    }
    socket.create(&turn("one more")).await;
    assert_eq!(closed(&mut socket).await, 1013);
    assert_eq!(
        rig.account("a").socket_turn_count(),
        0,
        "upstream was asked though there is no room"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_without_its_row_is_incomplete_and_its_socket_closes() {
    let (mut rig, client) = with_little_room().await;
    let mut socket = open(&client).await;
    let mut seen = 0;
    let last = loop {
        assert!(seen < 400, "the ledger is not full after {seen} responses");
        socket.create(&turn("full")).await;
        let event = loop {
            match socket.next().await {
                Event::Text(text) if !text.contains("\"response.completed\"") => {}
                event => break event,
            }
        };
        match event {
            Event::Text(_) => seen += 1,
            event => break event,
        }
    };
    assert!(matches!(last, Event::Close(1011 | 1013, _)), "{last:?}");
    rig.stop().await;
    assert!(
        rows(&rig.ledger()).len() >= seen,
        "seen whole and not recorded"
    );
}
