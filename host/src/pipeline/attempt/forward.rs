//! Forward: one attempt, from a request that upstream may see to the head of its response.
//!
//! Owns what is noted of an attempt: its outcome, its latency, and what the response's head says of
//! the credential. Whether the response is final is judged elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode};

use super::rewrite::{Rewritten, SOCKET_KEY};
use super::select::Selected;
use crate::credentials::{Credential, UpstreamIdentity};
use crate::frames::accept_of;
use crate::pipeline::exchange::Exchange;
use crate::upstream::{RequestBody, ResponseBody, UpstreamClient, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::WindowReading;
use crate::values::exchange::{AttemptOutcome, ClientTransport};

/// The head of upstream's response, whose body is still to come.
pub(crate) struct Sent {
    pub(crate) credential: Arc<Credential>,
    /// What was presented to upstream.
    pub(crate) presented: Arc<UpstreamIdentity>,
    pub(crate) response: Response<ResponseBody>,
    /// What the head says of the credential's windows.
    pub(crate) reading: WindowReading,
}

/// Why an attempt has no response.
pub(crate) enum NoResponse {
    /// The request or the response failed on its way.
    Upstream(UpstreamError),
    /// The credential turned unusable while the response's head was awaited.
    Withdrawn,
}

/// Sends the request and waits for the head of the response, at most for `limit`.
///
/// # Errors
/// There is no response.
pub(crate) async fn forward(
    exchange: &mut Exchange,
    selected: &Selected,
    rewritten: Rewritten,
    limit: Duration,
) -> Result<Sent, NoResponse> {
    let credential = selected.credential();
    exchange.begin_attempt(credential);
    let begun = Instant::now();
    let upstream = selected.member.upstream();
    let sent = tokio::select! {
        // A response that has arrived counts, even if the credential turned unusable at the same
        // time.
        biased;
        sent = send(upstream, exchange.transport(), rewritten.request, limit) => sent,
        () = credential.until_unusable() => {
            exchange.end_attempt(AttemptOutcome::Withdrawn);
            return Err(NoResponse::Withdrawn);
        }
    };
    let now = Timestamp::now();
    match sent {
        Ok(response) => {
            exchange.end_attempt(AttemptOutcome::Status(response.status().as_u16()));
            let reading = WindowReading::from_headers(response.headers(), now);
            credential.observe(&selected.identity, &reading, now);
            credential.record_response(begun.elapsed());
            Ok(Sent {
                credential: Arc::clone(credential),
                presented: Arc::clone(&selected.identity),
                response,
                reading,
            })
        }
        Err(error) => {
            exchange.end_attempt(outcome_of(&error));
            if !matches!(error, UpstreamError::RequestBody(_)) {
                credential.record_failure(now);
                tracing::warn!(credential = credential.tag(), %error, "no response from upstream");
            }
            if let UpstreamError::Unreachable(error) = &error {
                credential.record_unreachable(error.to_string());
            }
            Err(NoResponse::Upstream(error))
        }
    }
}

fn outcome_of(error: &UpstreamError) -> AttemptOutcome {
    match error {
        UpstreamError::Unreachable(_) => AttemptOutcome::Unreachable,
        UpstreamError::TimedOut => AttemptOutcome::TimedOut,
        UpstreamError::RequestBody(_) => AttemptOutcome::Abandoned,
        UpstreamError::Broken(_) => AttemptOutcome::Broken,
    }
}

async fn send(
    upstream: &UpstreamClient,
    transport: ClientTransport,
    request: Request<RequestBody>,
    limit: Duration,
) -> Result<Response<ResponseBody>, UpstreamError> {
    match transport {
        ClientTransport::Http => upstream.send(request, limit).await,
        ClientTransport::WebSocket => handshake(upstream, request, limit).await,
    }
}

/// Upstream accepted a WebSocket handshake with the answer to another key.
#[derive(Debug, thiserror::Error)]
#[error("Sec-WebSocket-Accept does not match the key that was sent")]
struct SocketKeyMismatch;

async fn handshake(
    upstream: &UpstreamClient,
    request: Request<RequestBody>,
    limit: Duration,
) -> Result<Response<ResponseBody>, UpstreamError> {
    let expected = request
        .headers()
        .get(SOCKET_KEY)
        .map(|key| accept_of(key.as_bytes()));
    let response = upstream.handshake(request, limit).await?;
    let accepted = response
        .headers()
        .get("sec-websocket-accept")
        .map(HeaderValue::as_bytes);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && accepted != expected.as_deref().map(str::as_bytes)
    {
        return Err(UpstreamError::Broken(SocketKeyMismatch.into()));
    }
    Ok(response)
}
