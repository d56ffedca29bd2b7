//! Status: how much of their credentials' capacity a user has left, in the form of sing-box's OCM,
//! once or as a stream of changes.
//!
//! Owns `/ocm/v1/status`. Its sender is authenticated as for any request; it makes no row.

mod capacity;
mod watch;

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, Uri};

use crate::pipeline::answer::AnswerBody;
use crate::pipeline::entry::receive::{Received, authenticate_sender, has_only_misplaced_key};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::live::LiveService;

use capacity::status_line;

const PATH: &str = "/ocm/v1/status";

pub(crate) fn is_requested(received: &Received) -> bool {
    received.path() == PATH
}

/// Returns the status of the user who asks; without users, that of the first credential. With
/// `watch=true` the response continues with a line for each change.
///
/// # Errors
/// The method is not GET, the request presents no token of a user, or its user watches too often.
pub(crate) async fn status(
    live: &LiveService,
    received: Received,
) -> Result<Response<AnswerBody>, Refusal> {
    let service = &received.service;
    if received.head.method != Method::GET {
        return Err(Refusal::get_only());
    }
    if has_only_misplaced_key(&received.head.headers) {
        return Err(Refusal::misplaced_key());
    }
    let proof = authenticate_sender(&received).await?;
    let user = proof.user();
    let body = if asks_to_watch(&received.head.uri) {
        let Some(permit) = service.reserve_status_watch(user.map(Arc::as_ref)) else {
            return Err(Refusal::too_many_status_watches());
        };
        AnswerBody::Lines(watch::start(live.clone(), user, permit))
    } else {
        let line = status_line(service, user.map(Arc::as_ref), received.at).await;
        AnswerBody::whole(line)
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn asks_to_watch(uri: &Uri) -> bool {
    uri.query()
        .is_some_and(|query| query.split('&').any(|field| field == "watch=true"))
}
