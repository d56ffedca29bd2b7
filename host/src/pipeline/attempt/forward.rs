//! Forward: one attempt, from a request that upstream may see to the head of its response.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode};

use super::rewrite::{Rewritten, SOCKET_KEY};
use crate::credentials::Identity;
use crate::frames::accept_of;
use crate::pipeline::service::Service;
use crate::pipeline::settle::OpenRow;
use crate::upstream::{RequestBody, ResponseBody, Upstream, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::exchange::{Outcome, Transport};
use crate::values::windows::Reading;

/// The head of upstream's response, whose body is still to come.
pub(crate) struct Sent {
    pub(crate) credential: usize,
    /// What upstream was shown.
    pub(crate) shown: Arc<Identity>,
    pub(crate) response: Response<ResponseBody>,
    pub(crate) reading: Reading,
}

/// Why an attempt has no response.
pub(crate) enum NoResponse {
    /// Upstream gave none.
    Upstream(UpstreamError),
    /// The credential turned unusable while the response's head was waited for.
    Withdrawn,
}

async fn send(
    upstream: &Upstream,
    transport: Transport,
    request: Request<RequestBody>,
    limit: Duration,
) -> Result<Response<ResponseBody>, UpstreamError> {
    match transport {
        Transport::Http => upstream.send(request, limit).await,
        Transport::WebSocket => {
            let accept = request
                .headers()
                .get(SOCKET_KEY)
                .map(|key| accept_of(key.as_bytes()));
            let response = upstream.handshake(request, limit).await?;
            let answered = response
                .headers()
                .get("sec-websocket-accept")
                .map(HeaderValue::as_bytes);
            if response.status() == StatusCode::SWITCHING_PROTOCOLS
                && answered != accept.as_deref().map(str::as_bytes)
            {
                return Err(UpstreamError::Broken(
                    "it accepted another handshake than it was sent".to_owned(),
                ));
            }
            Ok(response)
        }
    }
}

/// # Errors
/// There is no response.
pub(crate) async fn forward(
    service: &Service,
    open: &mut OpenRow,
    credential: usize,
    request: Rewritten,
    limit: Duration,
) -> Result<Sent, NoResponse> {
    let account = &service.parts.credentials[credential];
    let Rewritten { request, shown } = request;
    open.begins_attempt(credential);
    let begun = Instant::now();
    let sent = tokio::select! {
        // A response that is there goes before the news that there may be no other.
        biased;
        sent = send(&service.parts.upstreams[credential], open.transport(), request, limit) => sent,
        () = account.turns_unusable() => {
            open.ends_attempt(Outcome::Withdrawn);
            return Err(NoResponse::Withdrawn);
        }
    };
    let now = Timestamp::now();
    match sent {
        Ok(response) => {
            open.ends_attempt(Outcome::Status(response.status().as_u16()));
            let reading = Reading::from_headers(response.headers(), now);
            account.observe(&shown, &reading, now);
            account.answered(begun.elapsed());
            Ok(Sent {
                credential,
                shown,
                response,
                reading,
            })
        }
        Err(error) => {
            open.ends_attempt(match &error {
                UpstreamError::Unreachable(_) => Outcome::Unreachable,
                UpstreamError::TimedOut => Outcome::TimedOut,
                UpstreamError::RequestBody(_) => Outcome::Abandoned,
                UpstreamError::Broken(_) => Outcome::Broken,
            });
            if !matches!(error, UpstreamError::RequestBody(_)) {
                account.failed(now);
                tracing::warn!(credential = account.tag(), %error, "no answer from upstream");
            }
            Err(NoResponse::Upstream(error))
        }
    }
}
