//! Settle: an exchange's end, told once, becomes its row: metered, priced, logged and written.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use tokio::time::timeout;
use uuid::Uuid;

use super::refusal::Refusal;
use super::service::{Pool, Service};
use crate::authenticate::User;
use crate::credentials::{Credential, InFlight};
use crate::ledger::{Commit, Room};
use crate::meter::{Asked, Create};
use crate::policy::Facts;
use crate::sessions::Owner;
use crate::values::clock::Millis;
use crate::values::exchange::{Attempt, End, Home, Metered, Outcome, Row, Transport};
use crate::values::money::Cost;

/// What is known of a request when its row is opened.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) id: String,
    pub(super) seed: u64,
    pub(super) started_at: Millis,
    pub(super) clock: Instant,
    pub(super) user: Option<Arc<User>>,
    pub(super) owner: Owner,
    pub(super) path: String,
    pub(super) method: Method,
    pub(super) session: Option<String>,
}

/// A row that is being filled. It is written once: when the exchange ends, or when this is dropped, which is how a
/// client that leaves shows.
pub(super) struct OpenRow {
    service: Arc<Service>,
    opening: Opening,
    sequence: u64,
    asked: Asked,
    transport: Transport,
    /// Nothing is to be generated: the client warms its connection.
    prewarm: bool,
    attempts: Vec<Attempt>,
    /// The credential that is tried, or answered.
    credential: Option<(usize, InFlight)>,
    status: Option<StatusCode>,
    ttfb_ms: Option<u64>,
    /// None once the row is written.
    room: Option<Room>,
}

impl OpenRow {
    /// Boxed: it goes through every stage.
    pub(super) fn new(service: Arc<Service>, room: Room, opening: Opening) -> Box<Self> {
        Box::new(Self {
            sequence: service.next_request(),
            service,
            opening,
            asked: Asked::default(),
            transport: Transport::Http,
            prewarm: false,
            attempts: Vec::new(),
            credential: None,
            status: None,
            ttfb_ms: None,
            room: Some(room),
        })
    }

