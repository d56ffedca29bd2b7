//! `tollgate status`: the credentials of the running gateway.

use std::path::PathBuf;

use serde_json::Value;

use crate::cli::admin_client::{get, in_runtime, list, number, span, text};
use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::cli::table::{CellSide, lines};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StatusArgs {
    /// The configuration file, which names the data_dir.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn status(args: &StatusArgs) -> Result<(), CommandFailure> {
    let config = load(args.config.as_deref())?.config;
    let status = in_runtime(get(&config, "/status"))?;
    print(&if args.json {
        format!("{status:#}")
    } else {
        as_text(&status)
    })
}

const CREDENTIAL_COLUMNS: [&str; 10] = [
    "credential",
    "state",
    "5-hour",
    "resets in",
    "weekly",
    "resets in",
    "plan",
    "polled",
    "sessions",
    "in flight",
];

fn as_text(status: &Value) -> String {
    let at = number(status, "at");
    let mut rows = vec![CREDENTIAL_COLUMNS.map(str::to_owned)];
    let mut notes = Vec::new();
    let services = list(status, "services");
    for service in services {
        for credential in list(service, "credentials") {
            let tag = text(credential, "credential");
            let name = match services {
                [_] => tag.to_owned(),
                _ => format!("{}/{tag}", text(service, "service")),
            };
            notes.extend(note(&name, credential));
            rows.push(cells(name, credential, at));
        }
        if let Some(problem) = service["tls"]["problem"].as_str() {
            let service = text(service, "service");
            notes.push(format!(
                "{service}: the new certificate is not in use: {problem}"
            ));
        }
    }
    let side = |column: usize| {
        if matches!(column, 2 | 4 | 8 | 9) {
            CellSide::Right
        } else {
            CellSide::Left
        }
    };
    let mut text = lines(&rows, side);
    if !notes.is_empty() {
        text.push(String::new());
        text.extend(notes);
    }
    text.join("\n")
}

fn cells(name: String, credential: &Value, at: u64) -> [String; 10] {
    let window = |name: &str| {
        let window = &credential[name];
        // Rounded down: use just below a cap has not reached it.
        let used = window["used"].as_f64().map(f64::floor);
        let cap = window["cap"].as_f64().unwrap_or(100.0);
        let resets = window["resets_at"]
            .as_u64()
            .map_or("-".to_owned(), |resets| span(resets.saturating_sub(at)));
        match used {
            Some(used) => (format!("{used:.0}% of {cap:.0}%"), resets),
            // API keys have no windows, and those of a new credential are not known yet.
            None => ("-".to_owned(), "-".to_owned()),
        }
    };
    let (five_hour, five_hour_resets) = window("five_hour");
    let (weekly, weekly_resets) = window("weekly");
    let polled = credential["polled_at"]
        .as_u64()
        .map(|polled| format!("{} ago", span(at.saturating_sub(polled))));
    let polled = match (polled, credential["poll_failure"].as_str()) {
        (Some(polled), None) => polled,
        (Some(polled), Some(_)) => format!("{polled}, stale"),
        (None, Some(_)) => "failed".to_owned(),
        (None, None) => "-".to_owned(),
    };
    let plan = text(credential, "plan");
    [
        name,
        state(credential, at),
        five_hour,
        five_hour_resets,
        weekly,
        weekly_resets,
        if plan.is_empty() {
            "-".to_owned()
        } else {
            plan.to_owned()
        },
        polled,
        number(credential, "sessions").to_string(),
        number(credential, "in_flight").to_string(),
    ]
}

fn state(credential: &Value, at: u64) -> String {
    let until = || {
        credential["until"]
            .as_u64()
            .map(|until| format!(" for {}", span(until.saturating_sub(at))))
    };
    let until = until().unwrap_or_default();
    let window = credential["window"]
        .as_str()
        .map(|window| format!(" ({window})"))
        .unwrap_or_default();
    match text(credential, "state") {
        "rate_limited" => format!("rate-limited{until}{window}"),
        "paused" => format!("paused at its cap{until}{window}"),
        "login_needed" => "login needed".to_owned(),
        "cannot_refresh" => "cannot refresh".to_owned(),
        "not_connected" => "not connected".to_owned(),
        other => other.to_owned(),
    }
}

/// Returns the reasons that do not fit into a column, one line each.
fn note(name: &str, credential: &Value) -> Vec<String> {
    let state = text(credential, "state");
    let what = if state == "login_needed" {
        "log in again: "
    } else {
        ""
    };
    // For `cannot_refresh`, this is the reason already.
    let refresh = if state == "cannot_refresh" {
        ""
    } else {
        "refresh_failure"
    };
    let reasons = [
        (what, "reason"),
        ("the last refresh: ", refresh),
        ("the last connection: ", "connect_failure"),
        ("the reverse connection: ", "reverse_failure"),
        ("the last poll: ", "poll_failure"),
    ];
    reasons
        .into_iter()
        .filter_map(|(what, key)| Some(format!("{name}: {what}{}", credential[key].as_str()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_shows_states_and_durations() {
        let window = json!({"used": 41.6, "cap": 80.0, "resets_at": 7_500_000});
        let credential = |more: Value| {
            let mut whole = json!({"credential": "a", "kind": "oauth", "state": "ready", "five_hour": window,
                "weekly": window, "plan": "pro", "polled_at": 0, "sessions": 3, "in_flight": 1});
            whole
                .as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            json!({"at": 0, "services": [{"service": "ocm", "credentials": [whole]}]})
        };
        let table = as_text(&credential(json!({})));
        let last = table.lines().last().expect("a row");
        assert_eq!(
            last,
            "a           ready  41% of 80%  2h 5m      41% of 80%  2h 5m      pro   0s ago         3          1"
        );
        let limited = json!({"state": "rate_limited", "until": 90_000_000, "window": "weekly"});
        assert!(as_text(&credential(limited)).contains("rate-limited for 1d 1h (weekly)"));
        let broken = json!({"state": "unreadable", "reason": "cannot read it", "poll_failure": "answered 500"});
        let broken = as_text(&credential(broken));
        assert!(
            broken.ends_with("a: cannot read it\na: the last poll: answered 500"),
            "{broken}"
        );
        assert!(broken.contains("0s ago, stale"));
    }
}
