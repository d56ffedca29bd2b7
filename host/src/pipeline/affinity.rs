//! Affinity: which credential a session has its home on, and which one issued a response or a
//! turn's state.
//!
//! Owns every rule about it: how a session is named, when a home is set, recorded and restored, and
//! to whom a turn's state may be sent. The store is `sessions`; which credential a request is sent
//! with is the balancer's choice. Invariant: what one user's requests established is never found by
//! another user's.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use super::exchange::Exchange;
use super::service::Service;
use crate::credentials::Credential;
use crate::ledger::{ResponseIssuer, StoredSession};
use crate::sessions::SessionOwner;
use crate::values::clock::Timestamp;
use crate::values::exchange::SessionHome;
use crate::values::hex::hex;
use crate::values::limits::FIELD_BYTES;

/// The headers that name a session, in the order of precedence. Codex CLI sends `session-id` (0.144
/// and later) or `session_id` (before).
const SESSION_HEADERS: [&str; 5] = [
    "session_id",
    "session-id",
    "x-session-id",
    "conversation_id",
    "thread-id",
];

/// Upstream gives a turn's state with its first response, and Codex sends it with the turn's
/// further requests.
const TURN_STATE: HeaderName = HeaderName::from_static("x-codex-turn-state");

/// Returns the session that a request's headers name: the first header with a usable value counts.
/// If there is none, the body's `prompt_cache_key` names the session (see
/// [`Exchange::set_requested`]).
pub(crate) fn session_in_headers(headers: &HeaderMap) -> Option<String> {
    SESSION_HEADERS
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .map(str::trim)
        .find(|session| !session.is_empty() && session.len() <= FIELD_BYTES)
        .map(str::to_owned)
}

/// Returns the index of the pool's member that the request's session has its home on.
pub(crate) fn home(exchange: &Exchange, now: Timestamp) -> Option<usize> {
    let sessions = exchange.service().sessions();
    let home = sessions.home(exchange.owner(), exchange.session()?, now)?;
    exchange
        .pool()
        .credentials()
        .position(|credential| *credential.shared_tag() == home)
}

/// Makes `credential` the home of the request's session, unless upstream failed: then the session
/// has none there yet.
pub(crate) fn move_home(exchange: &Exchange, credential: &Credential, status: StatusCode) {
    if !status.is_server_error()
        && let Some(session) = exchange.session()
    {
        exchange.service().sessions().set_home(
            exchange.owner(),
            session,
            credential.shared_tag(),
            Timestamp::now(),
        );
    }
}

/// Returns the home of the request's session if the ledger is to record it with the request's row.
pub(crate) fn home_to_record(exchange: &Exchange, now: Timestamp) -> Option<SessionHome> {
    let sessions = exchange.service().sessions();
    let credential = sessions.home_to_record(exchange.owner(), exchange.session()?, now)?;
    Some(SessionHome {
        pool: exchange.pool().tag().to_string(),
        credential: credential.to_string(),
    })
}

/// Returns the name of the credential that issued the response that the request continues.
pub(crate) fn issuer_of_previous(exchange: &Exchange, now: Timestamp) -> Option<Arc<str>> {
    let response_id = exchange.requested().previous_response_id.as_deref()?;
    let sessions = exchange.service().sessions();
    sessions.issuer(exchange.owner(), response_id, now)
}

/// Notes that `credential` issued the response of that id.
pub(crate) fn record_response(
    exchange: &Exchange,
    response_id: &str,
    credential: &Credential,
    now: Timestamp,
) {
    exchange.service().sessions().record_issuer(
        exchange.owner(),
        response_id,
        credential.shared_tag(),
        now,
    );
}

/// Notes that `credential` issued the turn's state in a response's head, if there is one.
pub(crate) fn record_turn_state(exchange: &Exchange, headers: &HeaderMap, credential: &Credential) {
    if let Some(state) = headers.get(TURN_STATE) {
        let key = turn_state_key(state.as_bytes());
        record_response(exchange, &key, credential, Timestamp::now());
    }
}

/// Removes a turn's state from a request's head unless `credential` issued it: it belongs to that
/// account. A credential that is used alone is sent every state.
pub(crate) fn remove_foreign_turn_state(
    exchange: &Exchange,
    headers: &mut HeaderMap,
    credential: &Credential,
    now: Timestamp,
) {
    if exchange.pool().is_single() {
        return;
    }
    let Some(state) = headers.get(TURN_STATE) else {
        return;
    };
    let key = turn_state_key(state.as_bytes());
    let issuer = exchange
        .service()
        .sessions()
        .issuer(exchange.owner(), &key, now);
    if issuer.as_ref() != Some(credential.shared_tag()) {
        headers.remove(TURN_STATE);
    }
}

/// Returns the key of a turn's state, whose length is unbounded. No response id looks like it.
fn turn_state_key(state: &[u8]) -> String {
    hex(&Sha256::digest(state))
}

/// Restores what the ledger recorded of `service`: homes and issuers whose user, pool and
/// credential still exist. Both lists are expected oldest first.
pub(crate) fn restore_affinity(
    service: &Service,
    sessions: &[StoredSession],
    issuers: &[ResponseIssuer],
) {
    for known in sessions
        .iter()
        .filter(|known| known.service == service.tag())
    {
        restore_home(service, known);
    }
    for known in issuers
        .iter()
        .filter(|known| known.service == service.tag())
    {
        restore_issuer(service, known);
    }
}

fn restore_home(service: &Service, known: &StoredSession) {
    let Some(user) = service.users().named(&known.user) else {
        return;
    };
    let Some(pool) = service.pool_tagged(&known.pool) else {
        return;
    };
    let Some(credential) = service.credential_tagged(&known.credential) else {
        return;
    };
    // Of the pool that was recorded, which need not be the user's pool any more.
    let owner = SessionOwner {
        pool: Arc::clone(pool.tag()),
        user: user.map(|user| Arc::clone(&user.name)),
    };
    service.sessions().restore_home(
        &owner,
        &known.session,
        credential.shared_tag(),
        known.used_at,
    );
}

fn restore_issuer(service: &Service, known: &ResponseIssuer) {
    let Some(user) = service.users().named(&known.user) else {
        return;
    };
    let Some(credential) = service.credential_tagged(&known.credential) else {
        return;
    };
    let owner = service.owner(user.as_ref());
    service.sessions().record_issuer(
        &owner,
        &known.response_id,
        credential.shared_tag(),
        known.issued_at,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn todays_and_yesterdays_session_headers_are_read() {
        for name in SESSION_HEADERS {
            let mut headers = HeaderMap::new();
            headers.insert(name, "one".parse().expect("a value"));
            assert_eq!(
                session_in_headers(&headers).as_deref(),
                Some("one"),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unusable_session_header_hides_no_other() {
        let mut headers = HeaderMap::new();
        let long = "x".repeat(FIELD_BYTES + 1);
        headers.insert("session-id", long.parse().expect("a value"));
        assert_eq!(session_in_headers(&headers), None);
        headers.insert("thread-id", "two".parse().expect("a value"));
        assert_eq!(session_in_headers(&headers).as_deref(), Some("two"));
    }
}
