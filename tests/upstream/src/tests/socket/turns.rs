//! Turns on a socket: their events, their script, and gates.

use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::{Client, connect, create, next, next_message, send_text};
use crate::tests::*;

async fn next_event(client: &mut Client) -> Value {
    let message = next_message(client).await;
    serde_json::from_str(message.to_text().expect("text")).expect("JSON")
}

fn is_last(event: &Value) -> bool {
    [
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    .iter()
    .any(|kind| event["type"] == **kind)
}

/// The events up to the last one.
async fn until_last(client: &mut Client) -> Vec<Value> {
    let mut events = Vec::new();
    while !events.last().is_some_and(is_last) {
        events.push(next_event(client).await);
    }
    events
}

async fn ask_for(client: &mut Client, more: Value) -> Vec<Value> {
    send_text(client, create(more)).await;
    until_last(client).await
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().expect("a type"))
        .collect()
}

#[tokio::test]
async fn an_unscripted_turn_has_the_events_of_a_stream() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    let events = ask_for(&mut client, json!({"service_tier": "priority"})).await;
    let streamed = ask(&upstream, RESPONSES, turn()).await.events();
    let names: Vec<&str> = streamed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kinds(&events), names);
    let sequence: Vec<u64> = events
        .iter()
        .filter_map(|event| event["sequence_number"].as_u64())
        .collect();
    assert_eq!(sequence, Vec::from_iter(0..11));
    assert_eq!(events[9]["item"]["content"][0]["text"], "tick tick tick ");
    let response = &events[10]["response"];
    assert_eq!(
        (&response["model"], &response["service_tier"]),
        (&json!("gpt-5.4"), &json!("priority"))
    );
    assert_eq!(response["usage"]["total_tokens"], 1350);
    assert_eq!((ana.socket_turn_count(), ana.turn_count()), (1, 1));
}

#[tokio::test]
async fn a_prewarm_counts_nothing_and_its_response_may_be_named() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    ana.then_socket(SocketReply::ok().deltas(0));
    let prewarm = ask_for(&mut client, json!({"generate": false})).await;
    assert_eq!(kinds(&prewarm), ["response.created", "response.completed"]);
    assert_eq!(prewarm[1]["response"]["usage"]["total_tokens"], 0);
    assert_eq!(prewarm[1]["response"]["output"], json!([]));
    assert_eq!(ana.socket_turn_count(), 0);
    let scripted = ask_for(
        &mut client,
        json!({"previous_response_id": prewarm[1]["response"]["id"]}),
    )
    .await;
    assert_eq!(scripted.len(), 8);
    let named = json!({"previous_response_id": scripted[7]["response"]["id"]});
    assert_eq!(ask_for(&mut client, named.clone()).await.len(), 11);

    let mut other = connect(&upstream).await;
    let refused = ask_for(&mut other, named).await;
    assert_eq!(
        (&refused[0]["status"], &refused[0]["type"]),
        (&json!(400), &json!("error"))
    );
    assert_eq!(refused[0]["error"]["code"], "previous_response_not_found");
    ana.then_for_prewarm(SocketError::usage_limit_reached().resets_in_seconds(60));
    assert_eq!(
        ask_for(&mut other, json!({"generate": false})).await[0]["error"]["resets_in_seconds"],
        60
    );
}

