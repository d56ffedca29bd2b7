//! Reverse connections of other gateways: the upgrade at `/ocm/v1/reverse`, and how long the
//! connection serves its credential.
//!
//! Owns the checks of the upgrade, which are those of sing-box and in its order. Does not know how
//! requests are sent over the connection. Invariant: a credential has at most one; a new one
//! replaces the one before.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use tokio::sync::watch;

use crate::authenticate::AuthError;
use crate::credentials::Credential;
use crate::pipeline::entry::receive::{Received, has_misplaced_key, refuse_sender};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::websocket::SocketUpgrade;
use crate::reverse::{
    MuxEnd, MuxLimits, MuxSession, MuxSide, REVERSE_PATH, REVERSE_PROTOCOL, ReverseSlot, multiplex,
};
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::headers::bearer_token;
use crate::values::phase::GatewayPhase;
use crate::values::secret::SecretString;

pub(crate) fn is_requested(received: &Received) -> bool {
    received.path() == REVERSE_PATH
}

/// Accepts the connection of another gateway, whatever the method of its request.
///
/// # Errors
/// It is no upgrade to a reverse connection, or its token is that of no external credential.
pub(crate) async fn accept(
    received: Received,
    upgrade: Option<SocketUpgrade>,
) -> Result<Response<Bytes>, Refusal> {
    let headers = &received.head.headers;
    let logged = |refusal: Refusal| {
        received.log(&refusal);
        refusal
    };
    if headers
        .get(UPGRADE)
        .is_none_or(|protocol| protocol != REVERSE_PROTOCOL)
    {
        return Err(logged(Refusal::invalid("missing Upgrade header")));
    }
    if has_misplaced_key(headers) {
        return Err(logged(Refusal::misplaced_key()));
    }
    let (credential, slot) = match authenticated(&received) {
        Ok(found) => found,
        Err(refusal) => return Err(refuse_sender(&received, refusal).await),
    };
    let Some(upgrade) = upgrade else {
        return Err(logged(Refusal::irreversible()));
    };
    let service = &received.service;
    let connection = ReverseConnection {
        credential: Arc::downgrade(credential),
        slot: Arc::clone(slot),
        tag: Arc::clone(credential.shared_tag()),
        peer: received.client,
        handshake_timeout: service.limits().handshake_timeout,
        limits: MuxLimits::of(service.limits()),
        phases: service.parts().phases.clone(),
    };
    tokio::spawn(connection.run(upgrade));
    Ok(accepted())
}

/// Returns the credential that the sender may connect for: the first one with its token.
fn authenticated(received: &Received) -> Result<(&Arc<Credential>, &Arc<ReverseSlot>), Refusal> {
    let token = token(&received.head.headers).map_err(Refusal::unauthenticated)?;
    let credentials = received.service.credentials();
    let credential = credentials
        .iter()
        .find(|credential| credential.is_reversed_by(&token));
    credential
        .and_then(|credential| Some((credential, credential.reverse_slot()?)))
        .ok_or_else(Refusal::unknown_reverse_token)
}

fn token(headers: &HeaderMap) -> Result<SecretString, AuthError> {
    let value = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
    let token = bearer_token(value).ok_or(AuthError::Format)?;
    Ok(SecretString::new(token.to_owned()))
}

fn accepted() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(REVERSE_PROTOCOL));
    response
}

/// A connection of another gateway, for a credential.
struct ReverseConnection {
    /// Weak: a credential that the configuration loses closes its connection.
    credential: Weak<Credential>,
    slot: Arc<ReverseSlot>,
    tag: Arc<str>,
    peer: ClientAddress,
    handshake_timeout: Duration,
    limits: MuxLimits,
    phases: watch::Receiver<GatewayPhase>,
}

impl ReverseConnection {
    /// Serves the credential until the connection ends.
    async fn run(mut self, upgrade: SocketUpgrade) {
        let Some((io, read, permit)) = upgrade.connection(self.handshake_timeout).await else {
            return;
        };
        let (session, driver) = multiplex(io, read, MuxSide::Opener, self.limits);
        let mut driver = pin!(driver);
        let (credential, peer) = (Arc::clone(&self.tag), self.peer);
        if self.slot.install(session.clone()).is_some() {
            tracing::warn!(
                %credential,
                %peer,
                "reverse connection replaced by another one with the same token"
            );
        }
        tracing::info!(%credential, %peer, "reverse connection established");
        self.publish();
        let early_end = tokio::select! {
            end = driver.as_mut() => Some(end),
            () = session.until_closing() => None,
            () = leaving(&mut self.phases, &session) => None,
        };
        // From here on no request begins over it. Those that have begun continue.
        session.retire();
        if self.slot.remove(&session) {
            self.publish();
        }
        let end = match early_end {
            Some(end) => end,
            None => self.finish(&session, driver).await,
        };
        tracing::info!(%credential, %peer, %end, "reverse connection ended");
        drop(permit);
    }

    /// Waits for the streams that have begun, or for the end of the gateway.
    async fn finish(
        &mut self,
        session: &MuxSession,
        mut driver: std::pin::Pin<&mut impl Future<Output = MuxEnd>>,
    ) -> MuxEnd {
        tokio::select! {
            end = driver.as_mut() => return end,
            () = session.until_idle() => {}
            () = stopping(&mut self.phases) => {}
        }
        session.close();
        driver.await
    }

    /// Lets the credential look at its connection again.
    fn publish(&self) {
        if let Some(credential) = self.credential.upgrade() {
            credential.reverse_changed(Timestamp::now());
        }
    }
}

/// Waits until the gateway begins no more requests. Once another process succeeds this one, the
/// other gateway learns that it is to connect again. The requests that this process accepted before
/// still begin over `session`.
async fn leaving(phases: &mut watch::Receiver<GatewayPhase>, session: &MuxSession) {
    // Errors mean that the gateway was dropped.
    let _ = phases
        .wait_for(|phase| *phase != GatewayPhase::Running)
        .await;
    session.announce_end();
    let _ = phases
        .wait_for(|phase| matches!(phase, GatewayPhase::Draining | GatewayPhase::Stopping))
        .await;
}

/// Waits until the gateway aborts its requests. It serves what is in flight until then.
async fn stopping(phases: &mut watch::Receiver<GatewayPhase>) {
    // An error means that the gateway was dropped.
    let _ = phases
        .wait_for(|phase| *phase == GatewayPhase::Stopping)
        .await;
}
