//! Answers that the gateway gives by itself: a status, and a body in the form of OpenAI's errors.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::AnswerBody;
use crate::authenticate::AuthError;
use crate::ledger::NoRoom;
use crate::policy::{Fault, Refused};
use crate::upstream::RequestBodyError;
use crate::values::clock::Timestamp;

/// A client is told to come back after this where nobody knows when a credential has room again: as long as a refusal
/// without an end counts.
const AGAIN_UNKNOWN: Duration = Duration::from_secs(5 * 60);

/// The field that names a request in the ledger and the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-tollgate-request-id");

/// A request that is answered by the gateway itself.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    /// When it is worth trying again: now, and then.
    again: Option<(Timestamp, Timestamp)>,
    field: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            message: message.into(),
            again: None,
            field: None,
        }
    }

    fn coded(self, code: &'static str) -> Self {
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

    pub(crate) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn unauthenticated(error: AuthError) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            error.to_string(),
        )
        .with_field(WWW_AUTHENTICATE, "Bearer")
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(crate) fn get_only() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "only GET is allowed here",
        )
        .with_field(ALLOW, "GET")
    }

    /// RFC 6455, section 4.4. (Codex takes a 426 as the word to go on with POST, at once and without telling its user.)
    pub(crate) fn websocket_version() -> Self {
        let message = "Sec-WebSocket-Version: expected 13";
        Self::new(
            StatusCode::UPGRADE_REQUIRED,
            "invalid_request_error",
            message,
        )
        .with_field(HeaderName::from_static("sec-websocket-version"), "13")
    }

    pub(crate) fn too_many_sockets() -> Self {
        let message = "as many WebSockets as limits.websockets_per_user are open";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .coded("overloaded")
            .with_field(RETRY_AFTER, "1")
    }

    pub(crate) fn no_room(reason: NoRoom) -> Self {
        let code = match reason {
            NoRoom::Busy => "overloaded",
            NoRoom::Failing => "ledger_unavailable",
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            reason.to_string(),
        )
        .coded(code)
        .with_field(RETRY_AFTER, "1")
    }

    /// The response's row could not be committed: the response must not count as seen.
    pub(crate) fn not_recorded() -> Self {
        Self::no_room(NoRoom::Failing)
    }

    pub(crate) fn body(error: RequestBodyError) -> Self {
        let (status, message) = match error {
            RequestBodyError::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request's body is larger than limits.request_body_bytes",
            ),
            RequestBodyError::TimedOut => (
                StatusCode::REQUEST_TIMEOUT,
                "the request's body did not come in time",
            ),
            RequestBodyError::Broken => (StatusCode::BAD_REQUEST, "the request's body broke off"),
        };
        // The rest of the body is not read: the connection cannot go on.
        Self::new(status, "invalid_request_error", message).with_field(CONNECTION, "close")
    }

    pub(crate) fn api_key_only() -> Self {
        Self::invalid("/v1/chat/completions is only available in API key mode")
    }

    /// Every usable credential is used up or refused, until `until` where that is known.
    pub(crate) fn exhausted(now: Timestamp, until: Option<Timestamp>) -> Self {
        let refusal = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "usage_limit_reached",
            "all credentials are rate-limited",
        );
        let until = until.unwrap_or_else(|| now.after(AGAIN_UNKNOWN));
        Self {
            again: Some((now, until)),
            ..refusal.coded("credentials_exhausted")
        }
    }

    /// The request's credential was used up while another has room, and the request cannot be sent again from here.
    pub(crate) fn cut_off() -> Self {
        let message = "the credential turned unusable under way, and the body, larger than limits.replay_bytes, was not \
            kept for another one, which has room: try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .coded("credential_usage_exhausted")
            .with_field(RETRY_AFTER, "1")
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            "no credential is available",
        )
        .coded("credentials_unavailable")
    }

    /// The same refusal, of a request that another credential might have served: its body was not kept.
    pub(crate) fn of_one_not_kept(mut self) -> Self {
        self.message.push_str(
            ", and the body, larger than limits.replay_bytes, was not kept for another credential",
        );
        self
    }

    pub(crate) fn upstream_unreachable() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "api_error",
            "upstream cannot be reached",
        )
        .coded("upstream_unreachable")
    }

    pub(crate) fn upstream_broke() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "api_error",
            "upstream broke off before its answer",
        )
        .coded("upstream_broken")
    }

    pub(crate) fn upstream_timed_out() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "api_error",
            "upstream did not answer in time",
        )
        .coded("upstream_timeout")
    }

    pub(crate) fn by_policy(refused: Refused) -> Self {
        let kind = if refused.status.is_client_error() {
            "invalid_request_error"
        } else {
            "server_error"
        };
        Self::new(refused.status, kind, refused.message).coded("refused_by_policy")
    }

    /// A policy without which the request may not go on failed.
    pub(crate) fn by_fault(fault: &Fault) -> Self {
        if fault.is_news() {
            return Self::policy_failed();
        }
        let message = "a policy is not available; the cause is in the gateway's log";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .coded("policy_unavailable")
            .with_field(RETRY_AFTER, "5")
    }

    fn policy_failed() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "a policy failed; the cause is in the gateway's log",
        )
        .coded("policy_failed")
    }

    pub(crate) fn unsendable() -> Self {
        Self::invalid("the request's path cannot be sent to upstream")
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// One event for a request that was refused at the door. It has no row.
    pub(crate) fn log(&self, service: &str, request_id: &str, path: &str) {
        tracing::info!(service, request_id, path, status = self.status.as_u16(), reason = %self.message, "refused");
    }

    /// The response.
    pub(crate) fn answer(self) -> Response<AnswerBody> {
        let body = Bytes::from(self.body_json().to_string());
        let mut response = Response::new(AnswerBody::whole(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.field {
            headers.insert(name, value);
        }
        if let Some((now, until)) = self.again {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds_until(now, until)));
        }
        response
    }

    fn body_json(&self) -> Value {
        let mut error = Map::new();
        error.insert("type".to_owned(), json!(self.kind));
        if let Some(code) = self.code {
            error.insert("code".to_owned(), json!(code));
        }
        error.insert("message".to_owned(), json!(self.message));
        if let Some((now, until)) = self.again {
            error.insert("resets_at".to_owned(), json!(until.0.div_ceil(1000)));
            error.insert(
                "resets_in_seconds".to_owned(),
                json!(seconds_until(now, until)),
            );
        }
        json!({ "error": error })
    }
}

/// Whole seconds, at least one: a client that waits so long comes after the moment, not before.
fn seconds_until(now: Timestamp, until: Timestamp) -> u64 {
    until.0.saturating_sub(now.0).div_ceil(1000).max(1)
}

/// Writes the request's name on its response, for whoever looks for it in the ledger or the log.
pub(crate) fn name_request(response: &mut Response<AnswerBody>, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}
