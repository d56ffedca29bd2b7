//! WebSocket: the handshake, who is asked instead, messages both ways, and the bounds of a socket.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tollgate_tests::upstream::{
    Gate, Reply, SeenMessage, SeenSocket, SocketEnd, SocketReply, Upgrade,
};
use tollgate_tests::{Client, Event, Part, Rig, Socket, turn, wait_for_rows};

/// What happens by itself happens within this.
const SOON: Duration = Duration::from_secs(10);
/// The example of RFC 6455, section 1.3, and the accept key that belongs to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The longest message that Codex was seen to take.
const LONG: usize = 6_000_000;

/// A running team on a pool in that order, with these limits, and alice's client.
async fn pool(tags: &[&str], limits: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(tags, json!({ "strategy": "fallback" }));
    config["limits"] = limits;
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// As [`pool`], of one credential whose sockets send each message back.
async fn echo(limits: Value) -> (Rig, Client) {
    let (rig, client) = pool(&["a"], limits).await;
    rig.account("a").always_handshake(Upgrade::new().echo());
    (rig, client)
}

async fn open(client: &Client) -> Socket {
    client
        .socket()
        .await
        .unwrap_or_else(|answer| panic!("no socket: {} {}", answer.status, answer.text()))
}

/// This client with the fields of a handshake but the key and the version.
fn upgrading(client: &Client) -> Client {
    client
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
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

// The handshake

#[tokio::test(flavor = "multi_thread")]
async fn upstream_sees_the_credential_and_none_of_the_clients_own_secrets_or_extensions() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = client
        .header(
            "sec-websocket-extensions",
            "permessage-deflate; client_max_window_bits",
        )
        .header("sec-websocket-protocol", "theirs")
        .header("cookie", "theirs=1")
        .header("chatgpt-account-id", "theirs")
        .header("x-theirs", "kept");
    for client in [client.clone(), client.http2()] {
        let before = rig.upstream.sockets().len();
        let socket = client
            .socket_at("/v1/responses?x=1")
            .await
            .expect("a socket");
        for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
            assert_eq!(socket.headers.get(name), None, "{name}");
        }
        let seen = &rig.upstream.wait_for_sockets(before + 1).await[before].request;
        assert_eq!(
            (&seen.method, seen.target.as_str()),
            (&Method::GET, "/backend-api/codex/responses?x=1")
        );
        for (name, value) in [
            ("authorization", Some("Bearer access-a")),
            ("chatgpt-account-id", Some("account-a")),
            ("openai-beta", Some("responses_websockets=2026-02-06")),
            ("sec-websocket-version", Some("13")),
            ("sec-websocket-extensions", None),
            ("sec-websocket-protocol", None),
            ("cookie", None),
            ("x-theirs", Some("kept")),
        ] {
            assert_eq!(seen.header(name), value, "{name}");
        }
        assert!(!format!("{:?}", seen.headers).contains("token-alice"));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beta_that_the_client_names_is_kept() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let _socket = open(&client.header("openai-beta", "responses_websockets=2027-01-01")).await;
    let seen = &rig.upstream.wait_for_sockets(1).await[0].request;
    let betas: Vec<_> = seen.headers.get_all("openai-beta").iter().collect();
    assert_eq!(betas, ["responses_websockets=2027-01-01"]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_has_a_key_of_its_own() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = upgrading(&client)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    let accepted = client.send(Method::GET, "/v1/responses", "").await;
    assert_eq!(accepted.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(accepted.headers["sec-websocket-accept"], ACCEPT);
    let seen = &rig.upstream.wait_for_sockets(1).await[0].request;
    assert!(
        seen.header("sec-websocket-key")
            .is_some_and(|key| key != KEY)
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_upstreams_fields_the_client_gets_those_that_codex_reads() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let kept = [
        ("x-codex-turn-state", "state"),
        ("x-reasoning-included", "true"),
        ("openai-model", "scripted-model"),
        ("x-other-secondary-used-percent", "12"),
        ("x-codex-primary-used-percent", "0"),
    ];
    let others = [
        ("set-cookie", "a=b"),
        ("x-request-id", "theirs"),
        ("openai-version", "1"),
        ("server", "scripted"),
    ];
    for client in [client.clone(), client.http2()] {
        let upgrade = Upgrade::new()
            .header("x-codex-turn-state", "state")
            .header(kept[3].0, kept[3].1);
        rig.account("a").then_handshake(
            others[..3].iter().fold(upgrade, |upgrade, (name, value)| {
                upgrade.header(name, value)
            }),
        );
        let socket = open(&client).await;
        for (name, value) in kept {
            assert_eq!(
                socket.headers.get(name).map(|found| found.as_bytes()),
                Some(value.as_bytes()),
                "{name}"
            );
        }
        for (name, value) in others {
            assert!(
                socket.headers.get(name).is_none_or(|found| found != value),
                "{name}"
            );
        }
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_good_token_is_401() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let anonymous = Client::new(client.address());
    for rejected in [
        anonymous.clone(),
        anonymous.token("token-mallory"),
        anonymous.http2(),
    ] {
        let answer = rejected.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    assert_eq!(rig.account("a").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_none_is_refused_before_upstream_is_asked() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let bare = upgrading(&client);
    let versioned = bare.header("sec-websocket-version", "13");
    let cases = [
        ("no key", versioned.clone(), 400),
        (
            "a short key",
            versioned.header("sec-websocket-key", "c2hvcnQ="),
            400,
        ),
        (
            "a key of 17 bytes",
            versioned.header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAAA="),
            400,
        ),
        (
            "no base64",
            versioned.header("sec-websocket-key", "!!!!!!!!!!!!!!!!!!!!!!=="),
            400,
        ),
        (
            "no Connection",
            client
                .header("upgrade", "websocket")
                .header("sec-websocket-key", KEY),
            400,
        ),
        (
            "version 8",
            bare.header("sec-websocket-version", "8")
                .header("sec-websocket-key", KEY),
            426,
        ),
        ("no version", bare.header("sec-websocket-key", KEY), 426),
    ];
    for (name, client, status) in cases {
        let answer = client.get("/v1/responses").await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.text());
        assert_eq!(
            answer.json()["error"]["type"],
            "invalid_request_error",
            "{name}"
        );
        let version = (status == 426).then_some("13");
        assert_eq!(answer.header("sec-websocket-version"), version, "{name}");
    }
    let elsewhere = client
        .http2()
        .socket_at("/v1/models")
        .await
        .expect_err("refused");
    assert_eq!(elsewhere.status, StatusCode::BAD_REQUEST);
    assert_eq!(rig.account("a").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_another_method_or_elsewhere_is_an_ordinary_request() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let client = upgrading(&client)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY);
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.whole && answer.text().contains("response.completed"));
    assert_eq!(client.get("/v1/models").await.status, StatusCode::OK);
    assert_eq!(rig.account("a").handshake_count(), 0);
    let seen = rig.upstream.requests();
    let models = seen
        .iter()
        .find(|seen| seen.path().ends_with("/models"))
        .expect("models were asked for");
    for seen in [&rig.upstream.turns()[0], models] {
        assert_eq!(
            (seen.header("upgrade"), seen.header("connection")),
            (None, None),
            "{}",
            seen.target
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_upstreams_reaches_the_client_as_it_is() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for client in [client.clone(), client.http2()] {
        for status in [400, 403, 404, 500] {
            let body =
                json!({ "error": { "type": "theirs", "message": format!("status {status}") } });
            rig.account("a").then_handshake(Reply::json(status, &body));
            let answer = client.socket().await.expect_err("refused");
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (status, body.to_string())
            );
            assert_eq!(
                answer.header("content-type"),
                Some("application/json"),
                "{status}"
            );
        }
    }
    assert_eq!(rig.account("b").handshake_count(), 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_with_the_accept_key_of_another_request_is_502() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    for client in [client.clone(), client.http2()] {
        rig.account("a")
            .then_handshake(Upgrade::new().wrong_accept_key());
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.json()["error"]["type"], "api_error");
    }
    let mut sound = open(&client).await;
    sound.turn(&turn("one")).await;
    rig.stop().await;
}

// Failover

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_refused_for_now_goes_to_the_next_credential() {
    for (name, reply) in [
        ("429", Reply::usage_limit_reached().resets_in_seconds(600)),
        ("503", Reply::server_error(503)),
    ] {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        rig.account("a").then_handshake(reply);
        let mut socket = open(&client).await;
        socket.turn(&turn("one")).await;
        assert_eq!(rig.account("a").handshake_count(), 1, "{name}");
        assert_eq!(rig.upstream.sockets()[0].account, "account-b", "{name}");
        assert_eq!(
            wait_for_rows(&rig.ledger(), 1).await[0].text("credential"),
            Some("b"),
            "{name}"
        );
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_usable_credential_is_429_and_says_when_to_retry() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for (tag, seconds) in [("a", 900), ("b", 600)] {
        rig.account(tag).then_handshake(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(seconds),
        );
    }
    for _ in 0..2 {
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["type"], &error["code"]),
            (
                &json!("usage_limit_reached"),
                &json!("credentials_exhausted")
            )
        );
        assert!(
            error["resets_in_seconds"]
                .as_u64()
                .is_some_and(|seconds| (590..=600).contains(&seconds)),
            "{error}"
        );
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(
        ["a", "b"].map(|tag| rig.account(tag).handshake_count()),
        [1, 1]
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_handshake_refuses_is_refreshed_once() {
    let mut rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    let config = rig.config(json!({ "credentials": [credential] }));
    let client = rig.start(config).await;
    login
        .account()
        .then_handshake(Reply::error(401, "invalid_request_error", "expired"));
    let mut socket = open(&client).await;
    socket.turn(&turn("one")).await;
    assert_eq!(
        (login.post_count(), login.account().handshake_count()),
        (1, 2)
    );
    let refused = rig
        .upstream
        .requests()
        .into_iter()
        .find(|seen| seen.header("upgrade").is_some());
    let accepted = rig.upstream.sockets().remove(0).request;
    assert_ne!(
        refused.and_then(|seen| seen.headers.get("authorization").cloned()),
        accepted.headers.get("authorization").cloned()
    );
    rig.stop().await;
}

// Messages

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_kind_and_length_come_back_as_they_were() {
    let (mut rig, client) = echo(json!({})).await;
    let text = "é→🦀 {\"type\":\"theirs\"}".repeat(1000);
    let long = "x".repeat(LONG);
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let mut socket = open(&client).await;
        socket.send_text("").await;
        socket.send_text(text.clone()).await;
        socket.send_binary(vec![0, 159, 255]).await;
        socket.send_fragments(&text, &[1, 0, 7, 1000]).await;
        for expected in [Event::Text(String::new()), Event::Text(text.clone())] {
            assert_eq!(socket.next().await, expected);
        }
        assert_eq!(
            socket.next().await,
            Event::Binary(Bytes::from_static(&[0, 159, 255]))
        );
        assert_eq!(socket.next().await, Event::Text(text.clone()));
        socket.send_text(long.clone()).await;
        assert!(
            socket.next().await == Event::Text(long.clone()),
            "another message of 6 MB"
        );
        socket.send_binary(long.clone()).await;
        assert!(
            socket.next().await == Event::Binary(long.clone().into()),
            "another message of 6 MB"
        );
        let seen = rig.upstream.sockets().remove(place).messages;
        let expected = [
            SeenMessage::Text(Bytes::new()),
            SeenMessage::Text(text.clone().into()),
            SeenMessage::Binary(Bytes::from_static(&[0, 159, 255])),
            SeenMessage::Text(text.clone().into()),
            SeenMessage::Text(long.clone().into()),
            SeenMessage::Binary(long.clone().into()),
        ];
        assert!(seen == expected, "upstream saw other messages");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_sends_keeps_its_order_with_pings_between_its_fragments() {
    let (mut rig, client) = echo(json!({})).await;
    let mut socket = open(&client).await;
    socket.send_part(Part::First, "one ").await;
    socket.ping("p1").await;
    socket.send_part(Part::Middle, "").await;
    socket.pong("unasked").await;
    socket.ping("p2").await;
    socket.send_part(Part::Last, "message").await;
    socket.send_binary("two").await;
    let mut events = Vec::new();
    while events.len() < 4 {
        events.push(socket.next().await);
    }
    let (pongs, messages): (Vec<_>, Vec<_>) = events
        .into_iter()
        .partition(|event| matches!(event, Event::Pong(_)));
    assert_eq!(pongs, [Event::Pong("p1".into()), Event::Pong("p2".into())]);
    assert_eq!(
        messages,
        [
            Event::Text("one message".into()),
            Event::Binary("two".into())
        ]
    );
    let seen = rig.upstream.sockets().remove(0);
    assert_eq!(
        (seen.pings, seen.pongs),
        (vec!["p1".into(), "p2".into()], vec!["unasked".into()])
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_sends_keeps_its_order_with_pings_within_its_messages() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let texts = SocketReply::silent()
        .text("one")
        .ping("p1")
        .binary("two")
        .pong("unasked")
        .text("three");
    rig.account("a")
        .then_handshake(Upgrade::new().greet(texts.fragments(&[1]).ping_within("within")));
    let mut socket = open(&client).await;
    for expected in [
        Event::Ping("within".into()),
        Event::Text("one".into()),
        Event::Ping("p1".into()),
        Event::Ping("within".into()),
        Event::Binary("two".into()),
        Event::Pong("unasked".into()),
        Event::Ping("within".into()),
        Event::Text("three".into()),
    ] {
        assert_eq!(socket.next().await, expected);
    }
    socket.ping("the pongs before it are out").await;
    let seen = rig
        .upstream
        .wait_until_sockets("a ping", |sockets| sockets[0].pings.len() == 1)
        .await;
    assert!(
        seen[0].pongs.contains(&Bytes::from("p1"))
            && seen[0].pongs.contains(&Bytes::from("within"))
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_keeps_its_code_and_reason_both_ways() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let cases = [(1000, ""), (4001, "bye"), (1005, ""), (3000, "é")];
    let mut count = 0;
    for client in [client.clone(), client.http2()] {
        for (code, reason) in cases {
            let expected = SocketEnd::Closed {
                code,
                reason: reason.to_owned(),
            };
            let mut leaving = open(&client).await;
            leaving.close(code, reason).await;
            count += 1;
            assert_eq!(
                rig.upstream.wait_for_sockets_ended(count).await[count - 1].end,
                Some(expected.clone())
            );
            // The answer to a close frame repeats its code.
            assert!(matches!(leaving.next().await, Event::Close(found, _) if found == code));
            assert_eq!(leaving.next().await, Event::Gone);

            rig.account("a")
                .then_handshake(Upgrade::new().greet(SocketReply::silent().close(code, reason)));
            let mut left = open(&client).await;
            assert_eq!(left.next().await, Event::Close(code, reason.to_owned()));
            assert_eq!(left.next().await, Event::Gone);
            count += 1;
            let ended = rig
                .upstream
                .wait_for_sockets_ended(count)
                .await
                .remove(count - 1)
                .end;
            assert!(
                matches!(ended, Some(SocketEnd::Closed { code: found, .. }) if found == code),
                "{ended:?}"
            );
        }
    }
    rig.stop().await;
}

// Bounds

const MESSAGE_BYTES: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_the_bound_passes_and_one_past_it_closes_with_1009() {
    let (mut rig, client) = echo(json!({ "websocket_message_bytes": MESSAGE_BYTES })).await;
    let sizes: [&[usize]; 2] = [&[MESSAGE_BYTES + 1], &[30_000]];
    for client in [client.clone(), client.http2()] {
        for sizes in sizes {
            let mut socket = open(&client).await;
            let fits = "x".repeat(MESSAGE_BYTES);
            for _ in 0..3 {
                socket.send_fragments(&fits, sizes).await;
                assert!(
                    socket.next().await == Event::Text(fits.clone()),
                    "another message"
                );
            }
            socket
                .send_fragments(&"x".repeat(MESSAGE_BYTES + 1), sizes)
                .await;
            assert_eq!(closed(&mut socket).await, 1009, "in frames of {sizes:?}");
        }
    }
    rig.upstream.wait_for_sockets_ended(4).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_upstreams_past_the_bound_closes_with_1011() {
    let (mut rig, client) = pool(&["a"], json!({ "websocket_message_bytes": MESSAGE_BYTES })).await;
    let fits = "x".repeat(MESSAGE_BYTES);
    let reply = SocketReply::silent()
        .text(fits.clone())
        .text("x".repeat(MESSAGE_BYTES + 1));
    rig.account("a").then_handshake(Upgrade::new().greet(reply));
    let mut socket = open(&client).await;
    assert!(socket.next().await == Event::Text(fits), "another message");
    assert_eq!(closed(&mut socket).await, 1011);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_sockets_and_another_one_once_one_is_closed() {
    let (mut rig, client) = pool(&["a"], json!({ "websockets_per_user": 2 })).await;
    let (mut first, _second) = (open(&client).await, open(&client.http2()).await);
    for client in [client.clone(), client.http2()] {
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["error"]["code"], "overloaded");
    }
    let _bobs = open(&Client::new(client.address()).token("token-bob")).await;
    first.close(1000, "").await;
    let begun = Instant::now();
    while client.socket().await.is_err() {
        assert!(begun.elapsed() < SOON, "a closed socket keeps its place");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_handshake_takes_no_place() {
    let (mut rig, client) = pool(&["a"], json!({ "websockets_per_user": 1 })).await;
    for _ in 0..3 {
        rig.account("a").then_handshake(Reply::raw(403, "no"));
        assert_eq!(
            client.socket().await.expect_err("refused").status,
            StatusCode::FORBIDDEN
        );
    }
    open(&client).await.turn(&turn("one")).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_closes_with_1001_and_a_busy_one_stays() {
    // Long enough for a slow machine to ask for a turn within it.
    let limit = Duration::from_millis(1500);
    let (mut rig, client) = pool(&["a"], json!({ "websocket_idle_timeout": "1500ms" })).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::silent().hold(&gate).then_begun().completed());
    let begun = Instant::now();
    let mut idle = open(&client).await;
    assert_eq!(closed(&mut idle).await, 1001);
    assert!(begun.elapsed() >= limit);
    let mut busy = open(&client).await;
    busy.create(&turn("busy")).await;
    assert!(busy.is_quiet_for(limit * 2).await);
    gate.open();
    busy.rest_of_turn().await;
    assert_eq!(closed(&mut busy).await, 1001);
    rig.stop().await;
}

/// For how long a process has run on a processor so far.
fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    let after_name = &stat[stat.rfind(')').expect("a name") + 1..];
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    // Linux counts 100 of them a second, whatever its own timer does.
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_past_the_idle_limit_is_waited_for_without_work() {
    let rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    // Long enough for a slow machine to ask for a turn within it.
    config["limits"] = json!({ "websocket_idle_timeout": "1s" });
    let program = rig.spawn(&config).await;
    let gate = Gate::new();
    rig.account("a")
        .then_socket(SocketReply::begun().hold(&gate).completed());
    let mut socket = open(&program.client().token("token-alice")).await;
    socket.create(&turn("long")).await;
    while !matches!(socket.next().await, Event::Text(text) if text.contains("response.output_item.done"))
    {
    }
    assert!(socket.is_quiet_for(Duration::from_millis(1500)).await);
    let before = cpu(program.id());
    assert!(socket.is_quiet_for(Duration::from_secs(3)).await);
    let used = cpu(program.id()) - before;
    assert!(
        used < Duration::from_millis(300),
        "{used:?} of three seconds"
    );
    gate.open();
    socket.rest_of_turn().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_client_that_answers_pings_stays_and_one_that_does_not_is_dropped() {
    // A slow machine answers a ping within this. A peer that answers none is dropped after two.
    let (mut rig, client) = pool(&["a"], json!({ "websocket_ping_interval": "1500ms" })).await;
    for client in [client.clone(), client.http2()] {
        let before = rig.upstream.sockets().len();
        let mut silent = open(&client).await.into_raw();
        // Read from at once: a ping is answered only then.
        let mut answering = open(&client).await;
        for _ in 0..3 {
            assert!(matches!(answering.next().await, Event::Ping(_)));
        }
        answering.turn(&turn("one")).await;
        let mut sent = Vec::new();
        let ended = timeout(SOON, silent.read_to_end(&mut sent)).await;
        assert!(ended.is_ok(), "it is kept though it answers nothing");
        assert_eq!(&sent[..2], [0x89, 0], "a ping");
        let gone =
            |sockets: &[SeenSocket]| sockets.get(before).is_some_and(|silent| !silent.is_open());
        rig.upstream
            .wait_until_sockets("the silent one has ended", gone)
            .await;
    }
    rig.stop().await;
}

const PIECE: usize = 1 << 20;
/// More than the kernel's buffers of two connections over loopback.
const BUFFERED_MAX: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_read_holds_the_client_up() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let gate = Gate::new();
    rig.account("a")
        .then_handshake(Upgrade::new().hold_reading(&gate));
    let mut socket = open(&client).await;
    let piece = Bytes::from(vec![7; PIECE]);
    let mut sent = 0;
    // The message that is not sent stays in the client library and is sent with the next.
    while timeout(Duration::from_secs(1), socket.send_binary(piece.clone()))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < BUFFERED_MAX, "{sent} MiB went somewhere");
    }
    gate.open();
    socket.send_text("the last").await;
    let seen = rig
        .upstream
        .wait_for_socket_messages(sent + 2)
        .await
        .remove(0)
        .messages;
    assert!(
        seen[..=sent]
            .iter()
            .all(|message| *message == SeenMessage::Binary(piece.clone()))
    );
    assert_eq!(seen[sent + 1], SeenMessage::Text("the last".into()));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_upstream_up() {
    let (mut rig, client) = pool(&["a"], json!({})).await;
    let (sent, piece) = (Gate::new(), Bytes::from(vec![7; PIECE]));
    let all = (0..BUFFERED_MAX).fold(SocketReply::silent(), |reply, _| {
        reply.binary(piece.clone())
    });
    rig.account("a")
        .then_handshake(Upgrade::new().greet(all.hold(&sent)));
    let mut socket = open(&client).await;
    let went = timeout(Duration::from_secs(1), sent.wait_until_reached()).await;
    assert!(went.is_err(), "{BUFFERED_MAX} MiB went somewhere");
    for _ in 0..BUFFERED_MAX {
        assert!(
            socket.next().await == Event::Binary(piece.clone()),
            "another message"
        );
    }
    sent.wait_until_reached().await;
    rig.stop().await;
}
