//! A gateway with one credential and small limits, and what must be true of it after each bad peer.

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::peer::Peer;
use tollgate_tests::upstream::{Account, Upstream};
use tollgate_tests::{Client, Rig, Row, rows, turn, wait_for_rows};

pub(crate) struct BadPeerScene {
    rig: Rig,
    pub(crate) client: Client,
    /// Good requests that were sent, for which there are rows too.
    good: usize,
}

impl BadPeerScene {
    /// A gateway with these limits. Everybody may ask.
    pub(crate) async fn new(limits: Value) -> Self {
        Self::start(limits, None).await
    }

    /// A gateway whose upstream is not the scripted one, but what listens on `upstream`.
    pub(crate) async fn before(upstream: SocketAddr, limits: Value) -> Self {
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

    pub(crate) fn account(&self) -> Account {
        self.rig.account("a")
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.rig.upstream
    }

    /// A connection to the gateway.
    pub(crate) async fn peer(&self) -> Peer<tokio::net::TcpStream> {
        Peer::connect(self.client.address()).await
    }

    /// Checks that a good request on a fresh connection is served.
    pub(crate) async fn serves(&mut self) {
        let answer = Client::new(self.client.address()).turn(&turn("good")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.whole, "{}", answer.text());
        self.good += 1;
    }

    /// The gateway still serves, and what was admitted besides has made `admitted` rows: those are answered.
    pub(crate) async fn end(mut self, admitted: usize) -> Vec<Row> {
        self.serves().await;
        wait_for_rows(&self.rig.ledger(), admitted + self.good).await;
        self.rig.stop().await;
        let mut all = rows(&self.rig.ledger());
        assert_eq!(all.len(), admitted + self.good, "{all:#?}");
        all.retain(|row| row.text("session") != Some("good"));
        assert_eq!(all.len(), admitted, "{all:#?}");
        all
    }

    /// The gateway still serves, and what was admitted besides has made rows, however many: those are answered.
    pub(crate) async fn end_with_any(mut self) -> Vec<Row> {
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

/// Status and end of each row.
pub(crate) fn ends(rows: &[Row]) -> Vec<(i64, &str)> {
    let of = |row: &'_ Row| row.number("status").expect("a status");
    rows.iter()
        .map(|row| (of(row), row.text("end").expect("an end")))
        .collect()
}
