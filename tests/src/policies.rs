//! How the gateway's policies are, as it tells on its admin socket: what a test waits for where nothing else shows.

use std::time::{Duration, Instant};

use http::Method;
use scripted_upstream::WAIT_MAX;
use serde_json::Value;

use crate::gateway::Rig;
use crate::metrics::Metrics;
use crate::status::ask_socket;

/// How often the socket is asked while something is waited for: it tells what is so, and no change.
const ASK_AGAIN: Duration = Duration::from_millis(10);

impl Rig {
    /// What `GET /api/policies` answers on the admin socket.
    pub async fn policies(&self) -> Value {
        ask_socket(&self.socket(), Method::GET, "/api/policies")
            .await
            .json()
    }

    /// Waits until the policies, and what came of the last configuration, are as `expected` says. Answers how they are.
    ///
    /// # Panics
    /// They are not, in time.
    pub async fn wait_for_policies(&self, expected: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.policies().await;
            if is_so(&found) {
                return found;
            }
            assert!(
                begun.elapsed() < WAIT_MAX,
                "expected: {expected}; found {found:#}"
            );
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The metrics, as the admin socket tells them.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(
            &ask_socket(&self.socket(), Method::GET, "/metrics")
                .await
                .text(),
        )
    }
}
