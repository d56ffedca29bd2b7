//! Settle: the end of an exchange becomes its row, which is priced, logged, counted and written.
//!
//! Owns what happens at the end of every exchange, however it ends; does not know how its response
//! was sent. Invariant: an exchange is settled once, because the room for its row can be taken
//! once.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::timeout;

use crate::ledger::{CommitPromise, RowCommit, RowReservation};
use crate::pipeline::affinity;
use crate::pipeline::exchange::{Exchange, RefusedRequest};
use crate::pipeline::refusal::Refusal;
use crate::pipeline::service::Service;
use crate::policy::{OwnedRequestFacts, PolicyFault, PricerGeneration, RequestFacts};
use crate::values::clock::Timestamp;
use crate::values::exchange::counts::TokenCounts;
use crate::values::exchange::money::ResponseCost;
use crate::values::exchange::{
    AttemptOutcome, ExchangeEnd, LedgerRow, MeteredResponse, UnknownUsage, UpstreamAttempt,
};

/// Settles an exchange. Returns the commit of its row, for a caller that must not go on before
/// that, or `None` if the exchange is settled already.
pub(crate) fn settle(
    exchange: &mut Exchange,
    end: ExchangeEnd,
    metered: MeteredResponse,
) -> Option<RowCommit> {
    let room = exchange.release_reservation()?;
    let now = Timestamp::now();
    let credential = exchange.release_credential();
    if let (Some(response_id), Some(credential)) = (&metered.response_id, &credential) {
        affinity::record_response(exchange, response_id, credential, now);
    }
    let home = affinity::home_to_record(exchange, now);
    let usage = usage_to_price(exchange, &metered);
    let mut row = exchange.row(end, metered, credential.as_ref(), home, now);
    let service = exchange.service();
    let pricer = &service.parts().pricer;
    match usage {
        UsageToPrice::Nothing => {}
        UsageToPrice::Unknown(reason) => {
            row.cost = Some(ResponseCost::Unpriced {
                reason: reason.as_str().to_owned(),
            });
        }
        UsageToPrice::Counts(counts) if pricer.is_slow() => {
            return Some(price_later(exchange, room, row, counts));
        }
        UsageToPrice::Counts(counts) => {
            row.cost = Some(price(pricer, &pricing_facts(exchange, &row), &counts));
        }
    }
    Some(write(service, room, row))
}

/// Settles a request that the gateway answers itself, waits for the commit of its row, and returns
/// what the client gets.
pub(crate) async fn settle_refused(refused: RefusedRequest) -> Refusal {
    let RefusedRequest { refusal, exchange } = refused;
    let Some(mut exchange) = exchange else {
        return refusal;
    };
    // Whatever upstream answered: this is what the client gets.
    exchange.set_status(refusal.status());
    let Some(commit) = settle(&mut exchange, refusal.end(), MeteredResponse::default()) else {
        return refusal;
    };
    if is_committed(exchange.service(), commit).await {
        refusal
    } else {
        Refusal::not_recorded()
    }
}

/// Waits for the commit of a row, at most for `limits.commit_timeout`. Returns whether the row is
/// committed.
pub(crate) async fn is_committed(service: &Service, commit: RowCommit) -> bool {
    matches!(
        timeout(service.limits().commit_timeout, commit).await,
        Ok(true)
    )
}

impl Drop for Exchange {
    /// An exchange that is dropped before its end is that of a client that left: nothing waits for
    /// the commit.
    fn drop(&mut self) {
        drop(settle(
            self,
            ExchangeEnd::ClientGone,
            MeteredResponse::default(),
        ));
    }
}

/// What there is to price.
enum UsageToPrice {
    Nothing,
    /// The response may have cost something, but the amount is unknown for this reason.
    Unknown(UnknownUsage),
    Counts(TokenCounts),
}

/// Returns what the response can have cost: nothing if upstream refused it, or if it was no turn of
/// a model.
fn usage_to_price(exchange: &Exchange, metered: &MeteredResponse) -> UsageToPrice {
    if let Some(counts) = metered.counts {
        return UsageToPrice::Counts(counts);
    }
    let names_model = metered.model.is_some() || exchange.requested().model.is_some();
    let is_turn = names_model || metered.response_id.is_some() || metered.unknown.is_some();
    if is_turn && exchange.attempts().iter().any(may_have_worked) {
        UsageToPrice::Unknown(metered.unknown.unwrap_or(UnknownUsage::NotReported))
    } else {
        UsageToPrice::Nothing
    }
}

