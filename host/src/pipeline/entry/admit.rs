//! Admit: room in the ledger is reserved, or the request is refused.
//!
//! Owns the step from a request to an exchange. Invariant: from here on the request makes exactly
//! one row.

use http::request::Parts;

use super::body::GuardedBody;
use super::receive::AuthenticatedRequest;
use crate::pipeline::affinity::session_in_headers;
use crate::pipeline::exchange::{AdmittedRequest, Exchange};
use crate::pipeline::refusal::Refusal;
use crate::values::headers::hops::HopTrail;

/// A request that will be recorded, however it ends.
pub(crate) struct Admitted {
    pub(crate) exchange: Box<Exchange>,
    pub(crate) head: Parts,
    pub(crate) body: GuardedBody,
}

/// # Errors
/// The request was here before, or the ledger has no room for another row.
pub(crate) fn admit(authenticated: AuthenticatedRequest) -> Result<Admitted, Refusal> {
    let (received, user) = authenticated.into_parts();
    let service = received.service;
    let path = received.head.uri.path().to_owned();
    let log = |refusal: Refusal| {
        refusal.log(service.tag(), &received.id, &path, received.client);
        refusal
    };
    let hops = HopTrail::read(&received.head.headers, &service.parts().hop)
        .map_err(|error| log(Refusal::loop_detected(error)))?;
    let room = service
        .parts()
        .ledger
        .reserve()
        .map_err(|reason| log(Refusal::no_room(reason)))?;
    let request = AdmittedRequest {
        id: received.id,
        seed: received.seed,
        started_at: received.at,
        clock: received.clock,
        client: received.client,
        user,
        path,
        method: received.head.method.clone(),
        session: session_in_headers(&received.head.headers),
        hops,
    };
    Ok(Admitted {
        exchange: Exchange::open(service, room, request),
        head: received.head,
        body: received.body,
    })
}
