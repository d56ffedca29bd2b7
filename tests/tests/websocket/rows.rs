//! WebSocket: a row of each response, what its events tell of the credential, and when a socket is to go elsewhere.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply, SocketError, SocketReply, Standing};
use tollgate_tests::{Client, Event, Rig, Row, Socket, rows, turn, unix_in, wait_for_rows};

/// What a response of gpt-5.4 costs that is as long as the scripted upstream's.
const TURN_NANOUSD: i64 = 3_450_000;

/// A running team on such a pool, with these limits, and alice's client, which names no session.
async fn pool(tags: &[&str], pool: Value, limits: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(tags, pool);
    config["limits"] = limits;
    let client = rig.start(config).await.token("token-alice");
    // A later poll would replace the figures of the test.
    rig.wait_until_polled(tags).await;
    (rig, client)
}

/// As [`pool`], the credentials being asked in order.
async fn in_order(tags: &[&str]) -> (Rig, Client) {
    pool(tags, json!({ "strategy": "fallback" }), json!({})).await
}

async fn open(client: &Client) -> Socket {
    client
        .socket()
        .await
        .unwrap_or_else(|answer| panic!("no socket: {} {}", answer.status, answer.text()))
}

/// The code of the close frame that comes next, which has a reason, and then the end.
async fn closed(socket: &mut Socket) -> u16 {
    let event = socket.next_message().await;
    let Event::Close(code, reason) = event else {
        panic!("expected a close frame, found {event:?}")
    };
    assert!(!reason.is_empty(), "{code} without a reason");
    assert_eq!(socket.next().await, Event::Gone);
    code
}

/// A turn of no session.
fn homeless() -> Value {
    json!({ "model": "gpt-5.4", "stream": true, "input": [] })
}

/// The account of the socket that was accepted last.
fn last_socket(rig: &Rig) -> String {
    rig.upstream.sockets().pop().expect("a socket").account
}

