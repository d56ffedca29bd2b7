//! Sockets through the gateway to an upstream that echoes.

use scripted_upstream::{SocketEnd, SocketReply, Upgrade};
use serde_json::{Value, json};

use crate::clients::client::Client;
use crate::clients::socket::{Event, Socket};
use crate::gateway::Rig;

/// A gateway before an upstream that echoes every message, and a socket that must stay open.
pub struct EchoScene {
    /// The rig that the gateway runs in.
    pub rig: Rig,
    /// A client of the gateway.
    pub client: Client,
    bystander: Socket,
    /// The number of other sockets so far.
    pub opened: usize,
}

impl EchoScene {
    /// Starts a gateway with default limits.
    pub async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// Starts a gateway with these limits.
    pub async fn with(limits: Value) -> Self {
        let mut rig = Rig::new().await;
        let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
        config["limits"] = limits;
        let client = rig.start(config).await;
        rig.account("a").always_handshake(Upgrade::new().echo());
        let bystander = client.socket().await.expect("a socket");
        Self {
            rig,
            client,
            bystander,
            opened: 0,
        }
    }

    /// Opens a socket.
    ///
    /// # Panics
    /// Panics if the handshake is refused.
    pub async fn socket(&mut self) -> Socket {
        self.opened += 1;
        self.client
            .socket()
            .await
            .unwrap_or_else(|answer| panic!("no socket: {}", answer.text()))
    }

    /// Opens a socket on which upstream does this, unasked.
    pub async fn greeted(&mut self, greeting: SocketReply) -> Socket {
        self.rig
            .account("a")
            .then_handshake(Upgrade::new().echo().greet(greeting));
        self.socket().await
    }

    /// Stops the gateway.
    ///
    /// # Panics
    /// Panics if another socket than the bystander is open, or upstream was sent what breaks the
    /// protocol.
    pub async fn end(mut self) {
        self.bystander.send_text("still there").await;
        let echoed = Event::Text("still there".into());
        assert_eq!(self.bystander.next_message().await, echoed);
        let seen = self.rig.upstream.wait_for_sockets_ended(self.opened).await;
        assert_eq!(self.rig.upstream.open_socket_count(), 1, "the bystander's");
        let violated = seen
            .iter()
            .filter(|socket| matches!(socket.end, Some(SocketEnd::Violated(_))))
            .count();
        assert_eq!(violated, 0, "upstream was sent what breaks the protocol");
        self.rig.stop().await;
    }
}
