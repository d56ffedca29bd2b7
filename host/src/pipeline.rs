//! A request's journey, one line per stage.
//!
//! ```text
//! received -> routed -> authenticated -> admitted -> inspected
//!          -> [ selected -> rewritten -> sent -> judged ]   again, with another credential
//!          -> answered -> settled (metered, priced, recorded)
//! ```
//!
//! Owns the order of the stages. Each is in a file of its name, in the folder of its part of the
//! journey; receive, route and authenticate share one. Invariant: a stage takes what only the stage
//! before can make, so that none can be left out. From its admission on, what is known of a
//! request is its `exchange`, which makes exactly one row in the ledger.

mod affinity;
mod answer;
mod attempt;
mod entry;
mod exchange;
mod ocm;
mod refusal;
mod rewriters;
mod service;
mod websocket;

use http::{HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;

pub(crate) use affinity::restore_affinity;
pub(crate) use answer::AnswerBody;
pub(crate) use service::live::LiveService;
pub(crate) use service::{Service, ServiceParts};
pub(crate) use websocket::{SocketUpgrade, is_upgrade};

use answer::answer;
use answer::settle::settle_refused;
use attempt::attempt;
use entry::admit::admit;
use entry::inspect::inspect;
use entry::receive::{Received, authenticate, receive, route};
use exchange::RefusedRequest;
use ocm::reverse;
use ocm::status::{self, status};

use crate::values::exchange::client_address::ClientAddress;

/// The field that names a request in the ledger and the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-tollgate-request-id");

/// Handles a request from its head to the head of its response. It keeps the service, and so the
/// policies, that it finds in `live` when it begins. `peer` is who is connected: the client or a
/// proxy. `upgrade` is what the connection becomes if the request asks for a WebSocket or is
/// reversed.
pub(crate) async fn handle(
    live: &LiveService,
    request: Request<Incoming>,
    peer: ClientAddress,
    upgrade: Option<SocketUpgrade>,
) -> Response<AnswerBody> {
    let received = receive(live.now(), request, peer);
    let request_id = received.id.clone();
    let mut response = match journey(live, received, upgrade).await {
        Ok(response) => response,
        Err(refused) => {
            let refusal = settle_refused(refused).await;
            refusal.into_response().map(AnswerBody::whole)
        }
    };
    if let Ok(request_id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    response
}

/// # Errors
/// The gateway answers the request itself.
async fn journey(
    live: &LiveService,
    received: Received,
    upgrade: Option<SocketUpgrade>,
) -> Result<Response<AnswerBody>, RefusedRequest> {
    if reverse::is_requested(&received) {
        let response = reverse::accept(received, upgrade).await?;
        return Ok(response.map(AnswerBody::whole));
    }
    let upgrade = upgrade.filter(|_| websocket::is_requested(&received));
    if upgrade.is_none() && status::is_requested(&received) {
        return Ok(status(live, received).await?);
    }
    let routed = route(received)?;
    let authenticated = authenticate(routed).await?;
    let admitted = admit(authenticated)?;
    if let Some(upgrade) = upgrade {
        return websocket::connect(live, admitted, upgrade).await;
    }
    let inspected = inspect(admitted).await?;
    let answered = attempt(inspected).await?;
    // It is settled where its end is seen: in the body of the response.
    answer(answered).await
}
