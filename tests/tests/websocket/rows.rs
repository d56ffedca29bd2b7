//! WebSocket: a row of each response, what its events tell of the credential, and when a socket is to go elsewhere.

mod drains;
mod responses;
mod usage;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::{Client, Event, Rig, Row, Socket, rows};

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
