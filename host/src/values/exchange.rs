//! The outcome of a request: how it ended, its attempts, and its row in the ledger.
//!
//! The types of the stages before (`Received`, `Authenticated`, `Selected`, …) are defined by the
//! code that creates them, so that no other code can.

pub mod client_address;
pub mod counts;
pub(crate) mod money;

use http::Method;

use self::client_address::ClientAddress;
use self::counts::TokenCounts;
use self::money::ResponseCost;
use super::clock::Timestamp;

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeEnd {
    /// The client received the whole response.
    Complete,
    /// The client disconnected before the end.
    ClientGone,
    /// Upstream disconnected, timed out or could not be reached.
    UpstreamGone,
    /// Upstream or the gateway responded with an error.
    Failed,
    /// Upstream reported that it ended the response early.
    Incomplete,
}

impl ExchangeEnd {
    /// Returns the name in the ledger.
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

/// The protocol that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTransport {
    /// A request and its response.
    #[default]
    Http,
    /// Turns on a WebSocket.
    WebSocket,
}

impl ClientTransport {
    /// Returns the name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "websocket",
        }
    }

    /// Returns the number in the contract with policies.
    pub fn number(self) -> u32 {
        match self {
            Self::Http => 0,
            Self::WebSocket => 1,
        }
    }
}

/// One attempt to get a response from upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamAttempt {
    /// The tag of the credential, which may have left the configuration since.
    pub credential: String,
    /// The status of the response, or why there is none.
    pub outcome: AttemptOutcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Upstream responded with this status.
    Status(u16),
    /// Upstream could not be reached.
    Unreachable,
    /// Upstream did not respond in time.
    TimedOut,
    /// The connection broke before a response.
    Broken,
    /// The client disconnected before a response.
    Abandoned,
    /// The credential became unusable before a response.
    Withdrawn,
}

impl AttemptOutcome {
    /// Returns the name in the ledger and the log.
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

/// What metering read from a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeteredResponse {
    /// The id that upstream gave the response.
    pub response_id: Option<String>,
    /// The model that responded.
    pub model: Option<String>,
    /// The service tier that was charged.
    pub service_tier: Option<String>,
    /// The tokens, if upstream reported them.
    pub counts: Option<TokenCounts>,
    /// Why the tokens are unknown, if the response may have used some.
    pub unknown: Option<UnknownUsage>,
}

/// Why the tokens of a response are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownUsage {
    /// The gateway does not know its content encoding.
    UnknownEncoding,
    /// It does not have the content encoding that its head names.
    Undecodable,
    /// It is larger than `limits.decoded_bytes` once decoded.
    TooLarge,
    /// Upstream did not report any.
    NotReported,
}

impl UnknownUsage {
    /// Returns the reason in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownEncoding => "the response has an unknown content encoding",
            Self::Undecodable => "the response cannot be decoded",
            Self::TooLarge => "the decoded response is larger than limits.decoded_bytes",
            Self::NotReported => "upstream told no usage",
        }
    }
}

/// The credential that a session returns to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHome {
    /// The tag of the pool that chose the credential.
    pub pool: String,
    /// The tag of the credential, which may have left the configuration since.
    pub credential: String,
}

/// A row of the ledger: one admitted request, or one turn on a WebSocket.
#[derive(Debug, Clone)]
pub struct LedgerRow {
    /// The request's id, unique.
    pub request_id: String,
    /// When the request's head was read.
    pub started_at: Timestamp,
    /// When the exchange ended.
    pub finished_at: Timestamp,
    /// Where it came from. Only the log has it.
    pub client: ClientAddress,
    /// The user's name; `None` if the service has no users.
    pub user: Option<String>,
    /// The credential that responded, or was tried last.
    pub credential: Option<String>,
    /// The tag of the service that received the request.
    pub service: String,
    /// The model that responded, or else the requested one.
    pub model: Option<String>,
    /// The model that the request named.
    pub requested_model: Option<String>,
    /// The tier that was charged, or else the requested one.
    pub service_tier: Option<String>,
    /// The protocol that the client speaks.
    pub transport: ClientTransport,
    /// Whether the request generates nothing and only prepares the connection.
    pub prewarm: bool,
    /// The response that the request continues.
    pub previous_response_id: Option<String>,
    /// The request's method; that of the handshake for a turn on a WebSocket.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The status that the client received; 0 if it received none.
    pub status: u16,
    /// How the exchange ended.
    pub end: ExchangeEnd,
    /// Every attempt, in order.
    pub attempts: Vec<UpstreamAttempt>,
    /// The key of the session, if the request named one.
    pub session: Option<String>,
    /// The session's home, if it has to be stored.
    pub home: Option<SessionHome>,
    /// The id that upstream gave the response.
    pub response_id: Option<String>,
    /// The tokens, if they are known.
    pub counts: Option<TokenCounts>,
    /// The cost, if there is usage to price.
    pub cost: Option<ResponseCost>,
    /// The pricing policy: name, version and digest.
    pub priced_by: Option<String>,
    /// The start of the credential's week, in Unix seconds.
    pub week_start_unix: Option<u64>,
    /// The time from the request's head to the response's, in milliseconds.
    pub ttfb_ms: Option<u64>,
    /// The time from the request's head to the end of the exchange, in milliseconds.
    pub duration_ms: u64,
}
