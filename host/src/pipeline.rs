//! A request's journey, one line a stage.
//!
//! Owns the order of the stages; each stage is a module of its name. Invariant: a stage takes what only the stage
//! before can make, so none can be left out.

mod admit;
mod answer;
mod failover;
mod forward;
mod inspect;
mod receive;
mod refusal;
mod rewrite;
mod select;
mod service;
mod settle;
mod status;

use std::net::IpAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

pub use answer::AnswerBody;
pub use refusal::Refusal;
pub use service::{Parts, Service};

use receive::Received;

/// Serves a request, whatever it is and whatever happens.
pub async fn handle(service: &Arc<Service>, request: Request<Incoming>, peer: IpAddr) -> Response<AnswerBody> {
    let received = Received::new(request, peer);
    let id = received.id.clone();
    let mut response = match journey(service, received).await {
        Ok(response) => response,
        Err(refusal) => refusal.answer(),
    };
    refusal::name_request(&mut response, &id);
    response
}

async fn journey(service: &Arc<Service>, received: Received) -> Result<Response<AnswerBody>, Refusal> {
    if status::is_asked(&received) {
        return status::answer(service, &received).await;
    }
    let routed = receive::route(service, received)?;
    let authenticated = receive::authenticate(service, routed).await?;
    let admitted = admit::admit(service, authenticated)?;
    let inspected = inspect::inspect(service, admitted).await?;
    let (sent, open) = failover::send(service, inspected).await?;
    answer::answer(service, sent, open).await
}