#[tokio::test]
async fn a_socket_is_scripted_like_a_turn() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    upstream.always_socket(SocketReply::ok().deltas(1));
    assert_eq!(ask_for(&mut client, json!({})).await.len(), 9);
    ana.always_socket(SocketReply::begun().failed())
        .then_socket(SocketReply::begun().incomplete().without_usage());
    let usage = Usage {
        input: 10,
        cached: 4,
        cache_write: 3,
        output: 2,
        reasoning: 1,
    };
    let told = SocketReply::ok()
        .usage(usage)
        .model("gpt-5")
        .service_tier("flex")
        .response_id("resp_x");
    ana.then_socket(told);
    let incomplete = ask_for(&mut client, json!({})).await;
    assert_eq!(incomplete[10]["type"], "response.incomplete");
    assert!(incomplete[10]["response"]["usage"].is_null());
    let response = ask_for(&mut client, json!({})).await[10]["response"].clone();
    assert_eq!(
        response["usage"]["input_tokens_details"]["cache_write_tokens"],
        3
    );
    assert_eq!(
        [
            &response["id"],
            &response["model"],
            &response["service_tier"]
        ],
        ["resp_x", "gpt-5", "flex"]
    );
    assert_eq!(
        ask_for(&mut client, json!({})).await[10]["type"],
        "response.failed"
    );
    ana.clear_script();
    assert_eq!(ask_for(&mut client, json!({})).await.len(), 9);
}

#[tokio::test]
async fn a_turn_on_a_socket_uses_up_the_windows_before_its_last_event() {
    let (upstream, ana) = start().await;
    let mut standing = Standing::new("plus").weekly_used(40.0);
    standing.weekly.used_percent_per_turn = 6.0;
    ana.set_standing(standing);
    let mut client = connect(&upstream).await;
    ask_for(&mut client, json!({})).await;
    assert_eq!(ana.standing().weekly.used_percent, 46.0);
    ask_for(&mut client, json!({"generate": false})).await;
    ana.then_socket(SocketError::usage_limit_reached());
    ask_for(&mut client, json!({})).await;
    assert_eq!(ana.standing().weekly.used_percent, 46.0);
}

#[tokio::test]
async fn a_large_output_comes_whole_in_one_message_or_in_frames() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    for reply in [
        SocketReply::ok(),
        SocketReply::ok()
            .fragments(&[1, 0, 70_000])
            .ping_within("within"),
    ] {
        ana.then_socket(reply.deltas(1).output_bytes(6_000_000));
        send_text(&mut client, create(json!({}))).await;
        let mut pings = 0;
        let completed = loop {
            match next_message(&mut client).await {
                Message::Ping(_) => pings += 1,
                message => {
                    let event: Value =
                        serde_json::from_str(message.to_text().expect("text")).expect("JSON");
                    if is_last(&event) {
                        break event;
                    }
                }
            }
        };
        let text = completed["response"]["output"][0]["content"][0]["text"]
            .as_str()
            .expect("text");
        assert_eq!(text.len(), 6_000_000);
        assert!(pings == 0 || pings == 9, "a ping in each message: {pings}");
    }
    upstream
        .wait_until_sockets("a pong", |sockets| !sockets[0].pongs.is_empty())
        .await;
}

#[tokio::test]
async fn a_gate_pauses_at_its_step_and_hides_no_message_of_the_client() {
    let (upstream, ana) = start().await;
    let gate = Gate::new();
    ana.then_socket(SocketReply::begun().hold(&gate).completed());
    let mut client = connect(&upstream).await;
    send_text(&mut client, create(json!({}))).await;
    gate.wait_until_reached().await;
    for _ in 0..10 {
        next_event(&mut client).await;
    }
    client
        .send(Message::Ping("are you there".into()))
        .await
        .expect("sent");
    assert_eq!(
        next_message(&mut client).await,
        Message::Pong("are you there".into())
    );
    send_text(&mut client, create(json!({"model": "gpt-5"}))).await;
    let sockets = upstream.wait_for_socket_messages(2).await;
    assert_eq!(sockets[0].messages[1].json()["model"], "gpt-5");
    assert_eq!(sockets[0].pings, ["are you there"]);
    gate.open();
    assert_eq!(next_event(&mut client).await["type"], "response.completed");
    assert_eq!(
        until_last(&mut client).await[10]["response"]["model"],
        "gpt-5"
    );
}

