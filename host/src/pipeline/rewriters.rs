//! Rewriters: policies edit the head of a request or of a response.
//!
//! Owns the order in which they edit, and what happens when one fails; does not know how an edit is
//! checked or made (`policy` does). Invariant: a failed rewriter changes nothing, and refuses the
//! exchange unless its configuration says `"on_failure": "skip"`.

use http::StatusCode;
use http::header::HeaderMap;

use super::exchange::Exchange;
use super::refusal::Refusal;
use crate::config::OnFailure;
use crate::credentials::Credential;
use crate::policy::PolicyFault;
use crate::values::clock::Timestamp;

/// Whether the head of a request or of a response is edited.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EditedHead {
    Request,
    Response(StatusCode),
}

impl EditedHead {
    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response(_) => "response",
        }
    }
}

/// Has every rewriter edit `headers`, in order.
///
/// # Errors
/// A rewriter refuses the request, or one failed whose configuration says that the exchange is
/// refused then.
pub(crate) async fn edit_head(
    exchange: &Exchange,
    credential: &Credential,
    head: EditedHead,
    headers: &mut HeaderMap,
) -> Result<(), Refusal> {
    let facts = exchange.facts(Timestamp::now(), credential.tag());
    for rewriter in &exchange.service().parts().rewriters {
        let edited = match head {
            EditedHead::Request => rewriter.rewrite_request(&facts, headers).await,
            EditedHead::Response(status) => rewriter
                .rewrite_response(&facts, status, headers)
                .await
                .map(Ok),
        };
        let fault = match edited {
            Ok(Ok(())) => continue,
            Ok(Err(refused)) => return Err(Refusal::by_policy(refused)),
            Err(fault) => fault,
        };
        match rewriter.on_failure() {
            OnFailure::Skip => log_skipped(head, &fault),
            OnFailure::Refuse => {
                tracing::error!(head = head.as_str(), %fault, "rewriter failed, request refused");
                return Err(Refusal::by_fault(&fault));
            }
        }
    }
    Ok(())
}

fn log_skipped(head: EditedHead, fault: &PolicyFault) {
    if fault.should_be_logged() {
        tracing::warn!(head = head.as_str(), %fault, "rewriter failed, edits skipped");
    } else {
        tracing::debug!(head = head.as_str(), %fault, "rewriter failed, edits skipped");
    }
}
