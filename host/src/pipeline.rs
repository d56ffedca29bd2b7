//! A request's journey, one line a stage.
//!
//! Owns the order of the stages; each stage is a module of its name. Invariant: a stage takes what only the stage
//! before can make, so none can be left out.

mod answer;
mod attempt;
mod entry;
mod refusal;
mod service;
mod settle;
mod status;
mod websocket;

use std::net::IpAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

pub use answer::AnswerBody;
pub use service::{Live, Parts, Service};
pub use websocket::{Wanted, is_upgrade};

use entry::admit::Admitted;
use entry::receive::Received;
use refusal::Refusal;

/// Serves a request, whatever it is and whatever happens. It keeps the service, and so the policies, that it finds when it
/// begins.
pub async fn handle(
    live: &Live,
    request: Request<Incoming>,
    peer: IpAddr,
    websocket: Option<Wanted>,
) -> Response<AnswerBody> {
    let (head, body) = request.into_parts();
    let service = &live.now();
    let received = Received::new(head, peer);
    let id = received.id.clone();
    let journey = async {
        match websocket.filter(|_| websocket::is_asked(&received)) {
            Some(wanted) => {
                websocket::serve(service, live, enter(service, received).await?, wanted).await
            }
            None => journey(service, received, body).await,
        }
    };
    let mut response = match journey.await {
        Ok(response) => response,
        Err(refusal) => refusal.answer(),
    };
    refusal::name_request(&mut response, &id);
    response
}

async fn journey(
    service: &Arc<Service>,
    received: Received,
    body: Incoming,
) -> Result<Response<AnswerBody>, Refusal> {
    if status::is_asked(&received) {
        return status::answer(service, &received).await;
    }
    let admitted = match enter(service, received).await {
        Ok(admitted) => admitted,
        Err(refusal) => {
            entry::receive::discard(body, service.limits());
            return Err(refusal);
        }
    };
    let inspected = entry::inspect::inspect(service, admitted, body).await?;
    let (answered, open) = attempt::send(service, inspected).await?;
    answer::answer(service, answered, open).await
}

/// The stages at the door: they look at the head alone.
async fn enter(service: &Arc<Service>, received: Received) -> Result<Admitted, Refusal> {
    let routed = entry::receive::route(service, received)?;
    let authenticated = entry::receive::authenticate(service, routed).await?;
    entry::admit::admit(service, authenticated)
}
