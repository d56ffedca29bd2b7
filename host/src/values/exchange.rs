//! What becomes of a request: how it ended, and the row that the ledger keeps of it.
//!
//! The stages before (`Received`, `Authenticated`, `Selected`, ...) live with the code that makes them, so that
//! nobody else can.

use http::Method;

use super::clock::Timestamp;
use super::counts::TokenCounts;
use super::money::ResponseCost;

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeEnd {
    /// The response came whole.
    Complete,
    /// The client left before that.
    ClientGone,
    /// Upstream broke off, timed out or could not be reached.
    UpstreamGone,
    /// Upstream or the gateway answered that it failed.
    Failed,
    /// Upstream ended the response early and said so.
    Incomplete,
}

impl ExchangeEnd {
    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::UpstreamGone => "upstream_gone",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTransport {
    /// HTTP.
    #[default]
    Http,
    /// WebSocket.
    WebSocket,
}

impl ClientTransport {
    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "websocket",
        }
    }

    /// Its number in the policies' contract.
    pub fn number(self) -> u32 {
        match self {
            Self::Http => 0,
            Self::WebSocket => 1,
        }
    }
}

/// One attempt to have a request served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamAttempt {
    /// The credential's tag.
    pub credential: String,
    /// What came of it: a status, or a word for a failure without one.
    pub outcome: AttemptOutcome,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Upstream answered with that status.
    Status(u16),
    /// Upstream could not be reached.
    Unreachable,
    /// Upstream did not answer in time.
    TimedOut,
    /// The connection broke before an answer.
    Broken,
    /// The client left before an answer.
    Abandoned,
    /// The credential turned unusable before an answer.
    Withdrawn,
}

impl AttemptOutcome {
    /// Its name in the ledger and the log.
    pub fn name(self) -> String {
        match self {
            Self::Status(status) => status.to_string(),
            Self::Unreachable => "unreachable".to_owned(),
            Self::TimedOut => "timed_out".to_owned(),
            Self::Broken => "broken".to_owned(),
            Self::Abandoned => "abandoned".to_owned(),
            Self::Withdrawn => "withdrawn".to_owned(),
        }
    }
}

/// What metering found out about a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeteredResponse {
    /// The response's id.
    pub response_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// The service tier that was charged.
    pub service_tier: Option<String>,
    /// The tokens, where upstream told them.
    pub counts: Option<TokenCounts>,
    /// Why the tokens are not known though there may be some.
    pub unknown: Option<&'static str>,
}

/// Where a session lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHome {
    /// The pool's tag.
    pub pool: String,
    /// The credential's tag.
    pub credential: String,
}

/// One row of the ledger: one admitted request. Times are as the columns have them.
#[derive(Debug, Clone)]
pub struct LedgerRow {
    /// Unique.
    pub request_id: String,
    /// When its head was read.
    pub started_at: Timestamp,
    /// When it was over.
    pub finished_at: Timestamp,
    /// The user's name.
    pub user: Option<String>,
    /// The credential that answered, or was tried last.
    pub credential: Option<String>,
    /// The service's tag.
    pub service: String,
    /// The model that answered, or else was asked for.
    pub model: Option<String>,
    /// The model that the request named.
    pub requested_model: Option<String>,
    /// The tier that was charged, or else was asked for.
    pub service_tier: Option<String>,
    /// How the client speaks.
    pub transport: ClientTransport,
    /// Nothing was to be generated: the client warmed its connection.
    pub prewarm: bool,
    /// The response that the request continues.
    pub previous_response_id: Option<String>,
    /// The request's method; that of the handshake for a turn on a WebSocket.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The status that the client got; 0 where it got none.
    pub status: u16,
    /// How it ended.
    pub end: ExchangeEnd,
    /// Every attempt, in order.
    pub attempts: Vec<UpstreamAttempt>,
    /// The session's key.
    pub session: Option<String>,
    /// Where the session lives, where that is to be noted.
    pub home: Option<SessionHome>,
    /// The response's id.
    pub response_id: Option<String>,
    /// The tokens, where they are known.
    pub counts: Option<TokenCounts>,
    /// The cost, where there is usage to price.
    pub cost: Option<ResponseCost>,
    /// The pricing policy: name, version and digest.
    pub priced_by: Option<String>,
    /// The start of the credential's week, in Unix seconds.
    pub week_start_unix: Option<u64>,
    /// From the request's head to the response's, in milliseconds.
    pub ttfb_ms: Option<u64>,
    /// From the request's head to its end, in milliseconds.
    pub duration_ms: u64,
}
