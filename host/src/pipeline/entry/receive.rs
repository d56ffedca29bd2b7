//! Receive, route and authenticate: what the client asks for, whether it asks in the right way, and
//! who it is.
//!
//! Owns the checks that need no more than the request's head; does not know what the body asks for.
//! Invariant: only [`authenticate`] makes an [`AuthenticatedRequest`], and it holds the proof.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use tokio::time::sleep;
use uuid::Uuid;

use super::body::GuardedBody;
use super::forwarded::client_address;
use crate::authenticate::{AuthenticationProof, User};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;

/// A request whose head was read.
pub(crate) struct Received {
    /// What the request finds when it begins, and keeps to its end.
    pub(crate) service: Arc<Service>,
    /// Its id in the ledger and the log.
    pub(crate) id: String,
    /// The random bits of its id, which seed every random choice that is made for it.
    pub(crate) seed: u64,
    pub(crate) at: Timestamp,
    pub(crate) clock: Instant,
    /// Where it comes from, as trusted proxies say.
    pub(crate) client: ClientAddress,
    pub(crate) head: Parts,
    pub(crate) body: GuardedBody,
}

impl fmt::Debug for Received {
    /// Prints nothing of the head: it has the client's token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Received {
    pub(crate) fn path(&self) -> &str {
        self.head.uri.path()
    }

    pub(crate) fn log(&self, refusal: &Refusal) {
        refusal.log(self.service.tag(), &self.id, self.path(), self.client);
    }
}

/// Receives a request: it is named, timed, and given the service that it keeps.
pub(crate) fn receive(
    service: Arc<Service>,
    request: Request<Incoming>,
    peer: ClientAddress,
) -> Received {
    let (head, body) = request.into_parts();
    let id = Uuid::now_v7();
    Received {
        id: id.to_string(),
        // The lower bits of a version 7 UUID are random (RFC 9562, section 5.7).
        seed: id.as_u128() as u64,
        at: Timestamp::now(),
        clock: Instant::now(),
        client: client_address(&head.headers, peer, service.trusted_proxies()),
        head,
        body: GuardedBody::new(body, service.limits()),
        service,
    }
}

/// A request for a path that the service has.
#[derive(Debug)]
pub(crate) struct Routed(Received);

/// # Errors
/// The path is not under `/v1/`, or the request presents its token in the wrong header only.
pub(crate) fn route(received: Received) -> Result<Routed, Refusal> {
    if let Some(refusal) = misdirected(&received) {
        received.log(&refusal);
        return Err(refusal);
    }
    Ok(Routed(received))
}

fn misdirected(received: &Received) -> Option<Refusal> {
    if !stays_under_v1(received.path()) {
        return Some(Refusal::not_found("path must start with /v1/"));
    }
    let headers = &received.head.headers;
    has_only_misplaced_key(headers).then(Refusal::misplaced_key)
}

/// Returns whether a request presents a token in a field that is not supported.
pub(crate) fn has_misplaced_key(headers: &HeaderMap) -> bool {
    headers.contains_key("x-api-key") || headers.contains_key("api-key")
}

/// Returns whether a request presents a token in such a field alone. Beside `Authorization` these
/// fields have no effect: they are not forwarded.
pub(crate) fn has_only_misplaced_key(headers: &HeaderMap) -> bool {
    !headers.contains_key(AUTHORIZATION) && has_misplaced_key(headers)
}

/// Returns whether a path is under `/v1/` however upstream reads it: a path with dot segments (RFC
/// 3986, section 5.2.4), plain or percent-encoded, could reach the rest of the backend with the
/// operator's token.
fn stays_under_v1(path: &str) -> bool {
    let plain = path
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace("%5c", "/")
        .replace('\\', "/");
    path.starts_with("/v1/")
        && !plain
            .split('/')
            .any(|segment| matches!(segment, "." | ".."))
}

/// A request, and the proof that its sender was authenticated.
#[derive(Debug)]
pub(crate) struct AuthenticatedRequest {
    received: Received,
    proof: AuthenticationProof,
}

impl AuthenticatedRequest {
    /// Returns the request and its user, which is `None` if the service has no users.
    pub(crate) fn into_parts(self) -> (Received, Option<Arc<User>>) {
        (self.received, self.proof.user().cloned())
    }
}

/// # Errors
/// The request presents no token of a user. After repeated failures of an address this takes
/// longer.
pub(crate) async fn authenticate(routed: Routed) -> Result<AuthenticatedRequest, Refusal> {
    let Routed(received) = routed;
    let proof = authenticate_sender(&received).await?;
    Ok(AuthenticatedRequest { received, proof })
}

/// Returns the proof of who sent the request.
///
/// # Errors
/// As [`authenticate`].
pub(crate) async fn authenticate_sender(
    received: &Received,
) -> Result<AuthenticationProof, Refusal> {
    let service = &received.service;
    match service.users().authenticate(&received.head.headers) {
        Ok(proof) => Ok(proof),
        Err(error) => Err(refuse_sender(received, Refusal::unauthenticated(error)).await),
    }
}

/// Returns `refusal` of a sender who is not authenticated: after repeated failures of an address
/// this takes longer.
pub(crate) async fn refuse_sender(received: &Received, refusal: Refusal) -> Refusal {
    let failures = received.service.failed_attempts();
    let delay = failures.record(received.client, received.at);
    if !delay.is_zero() {
        sleep(delay).await;
    }
    received.log(&refusal);
    refusal
}

#[cfg(test)]
mod tests {
    use super::stays_under_v1;

    #[test]
    fn no_spelling_of_a_dot_segment_leads_out() {
        for path in ["/v1/responses", "/v1/a..b", "/v1/...", "/v1/models/gpt-5.4"] {
            assert!(stays_under_v1(path), "{path}");
        }
        for path in [
            "/",
            "/v1",
            "/v2/x",
            "/v1/../x",
            "/v1/..",
            "/v1/%2e%2E/x",
            "/v1/a%2f..%2Fx",
            "/v1/a\\..\\x",
            "/v1/./x",
        ] {
            assert!(!stays_under_v1(path), "{path}");
        }
    }
}
