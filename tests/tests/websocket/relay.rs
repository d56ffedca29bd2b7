//! WebSocket: the handshake, who is asked instead, messages both ways, and the bounds of a socket.

mod bounds;
mod failover;
mod handshake;
mod messages;

use serde_json::{Value, json};
use tollgate_tests::upstream::Upgrade;
use tollgate_tests::{Client, Rig, Socket};

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
