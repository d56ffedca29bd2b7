//! The request as a policy sees it.

use crate::bindings::lifecycle::tollgate::policy::types;

/// The transport between the client and the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A request and its response, streamed or not.
    Http,
    /// One turn on a WebSocket.
    WebSocket,
    /// A transport that this release of the contract does not know.
    Other(u32),
}

/// A request. It carries the strings that the policy listed in its `STRINGS`, in that order.
#[derive(Debug, Clone)]
pub struct Request {
    strings: Vec<String>,
    transport: Transport,
    attempt: u32,
    now_ms: f64,
    seed: f64,
    sequence: f64,
}

impl Request {
    /// Returns the string at index `place` of the policy's `STRINGS`, or an empty string if the
    /// request has none.
    pub fn string(&self, place: usize) -> &str {
        self.strings.get(place).map_or("", String::as_str)
    }

    /// Returns the transport that the client uses.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the number of attempts made for this request before this one.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the time of the call in milliseconds since 1970-01-01T00:00:00Z.
    pub fn now_ms(&self) -> f64 {
        self.now_ms
    }

    /// Returns a random integer, uniform from 0 to 2^53 - 1.
    pub fn seed(&self) -> u64 {
        self.seed as u64
    }

    /// Returns the sequence number. For a balancer it counts the pool's requests without a home
    /// before this one; for the other kinds, the service's requests.
    pub fn sequence(&self) -> u64 {
        self.sequence as u64
    }

    /// Replaces the strings. For tests.
    pub fn with_strings<S: Into<String>>(mut self, strings: impl IntoIterator<Item = S>) -> Self {
        self.strings = strings.into_iter().map(Into::into).collect();
        self
    }

    /// Replaces the random number. For tests.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed as f64;
        self
    }

    /// Replaces the sequence number. For tests.
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = sequence as f64;
        self
    }
}

impl From<types::Request> for Request {
    fn from(raw: types::Request) -> Self {
        let transport = match raw.transport {
            0 => Transport::Http,
            1 => Transport::WebSocket,
            other => Transport::Other(other),
        };
        Self {
            strings: raw.strings,
            transport,
            attempt: raw.attempt,
            now_ms: raw.now_ms,
            seed: raw.seed,
            sequence: raw.sequence,
        }
    }
}
