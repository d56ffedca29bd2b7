//! The state of the gateway's credentials, from its admin socket: for tests that have no other
//! signal to wait for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use scripted_upstream::WAIT_MAX;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::clients::client::{Answer, Client};
use crate::gateway::Rig;

/// The pause between two requests to the socket during a wait: the socket does not report changes.
const ASK_AGAIN: Duration = Duration::from_millis(5);

impl Rig {
    /// Returns the path of the admin socket.
    pub fn socket(&self) -> PathBuf {
        self.path("data").join("admin.sock")
    }

    /// Starts the gateway in this process and waits until the first poll of each credential is
    /// over. From then on, for the usual poll interval, only responses update their use.
    pub async fn start_polled(&mut self, config: Value) -> Client {
        let client = self.start(config).await;
        let begun = Instant::now();
        loop {
            let credentials = self.credentials().await;
            let Some(waiting) = credentials
                .iter()
                .find(|credential| is_to_be_polled(credential))
            else {
                return client;
            };
            assert!(
                begun.elapsed() < WAIT_MAX,
                "its use was not asked for: {waiting:#}"
            );
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Returns the state of all credentials of every service.
    pub async fn credentials(&self) -> Vec<Value> {
        let answer = ask_socket(&self.socket(), Method::GET, "/status").await;
        let status = answer.json();
        let services = status["services"].as_array().expect("a list of services");
        let credentials = services
            .iter()
            .map(|service| service["credentials"].as_array().expect("a list"));
        credentials.flatten().cloned().collect()
    }

    /// Returns the state of the credential `tag`.
    pub async fn credential(&self, tag: &str) -> Value {
        let found = self
            .credentials()
            .await
            .into_iter()
            .find(|credential| credential["credential"] == tag);
        found.unwrap_or_else(|| panic!("{tag} is no credential"))
    }

    /// Waits until the credential `tag` is as `expected` describes, at most for `limit`. Returns
    /// its state.
    ///
    /// # Panics
    /// Panics if it is not, in time.
    pub async fn wait_for_credential(
        &self,
        tag: &str,
        limit: Duration,
        expected: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.credential(tag).await;
            if is_so(&found) {
                return found;
            }
            assert!(
                begun.elapsed() < limit,
                "expected within {limit:?}: {expected}; found {found:#}"
            );
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until the usage of each of `tags` has been polled. Before that, which of them a balancer picks depends on
    /// whose poll ends first.
    pub async fn wait_until_polled(&self, tags: &[&str]) {
        for tag in tags {
            self.wait_for_credential(tag, WAIT_MAX, "polled", |found| {
                !found["polled_at"].is_null()
            })
            .await;
        }
    }

    /// Returns the state of the policy `tag`.
    pub async fn policy(&self, tag: &str) -> Value {
        policy(&self.socket(), tag).await
    }

    /// Waits until `is_so` of the policy `tag`. Returns its state then.
    ///
    /// # Panics
    /// Panics if that does not happen in time.
    pub async fn wait_for_policy(
        &self,
        tag: &str,
        expected: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.policy(tag).await;
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

    /// Waits until this generation of the policy `tag` is the current one.
    pub async fn wait_for_generation(&self, tag: &str, generation: u64) -> Value {
        let is_so = |found: &Value| found["generation"] == generation;
        self.wait_for_policy(tag, &format!("generation {generation}"), is_so)
            .await
    }

    /// Applies `what` (`reload`, `rollback`) to the policy `tag`.
    pub async fn change_policy(&self, tag: &str, what: &str) -> Answer {
        ask_socket(
            &self.socket(),
            Method::POST,
            &format!("/api/policies/{tag}/{what}"),
        )
        .await
    }

    /// Waits until the credential `tag` is in this state. Returns its state.
    pub async fn wait_for_state(&self, tag: &str, state: &str) -> Value {
        self.wait_for_credential(tag, WAIT_MAX, state, |found| found["state"] == state)
            .await
    }
}

/// Returns the state of the policy `tag` from an admin socket.
///
/// # Panics
/// Panics if there is none.
pub async fn policy(socket: &Path, tag: &str) -> Value {
    let answer = ask_socket(socket, Method::GET, "/api/policies")
        .await
        .json();
    let found = answer["policies"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|policy| policy["tag"] == tag);
    found
        .unwrap_or_else(|| panic!("{tag} is no policy: {answer:#}"))
        .clone()
}

/// Returns `true` if the credential is never polled: an API key, or a credential that is not
/// loaded.
fn is_to_be_polled(credential: &Value) -> bool {
    credential["kind"] == "oauth"
        && credential["polled_at"].is_null()
        && credential["poll_failure"].is_null()
}

/// Sends a request to an admin socket.
pub async fn ask_socket(socket: &Path, method: Method, path: &str) -> Answer {
    let stream = UnixStream::connect(socket)
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("it speaks HTTP");
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "tollgate")
        .body(Empty::<Bytes>::new());
    let response = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole answer").to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        body,
        whole: true,
    }
}
