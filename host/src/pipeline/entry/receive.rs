//! Receive, route and authenticate: what is asked, whether it is asked in the right way, and by whom.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use hyper::body::Body;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::authenticate::{Authenticated as Proof, User};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::upstream::ClientBody;
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

/// A request whose head was read.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its name in the ledger and the log.
    pub(crate) id: String,
    /// Random bits of its name: the seed of what chance decides about it.
    pub(crate) seed: u64,
    pub(crate) at: Timestamp,
    pub(crate) clock: Instant,
    pub(crate) peer: IpAddr,
    pub(crate) head: Parts,
}

impl Received {
    pub(crate) fn new(head: Parts, peer: IpAddr) -> Self {
        let id = Uuid::now_v7();
        Self {
            id: id.to_string(),
            // The lower bits of a version 7 UUID are random (RFC 9562, section 5.7).
            seed: id.as_u128() as u64,
            at: Timestamp::now(),
            clock: Instant::now(),
            peer,
            head,
        }
    }

    pub(crate) fn path(&self) -> &str {
        self.head.uri.path()
    }
}

/// A request for what the service serves.
#[derive(Debug)]
pub(crate) struct Routed(Received);

/// # Errors
/// It asks for something else, or with the wrong kind of credential.
pub(crate) fn route(service: &Service, received: Received) -> Result<Routed, Refusal> {
    let refused = |refusal: Refusal| {
        refusal.log(service.tag(), &received.id, received.path());
        Err(refusal)
    };
    if !stays_under_v1(received.path()) {
        return refused(Refusal::not_found("path must start with /v1/"));
    }
    if received.head.headers.contains_key("x-api-key")
        || received.head.headers.contains_key("api-key")
    {
        let message = "API keys in X-Api-Key or Api-Key are not supported: send Authorization: Bearer <token>";
        return refused(Refusal::invalid(message));
    }
    Ok(Routed(received))
}

/// Whether a path is under `/v1/`, whatever an upstream makes of it: one that leads out again by dot segments (RFC 3986,
/// section 5.2.4), plain or percent-encoded, would reach the rest of the backend with the operator's token.
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

/// Reads on in the body of a request that was refused, within bounds. A client that is still sending when its
/// connection is closed may never see the answer.
pub(crate) fn discard(body: Incoming, limits: &Limits) {
    if body.is_end_stream() {
        return;
    }
    let mut body = ClientBody::new(body, limits.discard_bytes, limits.body_timeout);
    let reading = async move { while let Some(Ok(_)) = body.part().await {} };
    tokio::spawn(timeout(limits.discard_timeout, reading));
}

/// A request of somebody who may ask. The proof is in it, and only authentication makes one.
#[derive(Debug)]
pub(crate) struct Authenticated {
    received: Received,
    proof: Proof,
}

impl Authenticated {
    /// The request, and its user: none where the service has no users.
    pub(crate) fn into_parts(self) -> (Received, Option<Arc<User>>) {
        (self.received, self.proof.user().cloned())
    }
}

/// # Errors
/// Nobody who may asks. Repeated failures of an address are answered late.
pub(crate) async fn authenticate(
    service: &Service,
    routed: Routed,
) -> Result<Authenticated, Refusal> {
    let Routed(received) = routed;
    let proof = prove(service, &received).await?;
    Ok(Authenticated { received, proof })
}

/// Who sends the request.
///
/// # Errors
/// Nobody who may.
pub(crate) async fn prove(service: &Service, received: &Received) -> Result<Proof, Refusal> {
    match service.users.authenticate(&received.head.headers) {
        Ok(proof) => Ok(proof),
        Err(error) => {
            let delay = service.attempts().failed(received.peer, received.at);
            if !delay.is_zero() {
                sleep(delay).await;
            }
            let refusal = Refusal::unauthenticated(error);
            refusal.log(service.tag(), &received.id, received.path());
            Err(refusal)
        }
    }
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
