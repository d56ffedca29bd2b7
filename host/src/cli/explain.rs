//! `tollgate explain`: why a request went where it went, from its row and the records of its policies.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::configuration::load;
use super::error::CommandFailure;
use super::output::print;
use super::table::{CellSide, lines};
use crate::config::Config;
use crate::files::beside;
use crate::ledger::{FILE_NAME, Reader};
use crate::policy::{Asked, Call, Said};
use crate::values::clock::Timestamp;
use crate::values::money::NanoUsd;

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The request's id: its response has it in x-tollgate-request-id, its log event and its row in request_id.
    request_id: String,
    /// The configuration, for its data_dir and its policies' records.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn explain(args: &ExplainArgs) -> Result<(), CommandFailure> {
    let config = load(args.config.as_deref())?.config;
    let reader =
        Reader::open(&config.data_dir.join(FILE_NAME)).map_err(|error| error.to_string())?;
    let row = reader
        .row(&args.request_id)
        .map_err(|error| format!("ledger: {error}"))?;
    let calls = calls(&config, &args.request_id);
    if row.is_none() && calls.is_empty() {
        return Err(format!(
            "request {:?}: neither the ledger nor a record has it",
            args.request_id
        ));
    }
    let mut text = vec![format!("request {}", args.request_id)];
    match &row {
        Some(row) => text.extend(told_by_row(row)),
        None => text
            .push("  it has no row: it was refused at the door, or is still under way".to_owned()),
    }
    for call in &calls {
        text.push(String::new());
        text.extend(told_by_call(call));
    }
    if calls.is_empty() {
        text.push(String::new());
        text.push(
            "What its policies were asked was not recorded: a policy's \"record\" names a file for that.".to_owned(),
        );
    }
    print(&text.join("\n"))
}

fn told_by_row(row: &serde_json::Map<String, Value>) -> Vec<String> {
    let text = |name: &str| {
        row.get(name)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let number = |name: &str| row.get(name).and_then(Value::as_u64);
    let shown = |name: &str| number(name).map_or("-".to_owned(), |number| number.to_string());
    let began = number("started_at").map_or("-".to_owned(), |at| Timestamp(at).rfc3339());
    let mut told = vec![
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
            "  status {}, {} after {} ms, the first byte after {} ms",
            shown("status"),
            text("end").replace('_', " "),
            shown("duration_ms"),
            shown("ttfb_ms")
        ),
        format!("  attempts: {}", attempts(&text("attempts"))),
        format!(
            "  session {}, continues {}",
            text("session"),
            text("previous_response_id")
        ),
    ];
    if let Some(input) = number("input_tokens") {
        told.push(format!(
            "  tokens: {input} in ({} cached, {} written to a cache), {} out ({} reasoning)",
            shown("cached_tokens"),
            shown("cache_write_tokens"),
            shown("output_tokens"),
            shown("reasoning_tokens")
        ));
    }
    told.push(
        match (
            number("cost_nanousd"),
            row.get("unpriced_reason").and_then(Value::as_str),
        ) {
            (Some(cost), _) => format!("  cost: {} by {}", NanoUsd(cost), text("priced_by")),
            (None, Some(reason)) => format!("  not priced: {reason}"),
            (None, None) => "  nothing to price".to_owned(),
        },
    );
    told
}

/// `a: 429, then b: 200`.
fn attempts(json: &str) -> String {
    let list: Vec<Value> = serde_json::from_str(json).unwrap_or_default();
    let one = |attempt: &Value| {
        let part = |name: &str| attempt[name].as_str().unwrap_or("-").replace('_', " ");
        format!(
            "{}: {}",
            attempt["credential"].as_str().unwrap_or("-"),
            part("outcome")
        )
    };
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.iter().map(one).collect::<Vec<_>>().join(", then ")
    }
}

fn told_by_call(call: &Call) -> Vec<String> {
    let digest = call.digest.get(..12).unwrap_or(&call.digest);
    let took = call.took_ns as f64 / 1e3;
    let (asked, more) = match &call.asked {
        Asked::Pick {
            columns,
            members,
            table,
            home,
        } => ("who serves it", pick(columns, members, table, *home)),
        Asked::RewriteRequest { headers } => ("how its head is rewritten", fields(headers)),
        Asked::RewriteResponse { headers, .. } => {
            ("how the head of its response is rewritten", fields(headers))
        }
        Asked::Price { columns, counts } => {
            let counts = columns
                .iter()
                .zip(counts)
                .map(|(name, count)| format!("{count} {name}"));
            (
                "what it costs",
                vec![format!(
                    "  tokens: {}",
                    counts.collect::<Vec<_>>().join(", ")
                )],
            )
        }
    };
    let (policy, generation) = (&call.policy, call.generation);
    let mut told = vec![format!(
        "policy {policy:?}, generation {generation} (sha256:{digest}), was asked {asked}; it took {took:.1} us"
    )];
    told.extend(more);
    told.push(format!("  it said: {}", said(&call.said, &call.asked)));
    told
}

