//! An exchange: what is known of a request from its admission to its row in the ledger.
//!
//! Owns the service snapshot that the request began with, the room that is reserved for its row,
//! and the history of its attempts; does not know how a row is priced or written (`settle` does).
//! Invariant: it makes at most one row, because its room is taken once. An exchange that is dropped
//! is settled as that of a client that left.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use uuid::Uuid;

use super::refusal::Refusal;
use super::service::{CredentialPool, Service};
use crate::authenticate::User;
use crate::credentials::{Credential, InFlightGuard};
use crate::ledger::RowReservation;
use crate::meter::{RequestFields, ResponseCreate};
use crate::policy::{CallPurpose, RequestFacts};
use crate::sessions::SessionOwner;
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::exchange::{
    AttemptOutcome, ClientTransport, ExchangeEnd, LedgerRow, MeteredResponse, SessionHome,
    UpstreamAttempt,
};
use crate::values::headers::hops::HopTrail;

/// What is known of a request when it is admitted.
#[derive(Debug, Clone)]
pub(crate) struct AdmittedRequest {
    /// Its id in the ledger and the log.
    pub(crate) id: String,
    /// The seed of every random choice that is made for it.
    pub(crate) seed: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) clock: Instant,
    /// Where it comes from.
    pub(crate) client: ClientAddress,
    /// `None` if the service has no users.
    pub(crate) user: Option<Arc<User>>,
    pub(crate) path: String,
    pub(crate) method: Method,
    /// The session that its headers name.
    pub(crate) session: Option<String>,
    /// The gateways that it passed before this one.
    pub(crate) hops: HopTrail,
}

/// The credential of the latest attempt, which counts as in flight on it.
struct UsedCredential {
    credential: Arc<Credential>,
    _in_flight: InFlightGuard,
}

/// A request that was admitted, until its row is written.
pub(crate) struct Exchange {
    service: Arc<Service>,
    request: AdmittedRequest,
    /// The index of the user's pool in `service`.
    pool: usize,
    owner: SessionOwner,
    sequence: u64,
    requested: RequestFields,
    transport: ClientTransport,
    /// The client only warms its connection: nothing is to be generated.
    prewarm: bool,
    attempts: Vec<UpstreamAttempt>,
    used: Option<UsedCredential>,
    status: Option<StatusCode>,
    ttfb_ms: Option<u64>,
    /// `None` once the row is made, or if there is to be none.
    room: Option<RowReservation>,
}

/// A request that the gateway answers itself, and its exchange, which is still to be settled, if it
/// was admitted.
pub(crate) struct RefusedRequest {
    pub(crate) refusal: Refusal,
    pub(crate) exchange: Option<Box<Exchange>>,
}

impl From<Refusal> for RefusedRequest {
    /// The refusal of a request that was not admitted, or whose exchange is settled.
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            exchange: None,
        }
    }
}

impl Exchange {
    /// Opens the exchange of a request. It is boxed because it passes through every stage.
    pub(crate) fn open(
        service: Arc<Service>,
        room: RowReservation,
        request: AdmittedRequest,
    ) -> Box<Self> {
        Box::new(Self {
            sequence: service.next_request(),
            pool: service.pool_index(request.user.as_deref()),
            owner: service.owner(request.user.as_ref()),
            service,
            request,
            requested: RequestFields::default(),
            transport: ClientTransport::Http,
            prewarm: false,
            attempts: Vec::new(),
            used: None,
            status: None,
            ttfb_ms: None,
            room: Some(room),
        })
    }

    /// Ends the exchange with a response that the gateway makes itself.
    pub(crate) fn refuse(self: Box<Self>, refusal: Refusal) -> RefusedRequest {
        RefusedRequest {
            refusal,
            exchange: Some(self),
        }
    }

    /// Returns the service that the request began with.
    pub(crate) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(crate) fn pool(&self) -> &CredentialPool {
        self.service.pool(self.pool)
    }

    pub(crate) fn user(&self) -> Option<&User> {
        self.request.user.as_deref()
    }

