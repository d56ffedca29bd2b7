//! `tollgate usage`: sums from the ledger, as a table, JSON or CSV.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::cli::table::{CellSide, lines as table_lines};
use crate::ledger::{FILE_NAME, LedgerReader, UsageGrouping, UsageSummary};
use crate::values::exchange::money::NanoUsd;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct UsageArgs {
    /// The configuration file, which names the data_dir.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Group the sums by this.
    #[arg(long, value_enum, default_value_t = GroupBy::User)]
    by: GroupBy,
    /// Print JSON instead of a table.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV instead of a table.
    #[arg(long)]
    csv: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GroupBy {
    User,
    Model,
    Credential,
    Day,
}

impl GroupBy {
    fn by(self) -> UsageGrouping {
        match self {
            Self::User => UsageGrouping::User,
            Self::Model => UsageGrouping::Model,
            Self::Credential => UsageGrouping::Credential,
            Self::Day => UsageGrouping::Day,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Model => "model",
            Self::Credential => "credential",
            Self::Day => "day",
        }
    }
}

const NUMBER_COLUMNS: [&str; 8] = [
    "requests",
    "not_complete",
    "input",
    "cached",
    "output",
    "reasoning",
    "cost_usd",
    "unpriced",
];

pub(in crate::cli) fn usage(args: &UsageArgs) -> Result<(), CommandFailure> {
    let config = load(args.config.as_deref())?.config;
    let path = config.data_dir.join(FILE_NAME);
    if !path.exists() {
        return Err(format!(
            "no ledger at {}: has the gateway run with this data_dir?",
            path.display()
        )
        .into());
    }
    let reader = LedgerReader::open(&path).map_err(|error| error.to_string())?;
    let summaries = reader
        .summary(args.by.by())
        .map_err(|error| error.to_string())?;
    let text = match (args.json, args.csv) {
        (true, _) => as_json(args.by, &summaries),
        (_, true) => as_csv(args.by, &summaries),
        _ => as_table(args.by, &summaries),
    };
    print(&text)
}

fn numbers(summary: &UsageSummary) -> [u64; 6] {
    let UsageSummary {
        requests,
        not_complete,
        input,
        cached,
        output,
        reasoning,
        ..
    } = summary;
    [
        *requests,
        *not_complete,
        *input,
        *cached,
        *output,
        *reasoning,
    ]
}

fn as_json(by: GroupBy, summaries: &[UsageSummary]) -> String {
    let rows: Vec<_> = summaries
        .iter()
        .map(|summary| {
            json!({
                by.name(): summary.name,
                "requests": summary.requests,
                "not_complete": summary.not_complete,
                "input_tokens": summary.input,
                "cached_tokens": summary.cached,
                "output_tokens": summary.output,
                "reasoning_tokens": summary.reasoning,
                "cost_nanousd": summary.cost.0,
                "unpriced": summary.unpriced,
            })
        })
        .collect();
    format!("{:#}", json!(rows))
}

fn as_csv(by: GroupBy, summaries: &[UsageSummary]) -> String {
    let mut lines = vec![format!("{},{}", by.name(), NUMBER_COLUMNS.join(","))];
    for summary in summaries {
        let numbers: Vec<String> = numbers(summary).iter().map(u64::to_string).collect();
        let cost = format!(
            "{}.{:09}",
            summary.cost.0 / 1_000_000_000,
            summary.cost.0 % 1_000_000_000
        );
        lines.push(format!(
            "{},{},{cost},{}",
            quoted(&summary.name),
            numbers.join(","),
            summary.unpriced
        ));
    }
    lines.join("\n")
}

/// Returns a field of CSV (RFC 4180), quoted if necessary.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

fn as_table(by: GroupBy, summaries: &[UsageSummary]) -> String {
    if summaries.is_empty() {
        return "no requests yet".to_owned();
    }
    let head = [
        by.name(),
        "requests",
        "not complete",
        "input",
        "cached",
        "output",
        "reasoning",
        "cost",
        "unpriced",
    ];
    let mut rows: Vec<[String; 9]> = vec![head.map(str::to_owned)];
    rows.extend(
        summaries
            .iter()
            .map(|summary| cells(&summary.name, summary)),
    );
    if summaries.len() > 1 {
        rows.push(cells("all", &total(summaries)));
    }
    let mut lines = table_lines(&rows, |column| {
        if column == 0 {
            CellSide::Left
        } else {
            CellSide::Right
        }
    });
    if summaries.len() > 1 {
        let rule = lines[1].clone();
        lines.insert(lines.len() - 1, rule);
    }
    lines.join("\n")
}

fn cells(name: &str, summary: &UsageSummary) -> [String; 9] {
    let [requests, not_complete, input, cached, output, reasoning] = numbers(summary).map(grouped);
    let cost = summary.cost.to_string();
    [
        name.to_owned(),
        requests,
        not_complete,
        input,
        cached,
        output,
        reasoning,
        cost,
        grouped(summary.unpriced),
    ]
}

fn total(summaries: &[UsageSummary]) -> UsageSummary {
    let sum = |of: fn(&UsageSummary) -> u64| summaries.iter().map(of).sum();
    UsageSummary {
        name: String::new(),
        requests: sum(|summary| summary.requests),
        not_complete: sum(|summary| summary.not_complete),
        input: sum(|summary| summary.input),
        cached: sum(|summary| summary.cached),
        output: sum(|summary| summary.output),
        reasoning: sum(|summary| summary.reasoning),
        cost: NanoUsd(sum(|summary| summary.cost.0)),
        unpriced: sum(|summary| summary.unpriced),
    }
}

/// Formats `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(name: &str) -> UsageSummary {
        UsageSummary {
            name: name.to_owned(),
            requests: 1234,
            not_complete: 1,
            input: 1_000_000,
            cached: 5,
            output: 6,
            reasoning: 7,
            cost: NanoUsd(1_500_000_001),
            unpriced: 2,
        }
    }

    #[test]
    fn a_table_is_aligned_and_summed() {
        let table = as_table(GroupBy::User, &[summary("alice"), summary("bob")]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[2],
            "alice     1,234             1  1,000,000       5       6          7  $1.5000         2"
        );
        assert!(lines[5].starts_with("all       2,468"), "{table}");
    }

    #[test]
    fn csv_is_exact_and_quoted() {
        let csv = as_csv(GroupBy::Model, &[summary("a,\"b\"")]);
        assert_eq!(
            csv,
            "model,requests,not_complete,input,cached,output,reasoning,cost_usd,unpriced\n\
             \"a,\"\"b\"\"\",1234,1,1000000,5,6,7,1.500000001,2"
        );
    }

    #[test]
    fn an_empty_ledger_has_no_table() {
        assert_eq!(as_table(GroupBy::Day, &[]), "no requests yet");
    }
}