fn pick(columns: &[String], members: &[(String, String)], table: &[f64], home: i32) -> Vec<String> {
    let name = |index: i32| {
        usize::try_from(index)
            .ok()
            .and_then(|index| members.get(index))
            .map(|(tag, _)| tag.as_str())
    };
    let mut told = vec![match name(home) {
        Some(home) => format!("  the session lives on {home:?}"),
        None => "  the session has no home yet".to_owned(),
    }];
    const SHOWN: [(&str, &str); 6] = [
        ("usable", "usable"),
        ("five-hour-used", "5-hour"),
        ("weekly-used", "weekly"),
        ("limited", "refused for"),
        ("in-flight", "in flight"),
        ("continues", "continues"),
    ];
    let mut rows: Vec<[String; SHOWN.len() + 2]> =
        vec![std::array::from_fn(|column| match column {
            0 => "member".to_owned(),
            1 => "plan".to_owned(),
            column => SHOWN[column - 2].1.to_owned(),
        })];
    for (place, (tag, plan)) in members.iter().enumerate() {
        let value = |name: &str| {
            let column = columns.iter().position(|column| column == name)?;
            table.get(place * columns.len() + column).copied()
        };
        rows.push(std::array::from_fn(|column| match column {
            0 => tag.clone(),
            1 => {
                if plan.is_empty() {
                    "-".to_owned()
                } else {
                    plan.clone()
                }
            }
            column => match (SHOWN[column - 2].0, value(SHOWN[column - 2].0)) {
                (_, None) => "-".to_owned(),
                ("usable" | "continues", Some(value)) => {
                    if value == 0.0 { "no" } else { "yes" }.to_owned()
                }
                ("five-hour-used" | "weekly-used", Some(value)) => format!("{value:.0}%"),
                ("limited", Some(value)) => {
                    if value == 0.0 {
                        "-".to_owned()
                    } else {
                        format!("{value:.0}m")
                    }
                }
                (_, Some(value)) => format!("{value:.0}"),
            },
        }));
    }
    let side = |column: usize| {
        if column < 2 {
            CellSide::Left
        } else {
            CellSide::Right
        }
    };
    told.extend(
        lines(&rows, side)
            .into_iter()
            .map(|line| format!("    {line}")),
    );
    told
}

fn fields(headers: &[(String, String)]) -> Vec<String> {
    headers
        .iter()
        .map(|(name, value)| format!("    {name}: {value}"))
        .collect()
}

fn said(said: &Said, asked: &Asked) -> String {
    match said {
        Said::Member { index, move_home } => {
            let tag = match asked {
                Asked::Pick { members, .. } => {
                    members.get(*index).map_or("?", |(tag, _)| tag.as_str())
                }
                _ => "?",
            };
            format!(
                "{tag:?}{}",
                if *move_home {
                    ", and the session lives there from now on"
                } else {
                    ""
                }
            )
        }
        Said::Nobody { reason } => format!("nobody: {reason}"),
        Said::Edits { edits } if edits.is_empty() => "nothing is edited".to_owned(),
        Said::Edits { edits } => {
            let edits: Vec<String> = edits
                .iter()
                .map(|edit| format!("{} {}", edit.edit, edit.name))
                .collect();
            edits.join(", ")
        }
        Said::Refused { status, message } => format!("it is refused with {status}: {message}"),
        Said::Priced {
            nanousd,
            context_window,
        } => {
            format!(
                "{} in a context window of {context_window}",
                NanoUsd(*nanousd)
            )
        }
        Said::Unpriced { reason } => format!("no price: {reason}"),
        Said::Failed { fault, detail } => {
            format!("nothing: {detail} ({})", fault.replace('_', " "))
        }
    }
}

/// The recorded calls of a request, in the order of the policies and their records.
fn calls(config: &Config, request_id: &str) -> Vec<Call> {
    let records = config
        .policies
        .iter()
        .filter_map(|policy| policy.record.as_deref());
    let mut found = Vec::new();
    for record in records {
        let mut files = vec![record.to_owned()];
        files.extend(
            (1..=config.limits.policy_record_files)
                .map(|number| beside(record, &format!(".{number}"))),
        );
        for file in files.iter().rev() {
            found.extend(calls_in(file, request_id));
        }
    }
    found
}

fn calls_in(file: &Path, request_id: &str) -> Vec<Call> {
    let Ok(file) = File::open(file) else {
        return Vec::new();
    };
    let lines = BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .filter(|line| line.contains(request_id));
    let calls = lines.filter_map(|line| serde_json::from_str::<Call>(&line).ok());
    calls
        .filter(|call| call.request.request_id == request_id)
        .collect()
}
