//! Settle: an exchange's end, told once, becomes its row: metered, priced, logged and written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Method, StatusCode};
use tokio::time::timeout;
use uuid::Uuid;

use super::refusal::Refusal;
use super::service::{Pool, Service};
use crate::authenticate::User;
use crate::credentials::{Credential, InFlight};
use crate::ledger::{Commit, Promise, Room};
use crate::meter::{Asked, Create};
use crate::policy::{Facts, Fault, OwnFacts, Pricer};
use crate::sessions::Owner;
use crate::values::clock::Timestamp;
use crate::values::counts::TokenCounts;
use crate::values::exchange::{Attempt, End, Home, Metered, Outcome, Row, Transport};
use crate::values::money::Cost;

/// What is known of a request when its row is opened.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) id: String,
    pub(crate) seed: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) clock: Instant,
    pub(crate) user: Option<Arc<User>>,
    /// A place in the service's pools.
    pub(crate) pool: usize,
    pub(crate) owner: Owner,
    pub(crate) path: String,
    pub(crate) method: Method,
    pub(crate) session: Option<String>,
}

/// A row that is being filled. It is written once: when the exchange ends, or when this is dropped, which is how a
/// client that leaves shows.
pub(crate) struct OpenRow {
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
    pub(crate) fn new(service: Arc<Service>, room: Room, opening: Opening) -> Box<Self> {
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
    pub(crate) fn goes_by(&mut self, transport: Transport) {
        self.transport = transport;
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// A handshake that was taken is no row: the responses over its socket are. Attempts that failed before it was are
    /// those of the first.
    pub(crate) fn becomes_socket(&mut self) {
        self.room = None;
        self.credential = None;
        self.attempts.pop();
    }

    /// A socket goes on in `service`, a later one than it was opened in, where its user, its pool and its credential are
    /// still there. Answers the credential's place.
    pub(crate) fn moves_to(&mut self, service: &Arc<Service>, credential: usize) -> Option<usize> {
        // Itself, and not another of its name: the socket is on its account.
        let known = &self.service.parts.credentials[credential];
        let credential = service
            .parts
            .credentials
            .iter()
            .position(|other| Arc::ptr_eq(other, known))?;
        let user = match &self.opening.user {
            None => service.users.is_empty().then_some(None)?,
            Some(user) => service.users.named(&user.name)?,
        };
        let (pool, owner) = service.owner(user.as_ref());
        if owner != self.opening.owner || !service.pools[pool].members.contains(&credential) {
            return None;
        }
        self.opening.user = user;
        self.opening.pool = pool;
        self.service = Arc::clone(service);
        Some(credential)
    }

    /// A response that is asked for over this socket, on that credential.
    pub(crate) fn next_turn(&mut self, room: Room, credential: usize, create: Create) -> Box<Self> {
        let id = Uuid::now_v7();
        let opening = Opening {
            id: id.to_string(),
            seed: id.as_u128() as u64,
            started_at: Timestamp::now(),
            clock: Instant::now(),
            ..self.opening.clone()
        };
        let mut turn = Self::new(Arc::clone(&self.service), room, opening);
        turn.goes_by(self.transport);
        turn.prewarm = create.prewarm;
        turn.asks(create.asked);
        turn.attempts = std::mem::take(&mut self.attempts);
        turn.begins_attempt(credential);
        turn.ends_attempt(Outcome::Status(StatusCode::SWITCHING_PROTOCOLS.as_u16()));
        turn
    }

    /// Upstream begins to answer over the socket.
    pub(crate) fn begins_to_answer(&mut self) {
        if self.status.is_none() {
            self.answered(StatusCode::SWITCHING_PROTOCOLS);
        }
    }

    /// Upstream answers over the socket that it failed.
    pub(crate) fn fails_with(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.ends_attempt(Outcome::Status(status.as_u16()));
    }

    /// What the body asks for. Its cache key names the session where no header did.
    pub(crate) fn asks(&mut self, asked: Asked) {
        if self.opening.session.is_none() {
            self.opening.session.clone_from(&asked.prompt_cache_key);
        }
        self.asked = asked;
    }

    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.service.pools[self.opening.pool]
    }

    pub(crate) fn user(&self) -> Option<&User> {
        self.opening.user.as_deref()
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.opening.owner
    }

    pub(crate) fn session(&self) -> Option<&str> {
        self.opening.session.as_deref()
    }

    /// An attempt with that credential begins.
    pub(crate) fn begins_attempt(&mut self, index: usize) {
        let credential = &self.service.parts.credentials[index];
        self.credential = Some((index, credential.begin()));
        self.attempts.push(Attempt {
            credential: credential.tag().to_owned(),
            outcome: Outcome::Abandoned,
        });
    }

    /// What came of the attempt under way.
    pub(crate) fn ends_attempt(&mut self, outcome: Outcome) {
        let number = self.attempts.len();
        let Some(attempt) = self.attempts.last_mut() else {
            return;
        };
        attempt.outcome = outcome;
        let (request_id, credential) = (&self.opening.id, &attempt.credential);
        tracing::debug!(
            request_id,
            credential,
            attempt = number,
            outcome = outcome.name(),
            "attempt"
        );
    }

    /// The response's head is on its way to the client.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.ttfb_ms = Some(self.elapsed_ms());
    }