    /// How the client speaks.
    pub(super) fn goes_by(&mut self, transport: Transport) {
        self.transport = transport;
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// A handshake that was taken is no row: the responses over its socket are.
    pub(super) fn becomes_socket(&mut self) {
        self.room = None;
        self.credential = None;
        self.attempts.clear();
    }

    /// A response that is asked for over this socket, on that credential.
    pub(super) fn next_turn(&self, room: Room, credential: usize, create: Create) -> Box<Self> {
        let id = Uuid::now_v7();
        let opening = Opening {
            id: id.to_string(),
            seed: id.as_u128() as u64,
            started_at: Millis::now(),
            clock: Instant::now(),
            ..self.opening.clone()
        };
        let mut turn = Self::new(Arc::clone(&self.service), room, opening);
        turn.goes_by(self.transport);
        turn.prewarm = create.prewarm;
        turn.asks(create.asked);
        turn.begins_attempt(credential);
        turn.ends_attempt(Outcome::Status(StatusCode::SWITCHING_PROTOCOLS.as_u16()));
        turn
    }

    /// Upstream begins to answer over the socket.
    pub(super) fn begins_to_answer(&mut self) {
        if self.status.is_none() {
            self.answered(StatusCode::SWITCHING_PROTOCOLS);
        }
    }

    /// Upstream answers over the socket that it failed.
    pub(super) fn fails_with(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// What the body asks for. Its cache key names the session where no header did.
    pub(super) fn asks(&mut self, asked: Asked) {
        if self.opening.session.is_none() {
            self.opening.session.clone_from(&asked.prompt_cache_key);
        }
        self.asked = asked;
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.service.pools[self.opening.owner.pool]
    }

    pub(super) fn user(&self) -> Option<&User> {
        self.opening.user.as_deref()
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.opening.owner
    }

    pub(super) fn session(&self) -> Option<&str> {
        self.opening.session.as_deref()
    }

    /// An attempt with that credential begins.
    pub(super) fn begins_attempt(&mut self, index: usize) {
        let credential = &self.service.parts.credentials[index];
        self.credential = Some((index, credential.begin()));
        self.attempts.push(Attempt { credential: credential.tag().to_owned(), outcome: Outcome::Abandoned });
    }

    /// What came of the attempt under way.
    pub(super) fn ends_attempt(&mut self, outcome: Outcome) {
        let number = self.attempts.len();
        let Some(attempt) = self.attempts.last_mut() else { return };
        attempt.outcome = outcome;
        let (request_id, credential) = (&self.opening.id, &attempt.credential);
        tracing::debug!(request_id, credential, attempt = number, outcome = outcome.name(), "attempt");
    }

    /// The response's head is on its way to the client.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.ttfb_ms = Some(self.elapsed_ms());
    }

    /// Whether the request asks for a head alone.
    pub(super) fn is_head(&self) -> bool {
        self.opening.method == Method::HEAD
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts.len() as u32
    }

    /// The request as policies may know it.
    pub(super) fn facts<'a>(&'a self, now: Millis, credential: &'a str) -> Facts<'a> {
        Facts {
            user: self.opening.user.as_ref().map_or("", |user| &user.name),
            session: self.session().unwrap_or_default(),
            model: self.asked.model.as_deref().unwrap_or_default(),
            service_tier: self.asked.service_tier.as_deref().unwrap_or_default(),
            path: &self.opening.path,
            method: self.opening.method.as_str(),
            service: self.service.tag(),
            credential,
            transport: self.transport,
            attempt: self.attempts().saturating_sub(u32::from(self.credential.is_some())),
            now,
            seed: self.opening.seed,
            sequence: self.sequence,
        }
    }

    /// The exchange is over. Answers the row's commit, for whoever must not go on before it.
    pub(super) fn close(&mut self, end: End, metered: Metered) -> Option<Commit> {
        let room = self.room.take()?;
        let credential = self.credential.take();
        let row = self.row(end, metered, credential.as_ref().map(|(index, _)| *index));
        log(&row);
        Some(self.service.parts.ledger.write(room, row))
    }

    /// The exchange is over with an answer of the gateway's own: waits for the row, then answers.
    pub(super) async fn refuse(self: Box<Self>, refusal: Refusal) -> Refusal {
        self.refuse_as(End::Failed, refusal).await
    }

    /// The same, where it ended in another way.
    pub(super) async fn refuse_as(mut self: Box<Self>, end: End, refusal: Refusal) -> Refusal {
        // Whatever upstream answered: this is what the client gets.
        self.answered(refusal.status());
        let Some(commit) = self.close(end, Metered::default()) else { return refusal };
        match timeout(self.service.parts.limits.commit_timeout, commit).await {
            Ok(true) => refusal,
            Ok(false) | Err(_) => Refusal::not_recorded(),
        }
    }

    fn row(&self, end: End, metered: Metered, credential: Option<usize>) -> Row {
        let now = Millis::now();
        let credentials = &self.service.parts.credentials;
        let credential: Option<&Arc<Credential>> = credential.map(|index| &credentials[index]);
        if let (Some(id), Some(credential)) = (&metered.response_id, credential) {
            let index = credentials.iter().position(|other| Arc::ptr_eq(other, credential));
            if let Some(index) = index {
                self.service.sessions.made(&self.opening.owner, id, index, now);
            }
        }
        let model = metered.model.clone().or_else(|| self.asked.model.clone());
        let service_tier = metered.service_tier.clone().or_else(|| self.asked.service_tier.clone());
        let home = self.home(now);
        let cost = self.cost(&metered, model.as_deref(), service_tier.as_deref(), credential.map(|found| found.tag()));
        let stamp = self.service.parts.pricer.stamp();
        Row {
            request_id: self.opening.id.clone(),
            started_at: self.opening.started_at,
            finished_at: now,
            user: self.opening.user.as_ref().map(|user| user.name.clone()),
            credential: credential.map(|credential| credential.tag().to_owned()),
            service: self.service.tag().to_owned(),
            model,
            service_tier,
            transport: self.transport.as_str(),
            prewarm: self.prewarm,
            previous_response_id: self.asked.previous_response_id.clone(),
            path: self.opening.path.clone(),
            status: self.status.map_or(0, |status| status.as_u16()),
            end,
            attempts: self.attempts.clone(),
            session: self.opening.session.clone(),
            home,
            response_id: metered.response_id,
            counts: metered.counts,
            priced_by: cost.is_some().then(|| format!("{} {} sha256:{}", stamp.name, stamp.version, stamp.digest)),
            cost,
            week_start_unix: credential.and_then(|credential| credential.week_start_unix(now)),
            ttfb_ms: self.ttfb_ms,
            duration_ms: self.elapsed_ms(),
        }
    }

    /// Where the session lives, where the ledger is to note that.
    fn home(&self, now: Millis) -> Option<Home> {
        let credential = self.service.sessions.to_note(&self.opening.owner, self.session()?, now)?;
        let credential = self.service.parts.credentials[credential].tag().to_owned();
        Some(Home { pool: self.pool().tag.clone(), credential })
    }

    /// Whether upstream may have done work for the request, whatever became of its answer.
    fn reached_upstream(&self) -> bool {
        self.attempts.iter().any(|attempt| match attempt.outcome {
            // Over a socket, every turn of it.
            Outcome::Status(status) => status == 101 || (200..300).contains(&status),
            Outcome::Abandoned | Outcome::TimedOut | Outcome::Broken | Outcome::Withdrawn => true,
            Outcome::Unreachable => false,
        })
    }

    /// What the response cost. None where it can have cost nothing: upstream refused it, or it was no turn of a model.
    fn cost(
        &self,
        metered: &Metered,
        model: Option<&str>,
        tier: Option<&str>,
        credential: Option<&str>,
    ) -> Option<Cost> {
        let Some(counts) = &metered.counts else {
            let is_turn = model.is_some() || metered.response_id.is_some() || metered.unknown.is_some();
            let used = is_turn && self.reached_upstream();
            let reason = metered.unknown.unwrap_or("upstream told no usage");
            return used.then(|| Cost::Unpriced { reason: reason.to_owned() });
        };
        let facts = Facts {
            model: model.unwrap_or_default(),
            service_tier: tier.unwrap_or_default(),
            credential: credential.unwrap_or_default(),
            ..self.facts(Millis::now(), "")
        };
        let priced = self.service.parts.pricer.price(&facts, counts).unwrap_or_else(|fault| {
            tracing::warn!(request_id = self.opening.id, %fault, "left unpriced");
            Cost::Unpriced { reason: fault.to_string() }
        });
        Some(priced)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.opening.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for OpenRow {
    fn drop(&mut self) {
        // Nobody waits for this commit: the client is gone.
        drop(self.close(End::ClientGone, Metered::default()));
    }
}

/// One event a request, at its end.
fn log(row: &Row) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let counts = row.counts.unwrap_or_default();
    let (cost_nanousd, unpriced_reason) = match &row.cost {
        Some(Cost::Priced { amount, context_window }) => (Some((amount.0, *context_window)), None),
        Some(Cost::Unpriced { reason }) => (None, Some(reason.as_str())),
        None => (None, None),
    };
    let attempts: Vec<String> =
        row.attempts.iter().map(|attempt| format!("{}={}", attempt.credential, attempt.outcome.name())).collect();
    let (cost_nanousd, context_window) = (cost_nanousd.map(|(amount, _)| amount), cost_nanousd.map(|(_, window)| window));
    tracing::info!(
        request_id = row.request_id,
        started_at = row.started_at.0,
        finished_at = row.finished_at.0,
        service = row.service,
        user = row.user,
        credential = row.credential,
        session = row.session,
        path = row.path,
        model = row.model,
        service_tier = row.service_tier,
        transport = row.transport,
        prewarm = row.prewarm,
        status = row.status,
        end = row.end.as_str(),
        attempts = attempts.join(","),
        response_id = row.response_id,
        previous_response_id = row.previous_response_id,
        input_tokens = row.counts.map(|_| counts.input),
        cached_tokens = row.counts.map(|_| counts.cached),
        cache_write_tokens = row.counts.map(|_| counts.cache_write),
        output_tokens = row.counts.map(|_| counts.output),
        reasoning_tokens = row.counts.map(|_| counts.reasoning),
        context_window,
        week_start_unix = row.week_start_unix,
        cost_nanousd,
        unpriced_reason,
        priced_by = row.priced_by,
        ttfb_ms = row.ttfb_ms,
        duration_ms = row.duration_ms,
        "request"
    );
}
