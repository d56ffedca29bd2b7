//! Admit: room in the ledger is reserved, or the request is refused. From here on it makes exactly one row.

use std::sync::Arc;

use http::request::Parts;

use super::receive::Authenticated;
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::pipeline::settle::{OpenRow, Opening};
use crate::sessions::key_in_headers;

/// A request that will be recorded, whatever becomes of it.
pub(crate) struct Admitted {
    pub(crate) open: Box<OpenRow>,
    pub(crate) head: Parts,
}

/// # Errors
/// There is no room.
pub(crate) fn admit(
    service: &Arc<Service>,
    authenticated: Authenticated,
) -> Result<Admitted, Refusal> {
    let (received, user) = authenticated.into_parts();
    let room = service.parts.ledger.reserve().map_err(|reason| {
        let refusal = Refusal::no_room(reason);
        refusal.log(service.tag(), &received.id, received.path());
        refusal
    })?;
    let (pool, owner) = service.owner(user.as_ref());
    let session = key_in_headers(&received.head.headers);
    let path = received.path().to_owned();
    let method = received.head.method.clone();
    let opening = Opening {
        id: received.id,
        seed: received.seed,
        started_at: received.at,
        clock: received.clock,
        user,
        pool,
        owner,
        path,
        method,
        session,
    };
    let open = OpenRow::new(Arc::clone(service), room, opening);
    Ok(Admitted {
        open,
        head: received.head,
    })
}