#[tokio::test]
async fn errors_and_limits_are_separate_events() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    let standing = Standing::new("pro")
        .five_hour_used(97.5)
        .weekly_resets_at(2_000_000_000);
    let active = standing.clone().header_form(HeaderForm::ActiveLimit);
    let error = SocketError::usage_limit_reached()
        .resets_at(7)
        .headers_of(&active)
        .with_status_code();
    ana.then_socket(SocketReply::begun().rate_limits(&active).error(error));
    let events = ask_for(&mut client, json!({})).await;
    let limits = &events[10];
    assert_eq!(
        [&limits["type"], &limits["metered_limit_name"]],
        ["codex.rate_limits", "codex_bengalfox"]
    );
    assert_eq!(limits["rate_limits"]["primary"]["used_percent"], 97.5);
    assert_eq!(
        limits["rate_limits"]["secondary"]["reset_at"],
        2_000_000_000
    );
    assert_eq!(limits["rate_limits"]["secondary"]["window_minutes"], 10_080);
    let error = &events[11];
    assert_eq!(
        (&error["status_code"], error.get("status")),
        (&json!(429), None)
    );
    assert_eq!(
        (&error["error"]["type"], &error["error"]["resets_at"]),
        (&json!("usage_limit_reached"), &json!(7))
    );
    assert_eq!(
        error["headers"]["x-codex-bengalfox-primary-used-percent"],
        "97.5"
    );
    ana.then_socket(SocketError::connection_limit_reached().without_status());
    let error = ask_for(&mut client, json!({})).await.remove(0);
    assert_eq!((error.get("status"), error.get("headers")), (None, None));
    assert_eq!(error["error"]["code"], "websocket_connection_limit_reached");
}

#[tokio::test]
async fn steps_happen_in_order() {
    let (upstream, ana) = start().await;
    let mut client = connect(&upstream).await;
    let steps = SocketReply::silent()
        .text("a")
        .ping("b")
        .binary("c")
        .pong("d")
        .raw(b"\x81\x01e".as_slice());
    ana.then_socket(steps.close(1012, "moved"));
    send_text(&mut client, create(json!({}))).await;
    let expected = [
        Message::text("a"),
        Message::Ping("b".into()),
        Message::binary("c"),
        Message::Pong("d".into()),
        Message::text("e"),
        Message::Close(Some(CloseFrame {
            code: 1012.into(),
            reason: "moved".into(),
        })),
    ];
    for message in expected {
        assert_eq!(next_message(&mut client).await, message);
    }
    assert!(matches!(
        next(&mut client).await,
        None | Some(Err(Error::ConnectionClosed))
    ));
    let sockets = upstream.wait_for_sockets_ended(1).await;
    assert_eq!(sockets[0].pongs, ["b"]);
    assert_eq!(
        sockets[0].end,
        Some(SocketEnd::Closed {
            code: 1012,
            reason: "moved".to_owned()
        })
    );
}

#[tokio::test]
async fn an_echo_sends_all_messages_back() {
    let (upstream, ana) = start().await;
    ana.then_handshake(Upgrade::new().echo());
    let mut client = connect(&upstream).await;
    for message in [
        Message::text("täg"),
        Message::binary(vec![0; 100_000]),
        Message::text(create(json!({})).to_string()),
    ] {
        client.send(message.clone()).await.expect("sent");
        assert_eq!(next_message(&mut client).await, message);
    }
    let parts = [
        ("tä".as_bytes(), Data::Text, false),
        (b"g".as_slice(), Data::Continue, true),
    ];
    for (part, kind, last) in parts {
        let frame = Frame::message(part, OpCode::Data(kind), last);
        client.send(Message::Frame(frame)).await.expect("sent");
    }
    assert_eq!(next_message(&mut client).await, Message::text("täg"));
    let messages = &upstream.sockets()[0].messages;
    assert_eq!(messages[0], SeenMessage::Text("täg".into()));
    assert_eq!(messages[1], SeenMessage::Binary(vec![0; 100_000].into()));
    assert_eq!((messages.len(), ana.socket_turn_count()), (4, 0));
}