    /// Returns who the request's session, and the responses it gets, belong to.
    pub(crate) fn owner(&self) -> &SessionOwner {
        &self.owner
    }

    pub(crate) fn session(&self) -> Option<&str> {
        self.request.session.as_deref()
    }

    /// Returns the gateways that the request passed before this one.
    pub(crate) fn hops(&self) -> &HopTrail {
        &self.request.hops
    }

    /// Returns what the body asks for, as far as it was read.
    pub(crate) fn requested(&self) -> &RequestFields {
        &self.requested
    }

    pub(crate) fn transport(&self) -> ClientTransport {
        self.transport
    }

    pub(crate) fn set_transport(&mut self, transport: ClientTransport) {
        self.transport = transport;
    }

    /// Takes what the body asks for. Its cache key is the session's key if no header named the
    /// session.
    pub(crate) fn set_requested(&mut self, requested: RequestFields) {
        if self.request.session.is_none() {
            self.request.session.clone_from(&requested.prompt_cache_key);
        }
        self.requested = requested;
    }

    /// Returns whether the client asks for the head of a response alone.
    pub(crate) fn is_head(&self) -> bool {
        self.request.method == Method::HEAD
    }

    pub(crate) fn attempts(&self) -> &[UpstreamAttempt] {
        &self.attempts
    }

    /// Returns the request as policies may know it.
    pub(crate) fn facts<'a>(&'a self, now: Timestamp, credential: &'a str) -> RequestFacts<'a> {
        // The attempt that is in flight is not one before this one.
        let attempts_before = self.attempts.len() - usize::from(self.used.is_some());
        RequestFacts {
            request_id: &self.request.id,
            user: self.request.user.as_ref().map_or("", |user| &user.name),
            session: self.session().unwrap_or_default(),
            model: self.requested.model.as_deref().unwrap_or_default(),
            service_tier: self.requested.service_tier.as_deref().unwrap_or_default(),
            path: &self.request.path,
            method: self.request.method.as_str(),
            service: self.service.tag(),
            credential,
            transport: self.transport,
            attempt: u32::try_from(attempts_before).unwrap_or(u32::MAX),
            now,
            seed: self.request.seed,
            sequence: self.sequence,
            purpose: CallPurpose::Request,
        }
    }

    /// Notes that an attempt with `credential` begins.
    pub(crate) fn begin_attempt(&mut self, credential: &Arc<Credential>) {
        self.used = Some(UsedCredential {
            credential: Arc::clone(credential),
            _in_flight: credential.track_request(),
        });
        self.attempts.push(UpstreamAttempt {
            credential: credential.tag().to_owned(),
            outcome: AttemptOutcome::Abandoned,
        });
    }

    /// Notes the outcome of the latest attempt.
    pub(crate) fn end_attempt(&mut self, outcome: AttemptOutcome) {
        let number = self.attempts.len();
        let Some(attempt) = self.attempts.last_mut() else {
            return;
        };
        attempt.outcome = outcome;
        tracing::debug!(
            request_id = self.request.id,
            credential = attempt.credential,
            attempt = number,
            outcome = outcome.name(),
            "attempt ended"
        );
    }

    /// Notes the status that the client gets, and that the response's head is about to be sent.
    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.ttfb_ms = Some(self.elapsed_ms());
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.request.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The exchange of a WebSocket: that of its handshake, from which those of its responses begin.
impl Exchange {
    /// Drops the reservation for a row: a handshake that upstream accepted makes none, the
    /// responses over its socket do. The first of them carries the attempts that failed before the
    /// handshake was accepted.
    pub(crate) fn become_socket(&mut self) {
        self.room = None;
        self.used = None;
        self.attempts.pop();
    }

