//! Rewrite: policies edit the head, then the host attaches the credential. Never the other way round.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri};

use super::select::Selected;
use crate::config::OnFailure;
use crate::credentials::{Identity, IdentityKind};
use crate::frames::new_key;
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::pipeline::settle::OpenRow;
use crate::sessions::opaque_key;
use crate::upstream::RequestBody;
use crate::values::clock::Timestamp;
use crate::values::exchange::Transport;

/// What upstream must answer in `Sec-WebSocket-Accept`.
pub(crate) const SOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

const ACCOUNT_ID: HeaderName = HeaderName::from_static("chatgpt-account-id");

/// Codex sends back the state of a turn that upstream gave it with the turn's first response.
pub(crate) const TURN_STATE: HeaderName = HeaderName::from_static("x-codex-turn-state");

/// A request that upstream may see: rewritten, and with the credential attached.
pub(crate) struct Rewritten {
    pub(crate) request: Request<RequestBody>,
    /// Whose answer will tell of whom.
    pub(crate) shown: Arc<Identity>,
}

/// A request's head as all attempts start from it: stripped, not yet rewritten.
pub(crate) struct Template {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// # Errors
/// A policy refuses the request, or failed and its configuration says that then the request is refused.
pub(crate) async fn rewrite(
    service: &Service,
    open: &OpenRow,
    selected: &Selected,
    template: Template,
    body: RequestBody,
    now: Timestamp,
) -> Result<Rewritten, Refusal> {
    let Template {
        method,
        uri,
        mut headers,
    } = template;
    let chosen = &service.parts.credentials[selected.credential];
    if let Some(state) = headers.get(TURN_STATE)
        && !open.pool().single
        && service
            .sessions()
            .maker(open.owner(), &opaque_key(state.as_bytes()), now)
            .as_ref()
            != Some(chosen.name())
    {
        // It belongs to the account that issued it.
        headers.remove(TURN_STATE);
    }
    let facts = open.facts(now, chosen.tag());
    for rewriter in &service.parts.rewriters {
        match (
            rewriter.request(&facts, &mut headers).await,
            rewriter.on_failure(),
        ) {
            (Ok(Ok(())), _) => {}
            (Ok(Err(refused)), _) => return Err(Refusal::by_policy(refused)),
            (Err(fault), OnFailure::Skip) if fault.is_news() => {
                tracing::warn!(%fault, "its edits are left out")
            }
            (Err(fault), OnFailure::Skip) => tracing::debug!(%fault, "its edits are left out"),
            (Err(fault), OnFailure::Refuse) => {
                tracing::error!(%fault, "the request is refused");
                return Err(Refusal::by_fault(&fault));
            }
        }
    }
    // After rewriting: a policy must never see the upstream secret.
    attach(&selected.identity, &mut headers);
    if open.transport() == Transport::WebSocket {
        ask_for_socket(&mut headers);
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target(service, selected, &uri).ok_or_else(Refusal::unsendable)?;
    *request.headers_mut() = headers;
    Ok(Rewritten {
        request,
        shown: Arc::clone(&selected.identity),
    })
}

fn attach(identity: &Identity, headers: &mut HeaderMap) {
    headers.insert(AUTHORIZATION, identity.authorization().clone());
    if let Some(account) = identity.account_id() {
        headers.insert(ACCOUNT_ID, account.clone());
    }
}

/// The fields of a WebSocket's handshake (RFC 6455, section 4.1). Extensions are offered to nobody.
fn ask_for_socket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(&new_key()) {
        headers.insert(SOCKET_KEY, key);
    }
}

/// Where the request goes: OAuth to the ChatGPT backend without `/v1`, an API key to the API with its path, and so to
/// another gateway.
fn target(service: &Service, selected: &Selected, asked: &Uri) -> Option<Uri> {
    let path = asked.path_and_query()?.as_str();
    let (base, prefix, path) = match selected.identity.kind {
        IdentityKind::OAuth => (
            &service.endpoints.chatgpt,
            "/codex",
            path.strip_prefix("/v1")?,
        ),
        IdentityKind::ApiKey => (&service.endpoints.api, "", path),
        IdentityKind::External => (
            service.parts.credentials[selected.credential].gateway()?,
            "",
            path,
        ),
    };
    let folder = base.path().trim_end_matches('/');
    let path: PathAndQuery = format!("{folder}{prefix}{path}").parse().ok()?;
    let scheme: Scheme = base.scheme()?.clone();
    let authority: Authority = base.authority()?.clone();
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .ok()
}
