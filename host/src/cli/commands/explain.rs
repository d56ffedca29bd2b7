//! `tollgate explain`: how a request was handled, from its row in the ledger and the records of its
//! policies.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::cli::table::{CellSide, lines};
use crate::config::Config;
use crate::files::path_with_suffix;
use crate::ledger::{FILE_NAME, LedgerReader};
use crate::policy::{CallArguments, CallOutcome, RecordedCall};
use crate::values::clock::Timestamp;
use crate::values::exchange::money::NanoUsd;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExplainArgs {
    /// The request's id, as in its response header x-tollgate-request-id, in the log and in the
    /// ledger.
    request_id: String,
    /// The configuration file, which names the data_dir and the policies' records.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(in crate::cli) fn explain(args: &ExplainArgs) -> Result<(), CommandFailure> {
    let config = load(args.config.as_deref())?.config;
    let reader =
        LedgerReader::open(&config.data_dir.join(FILE_NAME)).map_err(|error| error.to_string())?;
    let row = reader
        .row(&args.request_id)
        .map_err(|error| format!("ledger: {error}"))?;
    let calls = calls(&config, &args.request_id);
    if row.is_none() && calls.is_empty() {
        let id = &args.request_id;
        return Err(
            format!("request {id:?}: not found in the ledger or in a policy's record").into(),
        );
    }
    let mut text = vec![format!("request {}", args.request_id)];
    match &row {
        Some(row) => text.extend(explain_row(row)),
        None => text.push(
            "  no row in the ledger: it was rejected before admission, or is still in flight"
                .to_owned(),
        ),
    }
    for call in &calls {
        text.push(String::new());
        text.extend(explain_call(call));
    }
    if calls.is_empty() {
        text.push(String::new());
        text.push(
            "No policy call was recorded. To record calls, set \"record\" on a policy.".to_owned(),
        );
    }
    print(&text.join("\n"))
}

fn explain_row(row: &Map<String, Value>) -> Vec<String> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or("-");
    let number = |name: &str| row.get(name).and_then(Value::as_u64);
    let shown = |name: &str| number(name).map_or("-".to_owned(), |number| number.to_string());
    let began = number("started_at").map_or("-".to_owned(), |at| Timestamp(at).rfc3339());
    let mut lines = vec![
        format!(
            "  {} by {} at {began}, service {:?}",
            text("path"),
            text("user"),
            text("service")
        ),
        format!(
            "  model {}, tier {}, over {}",
            text("model"),
            text("service_tier"),
            text("transport")
        ),
        format!(
            "  status {}, {} after {} ms, first byte after {} ms",
            shown("status"),
            text("end").replace('_', " "),
            shown("duration_ms"),
            shown("ttfb_ms")
        ),
        format!("  attempts: {}", attempts(text("attempts"))),
        format!(
            "  session {}, previous response {}",
            text("session"),
            text("previous_response_id")
        ),
    ];
    if let Some(input) = number("input_tokens") {
        lines.push(format!(
            "  tokens: {input} in ({} cached, {} written to the cache), {} out ({} reasoning)",
            shown("cached_tokens"),
            shown("cache_write_tokens"),
            shown("output_tokens"),
            shown("reasoning_tokens")
        ));
    }
    let unpriced = row.get("unpriced_reason").and_then(Value::as_str);
    lines.push(match (number("cost_nanousd"), unpriced) {
        (Some(cost), _) => format!("  cost: {} by {}", NanoUsd(cost), text("priced_by")),
        (None, Some(reason)) => format!("  unpriced: {reason}"),
        (None, None) => "  no usage, no cost".to_owned(),
    });
    lines
}

/// Formats the attempts of a row: `a: 429, then b: 200`.
fn attempts(json: &str) -> String {
    let attempts: Vec<Value> = serde_json::from_str(json).unwrap_or_default();
    if attempts.is_empty() {
        return "none".to_owned();
    }
    let one = |attempt: &Value| {
        let credential = attempt["credential"].as_str().unwrap_or("-");
        let outcome = attempt["outcome"].as_str().unwrap_or("-").replace('_', " ");
        format!("{credential}: {outcome}")
    };
    attempts.iter().map(one).collect::<Vec<_>>().join(", then ")
}

fn explain_call(call: &RecordedCall) -> Vec<String> {
    let (task, details) = match &call.arguments {
        CallArguments::Pick {
            columns,
            members,
            table,
            home,
        } => ("pick a credential", pick(columns, members, table, *home)),
        CallArguments::RewriteRequest { headers } => {
            ("edit the request's headers", fields(headers))
        }
        CallArguments::RewriteResponse { headers, .. } => {
            ("edit the response's headers", fields(headers))
        }
        CallArguments::Price { columns, counts } => {
            ("price the usage", vec![token_counts(columns, counts)])
        }
    };
    let (policy, generation) = (&call.policy, call.generation);
    let digest = call.digest.get(..12).unwrap_or(&call.digest);
    let took = call.took_ns as f64 / 1e3;
    let mut lines = vec![format!(
        "policy {policy:?}, generation {generation} (sha256:{digest}): {task}, {took:.1} us"
    )];
    lines.extend(details);
    lines.push(format!(
        "  result: {}",
        result(&call.outcome, &call.arguments)
    ));
    lines
}