    /// Whether the request asks for a head alone.
    pub(crate) fn is_head(&self) -> bool {
        self.opening.method == Method::HEAD
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.len() as u32
    }

    /// The request as policies may know it.
    pub(crate) fn facts<'a>(&'a self, now: Timestamp, credential: &'a str) -> Facts<'a> {
        Facts {
            request_id: &self.opening.id,
            user: self.opening.user.as_ref().map_or("", |user| &user.name),
            session: self.session().unwrap_or_default(),
            model: self.asked.model.as_deref().unwrap_or_default(),
            service_tier: self.asked.service_tier.as_deref().unwrap_or_default(),
            path: &self.opening.path,
            method: self.opening.method.as_str(),
            service: self.service.tag(),
            credential,
            transport: self.transport,
            attempt: self
                .attempts()
                .saturating_sub(u32::from(self.credential.is_some())),
            now,
            seed: self.opening.seed,
            sequence: self.sequence,
            trial: false,
        }
    }

    /// The exchange is over. Answers the row's commit, for whoever must not go on before it.
    pub(crate) fn close(&mut self, end: End, metered: Metered) -> Option<Commit> {
        let room = self.room.take()?;
        let credential = self.credential.take();
        let bill = self.bill(&metered);
        let mut row = self.row(end, metered, credential.as_ref().map(|(index, _)| *index));
        let pricer = &self.service.parts.pricer;
        match bill {
            Bill::Nothing => {}
            Bill::Unknown(reason) => {
                row.cost = Some(Cost::Unpriced {
                    reason: reason.to_owned(),
                })
            }
            Bill::Counts(counts) if pricer.is_slow() => {
                return Some(self.price_later(room, row, counts));
            }
            Bill::Counts(counts) => row.cost = Some(price(pricer, &self.facts_of(&row), &counts)),
        }
        Some(hand_over(&self.service, room, row))
    }

    /// The request as its pricer may know it: with the model that answered and the tier that was charged.
    fn facts_of<'a>(&'a self, row: &'a Row) -> Facts<'a> {
        Facts {
            model: row.model.as_deref().unwrap_or_default(),
            service_tier: row.service_tier.as_deref().unwrap_or_default(),
            ..self.facts(
                row.finished_at,
                row.credential.as_deref().unwrap_or_default(),
            )
        }
    }

    /// Has the row priced on a thread of its own, and then written. Where there is no room for that, it is written as it is.
    fn price_later(&self, room: Room, row: Row, counts: TokenCounts) -> Commit {
        let service = Arc::clone(&self.service);
        let facts = OwnFacts::of(&self.facts_of(&row));
        let (promise, commit) = service.parts.ledger.promise();
        let left = Arc::new(Mutex::new(Some((room, row, promise))));
        let job = {
            let (service, left) = (Arc::clone(&service), Arc::clone(&left));
            move || {
                if let Some((room, mut row, promise)) = take(&left) {
                    row.cost = Some(price(&service.parts.pricer, &facts.facts(), &counts));
                    hand_over_as_promised(&service, room, row, promise);
                }
            }
        };
        if let Err(fault) = service.parts.pricer.run(job)
            && let Some((room, mut row, promise)) = take(&left)
        {
            row.cost = Some(unpriced(&row.request_id, &fault));
            hand_over_as_promised(&service, room, row, promise);
        }
        commit
    }

    /// The exchange is over with an answer of the gateway's own: waits for the row, then answers.
    pub(crate) async fn refuse(self: Box<Self>, refusal: Refusal) -> Refusal {
        self.refuse_as(End::Failed, refusal).await
    }

