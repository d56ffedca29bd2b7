//! What upstream saw: every request in order of arrival, and how many a client abandoned.
//! Invariant: counts only grow, so a wait cannot miss a value.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Method, Version};
use serde_json::Value;
use tokio::sync::watch;

use crate::waits::WAIT_MAX;

/// Whether requests are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remember {
    /// All of them, with their bodies.
    #[default]
    Everything,
    /// Only their number: for a benchmark.
    Counts,
}

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    /// The HTTP method of the request.
    pub method: Method,
    /// The path with its query.
    pub target: String,
    /// All header fields, in lower case.
    pub headers: HeaderMap,
    /// The whole body, still encoded as it came.
    pub body: Bytes,
    /// The id of the account that the bearer token names, or the refresh token of a POST to the
    /// token endpoint.
    pub account: Option<String>,
    /// The number of its connection; they count from 1 in order of acceptance.
    pub connection: u64,
    /// The version of HTTP: 1.1 or 2.
    pub version: Version,
}

impl SeenRequest {
    /// Returns the path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns a header's value if there is one and it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the body as JSON.
    ///
    /// # Panics
    /// Panics if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{} {}: body is not JSON: {error}", self.method, self.target)
        })
    }

    /// Returns `true` if it is a POST to a route that runs a model.
    pub fn is_turn(&self) -> bool {
        self.method == Method::POST
            && ["/responses", "/responses/compact", "/chat/completions"]
                .iter()
                .any(|end| self.path().ends_with(end))
    }
}

/// The record of an upstream.
#[derive(Debug)]
pub(crate) struct Record {
    remember: Remember,
    requests: Mutex<Vec<SeenRequest>>,
    resets: Mutex<Vec<Reason>>,
    counts: watch::Sender<Counts>,
    stopping: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: usize,
    pub(crate) turns: usize,
    pub(crate) abandoned: usize,
}

impl Record {
    pub(crate) fn new(remember: Remember) -> Self {
        Record {
            remember,
            requests: Mutex::default(),
            resets: Mutex::default(),
            counts: watch::Sender::default(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn add(&self, request: SeenRequest) {
        let turn = usize::from(request.is_turn());
        if self.remember == Remember::Everything {
            self.requests
                .lock()
                .expect("no holder of the record panics")
                .push(request);
        }
        self.counts.send_modify(|counts| {
            counts.requests += 1;
            counts.turns += turn;
        });
    }

    pub(crate) fn requests(&self) -> Vec<SeenRequest> {
        self.requests
            .lock()
            .expect("no holder of the record panics")
            .clone()
    }

    pub(crate) fn reset(&self, reason: Reason) {
        self.resets
            .lock()
            .expect("no holder of the record panics")
            .push(reason);
    }

    pub(crate) fn resets(&self) -> Vec<Reason> {
        self.resets
            .lock()
            .expect("no holder of the record panics")
            .clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// From now on an unfinished body was cut by upstream itself.
    pub(crate) fn stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(crate) fn abandoned(&self) {
        if !self.stopping.load(Ordering::SeqCst) {
            self.counts.send_modify(|counts| counts.abandoned += 1);
        }
    }

    /// Waits until `enough`. Panics after [`WAIT_MAX`] with `expected` and what was seen instead.
    pub(crate) async fn wait(&self, expected: &str, enough: impl FnMut(&Counts) -> bool) {
        let mut counts = self.counts.subscribe();
        let waited = tokio::time::timeout(WAIT_MAX, counts.wait_for(enough))
            .await
            .is_ok();
        assert!(
            waited,
            "scripted upstream: expected {expected} within {WAIT_MAX:?}, saw {:?}: {}",
            self.counts(),
            self.outline(),
        );
    }

    /// Returns methods, targets and accounts; no headers, so that no token is printed by a test.
    fn outline(&self) -> String {
        let requests = self.requests();
        let lines = requests.iter().map(|seen| {
            format!(
                "{} {} ({})",
                seen.method,
                seen.target,
                seen.account.as_deref().unwrap_or("no account")
            )
        });
        lines.collect::<Vec<_>>().join(", ")
    }
}
