//! A team on a pool, for scenarios that reconfigure the running gateway.

use http::StatusCode;
use serde_json::{Value, json};

use crate::clients::client::Client;
use crate::gateway::Rig;
use crate::turn;

/// A running gateway for a team on a pool, and its configuration.
pub struct TeamScene {
    /// The rig that the gateway runs in.
    pub rig: Rig,
    /// The configuration in use.
    pub config: Value,
    /// A client of the gateway without a token.
    pub client: Client,
}

impl TeamScene {
    /// Starts a team on a pool of these accounts, in that order, and waits for their first polls.
    pub async fn new(tags: &[&str]) -> Self {
        Self::of(tags, |_| {}).await
    }

    /// As [`TeamScene::new`], with a configuration that `edit` changes first.
    pub async fn of(tags: &[&str], edit: impl FnOnce(&mut Value)) -> Self {
        let mut rig = Rig::new().await;
        let mut config = rig.team(tags, json!({ "strategy": "fallback" }));
        edit(&mut config);
        let client = rig.start_polled(config.clone()).await;
        Self {
            rig,
            config,
            client,
        }
    }

    /// Changes the configuration of the running gateway.
    ///
    /// # Panics
    /// Panics if the gateway does not apply all of it.
    pub async fn change(&mut self, edit: impl FnOnce(&mut Value)) {
        edit(&mut self.config);
        assert_eq!(
            self.rig.configure(&self.config).await.as_deref(),
            Ok("configuration applied")
        );
    }

    /// Returns the status of a turn with `token`.
    pub async fn status(&self, token: &str) -> u16 {
        self.client
            .token(token)
            .turn(&turn("one"))
            .await
            .status
            .as_u16()
    }

    /// Returns the account that serves a turn of alice in this session.
    ///
    /// # Panics
    /// Panics if none does.
    pub async fn account(&self, session: &str) -> String {
        let before = self.rig.upstream.turns().len();
        let answer = self.client.token("token-alice").turn(&turn(session)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let seen = self.rig.upstream.turns().split_off(before);
        seen.last()
            .and_then(|seen| seen.account.clone())
            .expect("a turn with an account's token")
    }

    /// Stops the gateway and waits for its end.
    pub async fn end(mut self) {
        self.rig.stop().await;
    }
}