    /// The same, where it ended in another way.
    pub(crate) async fn refuse_as(mut self: Box<Self>, end: End, refusal: Refusal) -> Refusal {
        // Whatever upstream answered: this is what the client gets.
        self.answered(refusal.status());
        let Some(commit) = self.close(end, Metered::default()) else {
            return refusal;
        };
        match timeout(self.service.parts.limits.commit_timeout, commit).await {
            Ok(true) => refusal,
            Ok(false) | Err(_) => Refusal::not_recorded(),
        }
    }

    fn row(&self, end: End, metered: Metered, credential: Option<usize>) -> Row {
        let now = Timestamp::now();
        let credentials = &self.service.parts.credentials;
        let credential: Option<&Arc<Credential>> = credential.map(|index| &credentials[index]);
        if let (Some(id), Some(credential)) = (&metered.response_id, credential) {
            self.service
                .sessions()
                .made(&self.opening.owner, id, credential.name(), now);
        }
        let model = metered.model.clone().or_else(|| self.asked.model.clone());
        let service_tier = metered
            .service_tier
            .clone()
            .or_else(|| self.asked.service_tier.clone());
        let home = self.home(now);
        Row {
            request_id: self.opening.id.clone(),
            started_at: self.opening.started_at,
            finished_at: now,
            user: self.opening.user.as_ref().map(|user| user.name.to_string()),
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
            priced_by: None,
            cost: None,
            week_start_unix: credential.and_then(|credential| credential.week_start_unix(now)),
            ttfb_ms: self.ttfb_ms,
            duration_ms: self.elapsed_ms(),
        }
    }

    /// Where the session lives, where the ledger is to note that.
    fn home(&self, now: Timestamp) -> Option<Home> {
        let credential =
            self.service
                .sessions()
                .to_note(&self.opening.owner, self.session()?, now)?;
        Some(Home {
            pool: self.pool().tag.to_string(),
            credential: credential.to_string(),
        })
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

    /// What the response can have cost. Nothing, where upstream refused it, or it was no turn of a model.
    fn bill(&self, metered: &Metered) -> Bill {
        if let Some(counts) = metered.counts {
            return Bill::Counts(counts);
        }
        let model = metered.model.is_some() || self.asked.model.is_some();
        let is_turn = model || metered.response_id.is_some() || metered.unknown.is_some();
        if is_turn && self.reached_upstream() {
            Bill::Unknown(metered.unknown.unwrap_or("upstream told no usage"))
        } else {
            Bill::Nothing
        }
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

/// What there is to price.
enum Bill {
    Nothing,
    /// Something, and nobody knows how much.
    Unknown(&'static str),
    Counts(TokenCounts),
}

fn price(pricer: &Pricer, facts: &Facts<'_>, counts: &TokenCounts) -> Cost {
    pricer
        .price(facts, counts)
        .unwrap_or_else(|fault| unpriced(facts.request_id, &fault))
}

fn unpriced(request_id: &str, fault: &Fault) -> Cost {
    tracing::warn!(request_id, %fault, "left unpriced");
    Cost::Unpriced {
        reason: fault.to_string(),
    }
}

fn take<T>(left: &Mutex<Option<T>>) -> Option<T> {
    left.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The row is whole: it is told to the log, counted, and goes to the ledger.
fn hand_over(service: &Service, room: Room, mut row: Row) -> Commit {
    tell(service, &mut row);
    service.parts.ledger.write(room, row)
}

fn hand_over_as_promised(service: &Service, room: Room, mut row: Row, promise: Promise) {
    tell(service, &mut row);
    service.parts.ledger.write_as_promised(room, row, promise);
}

fn tell(service: &Service, row: &mut Row) {
    if row.cost.is_some() {
        let stamp = service.parts.pricer.stamp();
        row.priced_by = Some(format!(
            "{} {} sha256:{}",
            stamp.name, stamp.version, stamp.digest
        ));
    }
    log(row);
    service.parts.metrics.ended(row);
}

/// One event a request, at its end.
fn log(row: &Row) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let counts = row.counts.unwrap_or_default();
    let (cost_nanousd, unpriced_reason) = match &row.cost {
        Some(Cost::Priced {
            amount,
            context_window,
        }) => (Some((amount.0, *context_window)), None),
        Some(Cost::Unpriced { reason }) => (None, Some(reason.as_str())),
        None => (None, None),
    };
    let attempts: Vec<String> = row
        .attempts
        .iter()
        .map(|attempt| format!("{}={}", attempt.credential, attempt.outcome.name()))
        .collect();
    let (cost_nanousd, context_window) = (
        cost_nanousd.map(|(amount, _)| amount),
        cost_nanousd.map(|(_, window)| window),
    );
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