    /// Continues in `service`, which replaced the socket's service. Returns
    /// whether it can: its user, its pool and `credential` must still be there.
    #[must_use]
    pub(crate) fn move_to(&mut self, service: &Arc<Service>, credential: &Arc<Credential>) -> bool {
        let user = match &self.request.user {
            None if service.users().is_empty() => None,
            None => return false,
            Some(user) => match service.users().with_id(user.id) {
                Some(user) => Some(Arc::clone(user)),
                None => return false,
            },
        };
        // The credential itself, not another one of its name: the socket belongs to its account.
        if service.owner(user.as_ref()) != self.owner
            || !service.pool_of(user.as_deref()).contains(credential)
        {
            return false;
        }
        self.pool = service.pool_index(user.as_deref());
        self.request.user = user;
        self.service = Arc::clone(service);
        true
    }

    /// Opens the exchange of a response that the client asks for over this socket, which uses
    /// `credential`.
    pub(crate) fn open_turn(
        &mut self,
        room: RowReservation,
        credential: &Arc<Credential>,
        create: ResponseCreate,
    ) -> Box<Self> {
        let id = Uuid::now_v7();
        let request = AdmittedRequest {
            id: id.to_string(),
            seed: id.as_u128() as u64,
            started_at: Timestamp::now(),
            clock: Instant::now(),
            ..self.request.clone()
        };
        let mut turn = Self::open(Arc::clone(&self.service), room, request);
        turn.transport = self.transport;
        turn.prewarm = create.prewarm;
        turn.set_requested(create.fields);
        turn.attempts = std::mem::take(&mut self.attempts);
        turn.begin_attempt(credential);
        turn.end_attempt(AttemptOutcome::Status(
            StatusCode::SWITCHING_PROTOCOLS.as_u16(),
        ));
        turn
    }

    /// Notes that upstream begins to answer over the socket.
    pub(crate) fn begin_answer(&mut self) {
        if self.status.is_none() {
            self.set_status(StatusCode::SWITCHING_PROTOCOLS);
        }
    }

    /// Notes that upstream reports `status` as the failure of this response.
    pub(crate) fn fail_with(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.end_attempt(AttemptOutcome::Status(status.as_u16()));
    }
}

/// The end of an exchange, for `settle`.
impl Exchange {
    /// Returns the room that is reserved for the row, once.
    pub(crate) fn release_reservation(&mut self) -> Option<RowReservation> {
        self.room.take()
    }

    /// Ends the count of this request as in flight, and returns the credential that answered or was
    /// tried last.
    pub(crate) fn release_credential(&mut self) -> Option<Arc<Credential>> {
        self.used.take().map(|used| used.credential)
    }

    /// Makes the row, which has no price yet.
    pub(crate) fn row(
        &self,
        end: ExchangeEnd,
        metered: MeteredResponse,
        credential: Option<&Arc<Credential>>,
        home: Option<SessionHome>,
        now: Timestamp,
    ) -> LedgerRow {
        let model = metered.model.or_else(|| self.requested.model.clone());
        let service_tier = metered
            .service_tier
            .or_else(|| self.requested.service_tier.clone());
        LedgerRow {
            request_id: self.request.id.clone(),
            started_at: self.request.started_at,
            finished_at: now,
            client: self.request.client,
            user: self
                .user()
                .filter(|user| !user.name.is_empty())
                .map(|user| user.name.to_string()),
            credential: credential.map(|credential| credential.tag().to_owned()),
            service: self.service.tag().to_owned(),
            model,
            requested_model: self.requested.model.clone(),
            service_tier,
            transport: self.transport,
            prewarm: self.prewarm,
            previous_response_id: self.requested.previous_response_id.clone(),
            method: self.request.method.clone(),
            path: self.request.path.clone(),
            status: self.status.map_or(0, |status| status.as_u16()),
            end,
            attempts: self.attempts.clone(),
            session: self.request.session.clone(),
            home,
            response_id: metered.response_id,
            counts: metered.counts,
            priced_by: None,
            cost: None,
            week_start_unix: credential.and_then(|credential| credential.week_start_unix(now)),
            ttfb_ms: self.ttfb_ms,
            duration_ms: self.elapsed_ms(),
        }
    }
}
