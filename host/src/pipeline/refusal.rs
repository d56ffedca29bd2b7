//! Responses that the gateway makes itself: a status, and a body in the form of OpenAI's errors.
//!
//! Owns the status, the code and the text of every refusal, and how the ledger counts its exchange
//! as ended; does not know when a request is refused. Invariant: no text contains a secret, a path
//! of this machine or a policy's output, except what a rewriter says to the client.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::authenticate::AuthError;
use crate::ledger::ReservationError;
use crate::policy::{PolicyFault, RewriterRefusal};
use crate::upstream::RequestBodyError;
use crate::upstream::dial::DialError;
use crate::values::clock::Timestamp;
use crate::values::exchange::ExchangeEnd;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::headers::hops::HopError;

/// How long a client is asked to wait if no credential's reset is known: as long as a refusal
/// without an end counts.
const RETRY_UNKNOWN: Duration = Duration::from_secs(5 * 60);

/// A response in place of upstream's.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    error_type: ErrorType,
    code: Option<&'static str>,
    message: String,
    retry: Option<RetryTime>,
    field: Option<(HeaderName, HeaderValue)>,
    end: ExchangeEnd,
}

/// The `type` of an error, as OpenAI's API spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorType {
    InvalidRequest,
    Authentication,
    Server,
    Api,
    UsageLimitReached,
}

impl ErrorType {
    fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Server => "server_error",
            Self::Api => "api_error",
            Self::UsageLimitReached => "usage_limit_reached",
        }
    }
}

/// When it is worth trying again.
#[derive(Debug, Clone, Copy)]
struct RetryTime {
    now: Timestamp,
    at: Timestamp,
}

impl RetryTime {
    /// Returns whole seconds, at least one, rounded up: a client that waits that long comes after
    /// the moment.
    fn seconds(self) -> u64 {
        self.at.0.saturating_sub(self.now.0).div_ceil(1000).max(1)
    }
}

