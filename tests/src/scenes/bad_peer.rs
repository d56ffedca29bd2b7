//! A gateway with one credential and small limits, and what must be true of it after each bad peer.

use std::net::SocketAddr;

use http::StatusCode;
use scripted_upstream::{Account, Upstream};
use serde_json::{Value, json};

use crate::clients::client::Client;
use crate::clients::peer::Peer;
use crate::gateway::Rig;
use crate::gateway::ledger::{Row, rows, wait_for_rows};
use crate::turn;

/// A running gateway with the credential `a`, and the number of good requests.
pub struct BadPeerScene {
    rig: Rig,
    /// A client of the gateway.
    pub client: Client,
    /// Good requests that were sent, for which there are rows too.
    good: usize,
}

impl BadPeerScene {
    /// Starts a gateway with these limits, whose clients need no token.
    pub async fn new(limits: Value) -> Self {
        Self::start(limits, None).await
    }

    /// Starts a gateway whose upstream is not the scripted one, but what listens on `upstream`.
    pub async fn before(upstream: SocketAddr, limits: Value) -> Self {
        Self::start(limits, Some(upstream)).await
    }

    async fn start(limits: Value, upstream: Option<SocketAddr>) -> Self {
        let mut rig = Rig::new().await;
        let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
        config["limits"] = limits;
        // A peer that is left behind must not hold up the test's end.
        config["limits"]["drain_timeout"] = json!("1s");
        if let Some(address) = upstream {
            config["services"][0]["endpoints"]["chatgpt"] =
                json!(format!("http://{address}/backend-api"));
        }
        let client = rig.start(config).await;
        Self {
            rig,
            client,
            good: 0,
        }
    }

    /// Returns the account of the credential.
    pub fn account(&self) -> Account {
        self.rig.account("a")
    }

    /// Returns the scripted upstream.
    pub fn upstream(&self) -> &Upstream {
        &self.rig.upstream
    }

    /// Opens a connection to the gateway.
    pub async fn peer(&self) -> Peer<tokio::net::TcpStream> {
        Peer::connect(self.client.address()).await
    }

    /// Checks that a good request on a fresh connection is served.
    ///
    /// # Panics
    /// Panics if it is not.
    pub async fn serves(&mut self) {
        let answer = Client::new(self.client.address()).turn(&turn("good")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.whole, "{}", answer.text());
        self.good += 1;
    }

    /// Checks that the gateway still serves, and that the other requests have made `admitted` rows.
    /// Returns those rows.
    ///
    /// # Panics
    /// Panics if there are more or fewer.
    pub async fn end(mut self, admitted: usize) -> Vec<Row> {
        self.serves().await;
        wait_for_rows(&self.rig.ledger(), admitted + self.good).await;
        self.rig.stop().await;
        let mut all = rows(&self.rig.ledger());
        assert_eq!(all.len(), admitted + self.good, "{all:#?}");
        all.retain(|row| row.text("session") != Some("good"));
        assert_eq!(all.len(), admitted, "{all:#?}");
        all
    }

    /// Checks that the gateway still serves, and returns the rows of the other requests, however
    /// many there are.
    ///
    /// # Panics
    /// Panics if a good request has no row.
    pub async fn end_with_any(mut self) -> Vec<Row> {
        self.serves().await;
        self.rig.stop().await;
        let mut all = rows(&self.rig.ledger());
        let good = all
            .iter()
            .filter(|row| row.text("session") == Some("good"))
            .count();
        assert_eq!(good, self.good);
        all.retain(|row| row.text("session") != Some("good"));
        all
    }
}
