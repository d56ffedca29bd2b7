//! The state of the gateway's policies, from its admin socket: for tests that have no other signal
//! to wait for.

use std::time::{Duration, Instant};

use http::Method;
use scripted_upstream::WAIT_MAX;
use serde_json::Value;

use crate::gateway::Rig;
use crate::gateway::metrics::Metrics;
use crate::gateway::status::ask_socket;

/// The pause between two requests to the socket during a wait: the socket does not report changes.
const ASK_AGAIN: Duration = Duration::from_millis(10);

impl Rig {
    /// Returns the answer to `GET /api/policies` on the admin socket.
    pub async fn policies(&self) -> Value {
        ask_socket(&self.socket(), Method::GET, "/api/policies")
            .await
            .json()
    }

    /// Waits until the policies and the result of the last reconfiguration are as `expected`
    /// describes. Returns them.
    ///
    /// # Panics
    /// Panics if they are not, in time.
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

    /// Returns the metrics from the admin socket.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(
            &ask_socket(&self.socket(), Method::GET, "/metrics")
                .await
                .text(),
        )
    }
}