/// Returns whether upstream may have done work in this attempt, whatever happened to its response.
fn may_have_worked(attempt: &UpstreamAttempt) -> bool {
    match attempt.outcome {
        // 101 is the outcome of every turn over a WebSocket.
        AttemptOutcome::Status(status) => status == 101 || (200..300).contains(&status),
        AttemptOutcome::Abandoned
        | AttemptOutcome::TimedOut
        | AttemptOutcome::Broken
        | AttemptOutcome::Withdrawn => true,
        AttemptOutcome::Unreachable => false,
    }
}

/// Returns the request as its pricer may know it: with the model that answered and the tier that
/// was charged.
fn pricing_facts<'a>(exchange: &'a Exchange, row: &'a LedgerRow) -> RequestFacts<'a> {
    RequestFacts {
        model: row.model.as_deref().unwrap_or_default(),
        service_tier: row.service_tier.as_deref().unwrap_or_default(),
        ..exchange.facts(
            row.finished_at,
            row.credential.as_deref().unwrap_or_default(),
        )
    }
}

fn price(
    pricer: &PricerGeneration,
    facts: &RequestFacts<'_>,
    counts: &TokenCounts,
) -> ResponseCost {
    pricer
        .price(facts, counts)
        .unwrap_or_else(|fault| unpriced(facts.request_id, &fault))
}

fn unpriced(request_id: &str, fault: &PolicyFault) -> ResponseCost {
    tracing::warn!(request_id, %fault, "row left unpriced");
    ResponseCost::Unpriced {
        reason: fault.to_string(),
    }
}

/// Prices the row on a policy thread and then writes it. If the threads' queue is full, writes the
/// row unpriced.
fn price_later(
    exchange: &Exchange,
    room: RowReservation,
    row: LedgerRow,
    counts: TokenCounts,
) -> RowCommit {
    let service = exchange.service();
    let facts = OwnedRequestFacts::of(&pricing_facts(exchange, &row));
    let (promise, commit) = service.parts().ledger.promise();
    let unwritten = Arc::new(Mutex::new(Some((room, row, promise))));
    let job = {
        let (service, unwritten) = (Arc::clone(service), Arc::clone(&unwritten));
        move || {
            if let Some((room, mut row, promise)) = claim(&unwritten) {
                row.cost = Some(price(&service.parts().pricer, &facts.facts(), &counts));
                write_as_promised(&service, room, row, promise);
            }
        }
    };
    if let Err(fault) = service.parts().pricer.queue_on_policy_thread(job)
        && let Some((room, mut row, promise)) = claim(&unwritten)
    {
        row.cost = Some(unpriced(&row.request_id, &fault));
        write_as_promised(service, room, row, promise);
    }
    commit
}

fn claim<T>(unwritten: &Mutex<Option<T>>) -> Option<T> {
    unwritten
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

/// Logs and counts a row that is complete, and hands it to the ledger.
fn write(service: &Service, room: RowReservation, mut row: LedgerRow) -> RowCommit {
    report(service, &mut row);
    service.parts().ledger.write(room, row)
}

fn write_as_promised(
    service: &Service,
    room: RowReservation,
    mut row: LedgerRow,
    promise: CommitPromise,
) {
    report(service, &mut row);
    service.parts().ledger.write_as_promised(room, row, promise);
}

fn report(service: &Service, row: &mut LedgerRow) {
    if row.cost.is_some() {
        let stamp = service.parts().pricer.identity();
        row.priced_by = Some(format!(
            "{} {} sha256:{}",
            stamp.name, stamp.version, stamp.digest
        ));
    }
    log(row);
    service.parts().metrics.record(row);
}

/// Logs one event per request, at its end.
fn log(row: &LedgerRow) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let counts = row.counts.unwrap_or_default();
    let (cost_nanousd, context_window, unpriced_reason) = match &row.cost {
        Some(ResponseCost::Priced {
            amount,
            context_window,
        }) => (Some(amount.0), Some(*context_window), None),
        Some(ResponseCost::Unpriced { reason }) => (None, None, Some(reason.as_str())),
        None => (None, None, None),
    };
    let attempts: Vec<String> = row
        .attempts
        .iter()
        .map(|attempt| format!("{}={}", attempt.credential, attempt.outcome.name()))
        .collect();
    tracing::info!(
        request_id = row.request_id,
        started_at = row.started_at.0,
        finished_at = row.finished_at.0,
        service = row.service,
        client = %row.client,
        user = row.user,
        credential = row.credential,
        session = row.session,
        path = row.path,
        model = row.model,
        service_tier = row.service_tier,
        transport = row.transport.as_str(),
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