/// The account that serves a request over HTTP.
async fn served(rig: &Rig, client: &Client, body: &Value) -> String {
    let answer = client.turn(body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    rig.upstream
        .turns()
        .pop()
        .and_then(|seen| seen.account)
        .expect("an account")
}

fn last_row(rig: &Rig) -> Row {
    rows(&rig.ledger()).pop().expect("a row")
}

// Rows

#[tokio::test(flavor = "multi_thread")]
async fn each_response_is_a_row_that_tells_everything_about_it() {
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
async fn turns_that_are_asked_for_at_once_are_rows_in_their_order() {
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
async fn a_response_that_ends_otherwise_is_a_row_with_what_it_used() {
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
async fn a_client_that_says_goodbye_in_the_middle_of_a_turn_is_recorded() {
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
async fn an_upstream_that_goes_in_the_middle_of_a_turn_is_recorded_and_its_client_is_told() {
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
async fn an_upstream_that_breaks_the_protocol_in_a_turn_is_recorded_and_its_client_is_told() {
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
async fn a_response_whose_row_is_not_recorded_is_not_whole_and_its_socket_closes() {
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

// What events tell of the credential

#[tokio::test(flavor = "multi_thread")]
async fn the_windows_that_an_event_tells_are_known_from_then_on() {
    let (mut rig, client) = in_order(&["a", "b"]).await;
    let mut socket = open(&client).await;
    let used = Standing::new("plus").weekly_used(100.0);
    rig.account("a")
        .then_socket(SocketReply::begun().rate_limits(&used).completed());
    let events = socket.turn(&turn("one")).await;
    assert!(
        events
            .iter()
            .any(|event| event["type"] == "codex.rate_limits")
    );
    assert_eq!(closed(&mut socket).await, 1012);
    assert_eq!(served(&rig, &client, &homeless()).await, "account-b");
    open(&client).await.turn(&turn("one")).await;
    assert_eq!(last_socket(&rig), "account-b");
    assert!(
        rows(&rig.ledger())
            .iter()
            .all(|row| row.text("end") == Some("complete"))
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_in_a_turn_reaches_the_client_and_then_the_socket_goes_to_another_credential() {
    let plain = SocketError::usage_limit_reached().resets_in_seconds(600);
    for (name, error) in [
        ("status", plain.clone()),
        ("status_code", plain.with_status_code()),
    ] {
        for is_http2 in [false, true] {
            let (mut rig, client) = in_order(&["a", "b"]).await;
            let client = if is_http2 { client.http2() } else { client };
            rig.account("a").then_socket(error.clone());
            let mut socket = open(&client).await;
            assert_eq!(socket.turn(&turn("one")).await, [error.event()], "{name}");
            assert_eq!(closed(&mut socket).await, 1012, "{name}");
            let row = last_row(&rig);
            assert_eq!(
                (row.text("end"), row.number("status")),
                (Some("failed"), Some(429)),
                "{name}"
            );
            open(&client).await.turn(&turn("one")).await;
            assert_eq!(last_socket(&rig), "account-b", "{name}");
            assert_eq!(
                served(&rig, &client, &homeless()).await,
                "account-b",
                "{name}"
            );
            rig.stop().await;
        }
    }
}

// Drains

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_is_used_up_closes_idle_sockets_at_once_and_busy_ones_after_their_turn() {
    let (mut rig, client) = in_order(&["a", "b"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let (mut idle, mut busy) = (open(&client).await, open(&client).await);
    busy.create(&turn("busy")).await;
    gate.wait_until_reached().await;
    rig.account("a").then(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    );
    let bob = Client::new(client.address()).token("token-bob");
    assert_eq!(served(&rig, &bob, &turn("bob's")).await, "account-b");
    assert_eq!(closed(&mut idle).await, 1012);
    gate.open();
    let events = busy.rest_of_turn().await;
    assert_eq!(events.last().expect("events")["type"], "response.completed");
    assert_eq!(closed(&mut busy).await, 1012);
    open(&client).await.turn(&turn("busy")).await;
    assert_eq!(last_socket(&rig), "account-b");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_idle_sockets_at_once_and_busy_ones_after_their_turn() {
    let (mut rig, client) = in_order(&["a"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let (mut idle, mut over_http2) = (open(&client).await, open(&client.http2()).await);
    let mut busy = open(&client).await;
    busy.create(&turn("busy")).await;
    gate.wait_until_reached().await;
    let stopping = tokio::spawn(async move {
        rig.stop().await;
        rig
    });
    assert_eq!(closed(&mut idle).await, 1012);
    assert_eq!(closed(&mut over_http2).await, 1012);
    gate.open();
    busy.rest_of_turn().await;
    assert_eq!(closed(&mut busy).await, 1012);
    let rig = stopping.await.expect("no panic");
    assert_eq!(last_row(&rig).text("end"), Some("complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_past_drain_timeout_is_cut_and_recorded() {
    let (mut rig, client) = pool(&["a"], json!({}), json!({ "drain_timeout": "300ms" })).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate));
    let mut socket = open(&client).await;
    socket.create(&turn("cut")).await;
    gate.wait_until_reached().await;
    let begun = Instant::now();
    rig.stop().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(10)
    );
    while matches!(socket.next().await, Event::Text(_)) {}
    let all = rows(&rig.ledger());
    assert_eq!(all.len(), 1);
    assert!(
        all[0]
            .text("end")
            .is_some_and(|end| ["client_gone", "upstream_gone"].contains(&end)),
        "{all:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_policy_moves_is_closed_after_its_turn_and_comes_back_elsewhere() {
    let (mut rig, client) =
        pool(&["a", "b"], json!({ "rebalance_threshold": 20 }), json!({})).await;
    let client = client.header("session-id", "session-1");
    let using = |weekly: f64| {
        SocketReply::begun()
            .rate_limits(&Standing::new("plus").weekly_used(weekly))
            .completed()
    };
    let mut socket = open(&client).await;
    assert_eq!(last_socket(&rig), "account-a");
    for weekly in [10.0, 20.0, 20.5] {
        rig.account("a").then_socket(using(weekly));
        let events = socket.turn(&turn("session-1")).await;
        assert_eq!(
            events.last().expect("events")["type"],
            "response.completed",
            "at {weekly}"
        );
    }
    assert_eq!(closed(&mut socket).await, 1012);
    let mut again = open(&client).await;
    assert_eq!(last_socket(&rig), "account-b");
    again.turn(&turn("session-1")).await;
    again.turn(&turn("session-1")).await;
    rig.stop().await;
}

/// A rotation would choose another member each time. Of two that stand in for the home, neither is
/// better.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_in_place_of_a_home_that_is_out_briefly_stays_open() {
    for strategy in ["round_robin", "random", "least_used"] {
        let members = ["a", "b", "c"];
        let (mut rig, client) = pool(&members, json!({ "strategy": strategy }), json!({})).await;
        let client = client.header("session-id", "session-1");
        let mut socket = open(&client).await;
        let home = last_socket(&rig);
        let full = Standing::new("plus")
            .five_hour_used(100.0)
            .five_hour_resets_at(unix_in(300));
        rig.account(
            home.strip_prefix("account-")
                .expect("an account of the rig"),
        )
        .then_socket(SocketReply::begun().rate_limits(&full).completed());
        socket.turn(&turn("session-1")).await;
        assert_eq!(
            closed(&mut socket).await,
            1012,
            "{strategy}: {home} is full"
        );
        let mut socket = open(&client).await;
        assert_ne!(last_socket(&rig), home, "{strategy}");
        for place in 0..6 {
            let events = socket.turn(&turn("session-1")).await;
            assert_eq!(
                events.last().expect("events")["type"],
                "response.completed",
                "{strategy}: turn {place}"
            );
        }
        assert_eq!(rig.upstream.sockets().len(), 2, "{strategy}");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_made_on_a_socket_is_continued_by_the_credential_that_made_it() {
    let (mut rig, client) = pool(&["a", "b"], json!({}), json!({})).await;
    let mut socket = open(&client).await;
    assert_eq!(last_socket(&rig), "account-a");
    // From now on, a free choice falls on b.
    let used = Standing::new("plus").weekly_used(50.0);
    rig.account("a").then_socket(
        SocketReply::begun()
            .rate_limits(&used)
            .completed()
            .response_id("resp_ws"),
    );
    socket.turn(&homeless()).await;
    let mut after = homeless();
    after["previous_response_id"] = json!("resp_ws");
    let bob = Client::new(client.address()).token("token-bob");
    assert_eq!(served(&rig, &client, &homeless()).await, "account-b");
    assert_eq!(served(&rig, &client, &after).await, "account-a");
    assert_eq!(
        served(&rig, &bob, &after).await,
        "account-b",
        "it is not bob's"
    );
    rig.stop().await;
}
