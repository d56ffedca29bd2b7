//! The statements of the writer.

use rusqlite::{Transaction, params};

use crate::ledger::query::{UsageFileState, signed};
use crate::values::exchange::money::ResponseCost;
use crate::values::exchange::{LedgerRow, UpstreamAttempt};

const INSERT_ROW: &str = "INSERT INTO usage (
    request_id, started_at, finished_at, user, credential, service, model, service_tier, transport, path, status, end,
    attempts, session, response_id, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    context_window, week_start_unix, cost_nanousd, unpriced_reason, priced_by, ttfb_ms, duration_ms,
    prewarm, previous_response_id
) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24,
    ?25, ?26, ?27, ?28, ?29)";

const SAVE_USAGE_FILE: &str =
    "INSERT INTO usage_view (path, through, digest, through_before, digest_before)
    VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (path) DO UPDATE SET through = ?2, digest = ?3, through_before = ?4, digest_before = ?5";

pub(super) fn row(transaction: &Transaction<'_>, row: &LedgerRow) -> rusqlite::Result<()> {
    let counts = row.counts;
    let (context_window, cost, unpriced_reason) = match &row.cost {
        Some(ResponseCost::Priced {
            amount,
            context_window,
        }) => (Some(signed(*context_window)), Some(signed(amount.0)), None),
        Some(ResponseCost::Unpriced { reason }) => (None, None, Some(reason)),
        None => (None, None, None),
    };
    transaction.prepare_cached(INSERT_ROW)?.execute(params![
        row.request_id,
        signed(row.started_at.0),
        signed(row.finished_at.0),
        row.user,
        row.credential,
        row.service,
        row.model,
        row.service_tier,
        row.transport.as_str(),
        row.path,
        row.status,
        row.end.as_str(),
        attempts_json(&row.attempts),
        row.session,
        row.response_id,
        counts.map(|counts| signed(counts.input)),
        counts.map(|counts| signed(counts.cached)),
        counts.map(|counts| signed(counts.cache_write)),
        counts.map(|counts| signed(counts.output)),
        counts.map(|counts| signed(counts.reasoning)),
        context_window,
        row.week_start_unix.map(signed),
        cost,
        unpriced_reason,
        row.priced_by,
        row.ttfb_ms.map(signed),
        signed(row.duration_ms),
        row.prewarm,
        row.previous_response_id,
    ])?;
    Ok(())
}

pub(super) fn usage_file(
    transaction: &Transaction<'_>,
    path: &str,
    state: &UsageFileState,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(SAVE_USAGE_FILE)?
        .execute(params![
            path,
            signed(state.through),
            state.digest,
            signed(state.through_before),
            state.digest_before,
        ])?;
    Ok(())
}

fn attempts_json(attempts: &[UpstreamAttempt]) -> String {
    let list: Vec<serde_json::Value> = attempts
        .iter()
        .map(|attempt| {
            serde_json::json!({"credential": attempt.credential, "outcome": attempt.outcome.name()})
        })
        .collect();
    serde_json::Value::Array(list).to_string()
}
