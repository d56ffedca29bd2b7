//! Rewrite: policies edit the request's head, then the host attaches the credential.
//!
//! Owns the head that upstream sees: its edits, its secret and its target. Invariant: the secret is
//! attached last, so that no policy sees it.

use http::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri};

use super::select::Selected;
use crate::credentials::{CredentialKind, UpstreamIdentity};
use crate::frames::new_key;
use crate::pipeline::affinity;
use crate::pipeline::entry::body::KeptBody;
use crate::pipeline::exchange::Exchange;
use crate::pipeline::refusal::Refusal;
use crate::pipeline::rewriters::{EditedHead, edit_head};
use crate::upstream::RequestBody;
use crate::values::clock::Timestamp;
use crate::values::exchange::ClientTransport;
use crate::values::headers::hops::HOPS;

/// The key of a WebSocket's handshake, which upstream must answer in `Sec-WebSocket-Accept`.
pub(crate) const SOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

const ACCOUNT_ID: HeaderName = HeaderName::from_static("chatgpt-account-id");

/// A request that upstream may see: edited, and with the credential attached.
pub(crate) struct Rewritten {
    pub(crate) request: Request<RequestBody>,
}

/// A request's head as every attempt starts from it: stripped, and not edited yet.
pub(crate) struct StrippedHead {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// Returns the request with `body`, which is taken only if nothing refuses the request: until then
/// its guard drains it.
///
/// # Errors
/// A policy refuses the request, or failed and its configuration says that the request is refused
/// then.
pub(crate) async fn rewrite(
    exchange: &Exchange,
    selected: &Selected,
    head: StrippedHead,
    body: &mut KeptBody,
) -> Result<Rewritten, Refusal> {
    let StrippedHead {
        method,
        uri,
        mut headers,
    } = head;
    let credential = selected.credential();
    let now = Timestamp::now();
    affinity::remove_foreign_turn_state(exchange, &mut headers, credential, now);
    edit_head(exchange, credential, EditedHead::Request, &mut headers).await?;
    // After rewriting: a policy must never see the upstream secret.
    attach(&selected.identity, &mut headers);
    add_hop(exchange, &selected.identity, &mut headers);
    if exchange.transport() == ClientTransport::WebSocket {
        add_handshake(&mut headers);
    }
    let uri = target(exchange, selected, &uri).ok_or_else(Refusal::unsendable)?;
    let mut request = Request::new(body.begin_send());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(Rewritten { request })
}

fn attach(identity: &UpstreamIdentity, headers: &mut HeaderMap) {
    headers.insert(AUTHORIZATION, identity.authorization().clone());
    if let Some(account) = identity.account_id() {
        headers.insert(ACCOUNT_ID, account.clone());
    }
}

/// Adds this gateway to the hops of a request to another gateway. No other upstream sees them.
fn add_hop(exchange: &Exchange, identity: &UpstreamIdentity, headers: &mut HeaderMap) {
    if identity.kind() == CredentialKind::External
        && let Some(hops) = exchange.hops().continued(&exchange.service().parts().hop)
    {
        headers.insert(HOPS, hops);
    }
}

/// Adds the fields of a WebSocket's handshake (RFC 6455, section 4.1). No extensions are offered.
fn add_handshake(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(&new_key()) {
        headers.insert(SOCKET_KEY, key);
    }
}

/// Returns where the request is sent: with a ChatGPT login to the ChatGPT backend without `/v1`,
/// with an API key to the API with its path, and likewise to another gateway.
fn target(exchange: &Exchange, selected: &Selected, asked: &Uri) -> Option<Uri> {
    let endpoints = exchange.service().endpoints();
    let path = asked.path_and_query()?.as_str();
    let external_base = selected.credential().external_base();
    let (base, prefix, path) = match selected.identity.kind() {
        CredentialKind::OAuth => (&endpoints.chatgpt, "/codex", path.strip_prefix("/v1")?),
        CredentialKind::ApiKey => (&endpoints.api, "", path),
        CredentialKind::External => (external_base.as_ref()?, "", path),
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