fn token_counts(columns: &[String], counts: &[f64]) -> String {
    let counts: Vec<String> = columns
        .iter()
        .zip(counts)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    format!("  tokens: {}", counts.join(", "))
}

/// The columns of a pick that are shown, with their heads.
const PICK_COLUMNS: [(&str, &str); 6] = [
    ("usable", "usable"),
    ("five-hour-used", "5-hour"),
    ("weekly-used", "weekly"),
    ("limited", "limited for"),
    ("in-flight", "in flight"),
    ("continues", "continues"),
];

fn pick(columns: &[String], members: &[(String, String)], table: &[f64], home: i32) -> Vec<String> {
    let home = usize::try_from(home)
        .ok()
        .and_then(|index| members.get(index));
    let mut text = vec![match home {
        Some((tag, _)) => format!("  the session's home is {tag:?}"),
        None => "  the session has no home yet".to_owned(),
    }];
    let mut rows: Vec<[String; PICK_COLUMNS.len() + 2]> =
        vec![std::array::from_fn(|column| match column {
            0 => "member".to_owned(),
            1 => "plan".to_owned(),
            column => PICK_COLUMNS[column - 2].1.to_owned(),
        })];
    for (place, (tag, plan)) in members.iter().enumerate() {
        let value = |name: &str| {
            let column = columns.iter().position(|column| column == name)?;
            table.get(place * columns.len() + column).copied()
        };
        rows.push(std::array::from_fn(|column| match column {
            0 => tag.clone(),
            1 if plan.is_empty() => "-".to_owned(),
            1 => plan.clone(),
            column => {
                let name = PICK_COLUMNS[column - 2].0;
                value(name).map_or("-".to_owned(), |value| pick_cell(name, value))
            }
        }));
    }
    let side = |column: usize| {
        if column < 2 {
            CellSide::Left
        } else {
            CellSide::Right
        }
    };
    text.extend(
        lines(&rows, side)
            .into_iter()
            .map(|line| format!("    {line}")),
    );
    text
}

fn pick_cell(column: &str, value: f64) -> String {
    match column {
        "usable" | "continues" if value == 0.0 => "no".to_owned(),
        "usable" | "continues" => "yes".to_owned(),
        "five-hour-used" | "weekly-used" => format!("{value:.0}%"),
        "limited" if value == 0.0 => "-".to_owned(),
        "limited" => format!("{value:.0}m"),
        _ => format!("{value:.0}"),
    }
}

fn fields(headers: &[(String, String)]) -> Vec<String> {
    headers
        .iter()
        .map(|(name, value)| format!("    {name}: {value}"))
        .collect()
}

fn result(said: &CallOutcome, asked: &CallArguments) -> String {
    match said {
        CallOutcome::Member { index, move_home } => {
            let tag = match asked {
                CallArguments::Pick { members, .. } => {
                    members.get(*index).map_or("?", |(tag, _)| tag.as_str())
                }
                CallArguments::RewriteRequest { .. }
                | CallArguments::RewriteResponse { .. }
                | CallArguments::Price { .. } => "?",
            };
            let moved = if *move_home {
                ", the session's new home"
            } else {
                ""
            };
            format!("{tag:?}{moved}")
        }
        CallOutcome::NoMember { reason } => format!("no credential: {reason}"),
        CallOutcome::Edits { edits } if edits.is_empty() => "no edits".to_owned(),
        CallOutcome::Edits { edits } => {
            let edits: Vec<String> = edits
                .iter()
                .map(|edit| format!("{} {}", edit.edit, edit.name))
                .collect();
            edits.join(", ")
        }
        CallOutcome::Refused { status, message } => format!("rejected with {status}: {message}"),
        CallOutcome::Priced {
            nanousd,
            context_window,
        } => format!(
            "{} in a context window of {context_window}",
            NanoUsd(*nanousd)
        ),
        CallOutcome::Unpriced { reason } => format!("unpriced: {reason}"),
        CallOutcome::Failed { fault, detail } => {
            format!("failed ({}): {detail}", fault.replace('_', " "))
        }
    }
}

/// Returns the recorded calls of a request, in the order of the policies and of each record.
fn calls(config: &Config, request_id: &str) -> Vec<RecordedCall> {
    let records = config
        .policies
        .iter()
        .filter_map(|policy| policy.record.as_deref());
    let mut found = Vec::new();
    for record in records {
        let mut files = vec![record.to_owned()];
        files.extend(
            (1..=config.limits.policy_record_files)
                .map(|number| path_with_suffix(record, &format!(".{number}"))),
        );
        for file in files.iter().rev() {
            found.extend(calls_in(file, request_id));
        }
    }
    found
}

fn calls_in(file: &Path, request_id: &str) -> Vec<RecordedCall> {
    let Ok(file) = File::open(file) else {
        return Vec::new();
    };
    let lines = BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .filter(|line| line.contains(request_id));
    let calls = lines.filter_map(|line| serde_json::from_str::<RecordedCall>(&line).ok());
    calls
        .filter(|call| call.request.request_id == request_id)
        .collect()
}