impl Refusal {
    fn new(status: StatusCode, error_type: ErrorType, message: impl Into<String>) -> Self {
        Self {
            status,
            error_type,
            code: None,
            message: message.into(),
            retry: None,
            field: None,
            end: ExchangeEnd::Failed,
        }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    fn with_field(self, name: HeaderName, value: &'static str) -> Self {
        Self {
            field: Some((name, HeaderValue::from_static(value))),
            ..self
        }
    }

    fn with_end(self, end: ExchangeEnd) -> Self {
        Self { end, ..self }
    }

    pub(crate) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorType::InvalidRequest, message)
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorType::InvalidRequest, message)
    }

    pub(crate) fn unauthenticated(error: AuthError) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorType::Authentication,
            error.to_string(),
        )
        .with_field(WWW_AUTHENTICATE, "Bearer")
    }

    pub(crate) fn misplaced_key() -> Self {
        Self::invalid(
            "API keys in X-Api-Key or Api-Key are not supported: send \
            Authorization: Bearer <token>",
        )
    }

    /// No external credential has the token of a gateway that wants to connect.
    pub(crate) fn unknown_reverse_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorType::Authentication,
            "invalid reverse token",
        )
        .with_field(WWW_AUTHENTICATE, "Bearer")
    }

    /// The connection cannot become a reverse connection: it is a stream of HTTP/2.
    pub(crate) fn irreversible() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorType::Api,
            "hijack not supported: a reverse connection needs HTTP/1.1",
        )
    }

    pub(crate) fn get_only() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorType::InvalidRequest,
            "only GET is allowed here",
        )
        .with_field(ALLOW, "GET")
    }

    /// RFC 6455, section 4.4. A 426 makes Codex continue with POST, at once and without a word to
    /// its user.
    pub(crate) fn websocket_version() -> Self {
        let message = "Sec-WebSocket-Version: expected 13";
        Self::new(
            StatusCode::UPGRADE_REQUIRED,
            ErrorType::InvalidRequest,
            message,
        )
        .with_field(HeaderName::from_static("sec-websocket-version"), "13")
    }

    pub(crate) fn too_many_sockets() -> Self {
        let message = "too many WebSockets are open: limits.websockets_per_user is reached";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Server, message)
            .with_code("overloaded")
            .with_field(RETRY_AFTER, "1")
    }

    pub(crate) fn too_many_status_watches() -> Self {
        let message = "too many statuses are watched: limits.status_watches_per_user is reached";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Server, message)
            .with_code("overloaded")
            .with_field(RETRY_AFTER, "1")
    }

    pub(crate) fn no_room(reason: ReservationError) -> Self {
        let code = match reason {
            ReservationError::Busy => "overloaded",
            ReservationError::Failing => "ledger_unavailable",
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorType::Server,
            reason.to_string(),
        )
        .with_code(code)
        .with_field(RETRY_AFTER, "1")
    }

    /// The row of a response that was not committed: the client must not take the response as
    /// complete.
    pub(crate) fn not_recorded() -> Self {
        Self::no_room(ReservationError::Failing)
    }

    pub(crate) fn request_body(error: RequestBodyError) -> Self {
        let (status, message, end) = match error {
            RequestBodyError::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request body is larger than limits.request_body_bytes",
                ExchangeEnd::Failed,
            ),
            RequestBodyError::TimedOut => (
                StatusCode::REQUEST_TIMEOUT,
                "the request body timed out: nothing was received for limits.body_timeout",
                ExchangeEnd::Failed,
            ),
            RequestBodyError::Broken => (
                StatusCode::BAD_REQUEST,
                "the request body is incomplete",
                ExchangeEnd::ClientGone,
            ),
        };
        // The rest of the body is not part of a next request: the connection cannot be used again.
        Self::new(status, ErrorType::InvalidRequest, message)
            .with_field(CONNECTION, "close")
            .with_end(end)
    }

    pub(crate) fn api_key_only() -> Self {
        Self::invalid("/v1/chat/completions is only available in API key mode")
    }

    /// Every credential is rate-limited, until `until` if that is known.
    pub(crate) fn exhausted(now: Timestamp, until: Option<Timestamp>) -> Self {
        let refusal = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorType::UsageLimitReached,
            "all credentials are rate-limited",
        );
        let at = until.unwrap_or_else(|| now.after(RETRY_UNKNOWN));
        Self {
            retry: Some(RetryTime { now, at }),
            ..refusal.with_code("credentials_exhausted")
        }
    }

    /// The credential became unusable while another one has room, but this request cannot be sent
    /// again: its client should try again.
    pub(crate) fn cut_off() -> Self {
        let message = "the credential became unusable, and the request body was not kept for \
            another credential because it is larger than limits.replay_bytes: try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Server, message)
            .with_code("credential_usage_exhausted")
            .with_field(RETRY_AFTER, "1")
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorType::Server,
            "no credential is available",
        )
        .with_code("credentials_unavailable")
    }

    /// The only credential is another gateway, which is not connected.
    pub(crate) fn not_connected(credential: &str) -> Self {
        let message = format!(
            "the credential {credential:?} is unavailable: reverse connection not established"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Server, message)
            .with_code("credentials_unavailable")
    }

    /// Adds that another credential might have answered if the request body had been kept.
    pub(crate) fn because_body_not_kept(mut self) -> Self {
        self.message.push_str(
            ", and the request body was not kept for another credential because it is larger than \
            limits.replay_bytes",
        );
        self
    }

    pub(crate) fn loop_detected(error: HopError) -> Self {
        Self::new(StatusCode::LOOP_DETECTED, ErrorType::Api, error.to_string())
            .with_code("loop_detected")
    }

    pub(crate) fn upstream_unreachable(error: &DialError) -> Self {
        let reason = error.public_reason();
        let message = match error.outbound() {
            Some(tag) => {
                format!("upstream cannot be reached: the outbound {tag:?} failed: {reason}")
            }
            None => format!("upstream cannot be reached: {reason}"),
        };
        Self::new(StatusCode::BAD_GATEWAY, ErrorType::Api, message)
            .with_code("upstream_unreachable")
            .with_end(ExchangeEnd::UpstreamGone)
    }

    pub(crate) fn upstream_broken() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            ErrorType::Api,
            "upstream closed the connection before its response was complete",
        )
        .with_code("upstream_broken")
        .with_end(ExchangeEnd::UpstreamGone)
    }

    pub(crate) fn upstream_timed_out() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorType::Api,
            "upstream did not respond in time",
        )
        .with_code("upstream_timeout")
        .with_end(ExchangeEnd::UpstreamGone)
    }

    pub(crate) fn by_policy(refused: RewriterRefusal) -> Self {
        let error_type = if refused.status.is_client_error() {
            ErrorType::InvalidRequest
        } else {
            ErrorType::Server
        };
        Self::new(refused.status, error_type, refused.message).with_code("refused_by_policy")
    }

    /// A policy failed whose configuration says that the request is refused then.
    pub(crate) fn by_fault(fault: &PolicyFault) -> Self {
        if fault.should_be_logged() {
            return Self::policy_failed();
        }
        let message = "a policy is unavailable; the cause is in the gateway's log";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorType::Server, message)
            .with_code("policy_unavailable")
            .with_field(RETRY_AFTER, "5")
    }

    fn policy_failed() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorType::Server,
            "a policy failed; the cause is in the gateway's log",
        )
        .with_code("policy_failed")
    }

    pub(crate) fn unsendable() -> Self {
        Self::invalid("the request's path cannot be sent to upstream")
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns how the exchange counts as ended.
    pub(crate) fn end(&self) -> ExchangeEnd {
        self.end
    }

    /// Logs a request that was refused before its admission: it has no row.
    pub(crate) fn log(&self, service: &str, request_id: &str, path: &str, client: ClientAddress) {
        tracing::info!(
            service,
            request_id,
            path,
            %client,
            status = self.status.as_u16(),
            reason = %self.message,
            "request refused"
        );
    }

    pub(crate) fn into_response(self) -> Response<Bytes> {
        let body = Bytes::from(self.body_json().to_string());
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.field {
            headers.insert(name, value);
        }
        if let Some(retry) = self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry.seconds()));
        }
        response
    }

    fn body_json(&self) -> Value {
        let mut error = Map::new();
        error.insert("type".to_owned(), json!(self.error_type.as_str()));
        if let Some(code) = self.code {
            error.insert("code".to_owned(), json!(code));
        }
        error.insert("message".to_owned(), json!(self.message));
        if let Some(retry) = self.retry {
            error.insert("resets_at".to_owned(), json!(retry.at.0.div_ceil(1000)));
            error.insert("resets_in_seconds".to_owned(), json!(retry.seconds()));
        }
        json!({ "error": error })
    }
}
