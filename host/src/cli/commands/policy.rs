//! `tollgate policy`: the policies of the running gateway, and records of their calls.

mod replay;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::time::sleep;

use crate::cli::admin_client::{get, in_runtime, list, number, post, span, text};
use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::cli::table::{CellSide, lines};
use crate::config::Config;

/// How often the stage of a running load is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PolicyCommand {
    /// Show the policies of the running gateway.
    List {
        /// The configuration file, which names the data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Load a policy's component again.
    ///
    /// The gateway does this by itself when the component's file changes. Requests in flight finish
    /// with the generation that they started with. If the new component cannot be used, the current
    /// generation keeps serving.
    Reload {
        /// The tag of the policy in the configuration.
        tag: String,
        /// The configuration file, which names the data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Return to a policy's previous generation.
    Rollback {
        /// The tag of the policy in the configuration.
        tag: String,
        /// The configuration file, which names the data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Repeat recorded calls with a component, and print the results that differ.
    ///
    /// Exits with 1 if any result differs.
    Replay {
        /// The component's file, or `builtin:NAME` for a shipped policy.
        component: String,
        /// A record: the file that a policy's `record` names.
        record: PathBuf,
        /// The configuration that the component is given.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        policy_config: String,
        /// Repeat only the calls of the policy with this tag.
        #[arg(long)]
        tag: Option<String>,
    },
}

/// A change that the running gateway makes to a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PolicyChange {
    Reload,
    Rollback,
}

impl PolicyChange {
    /// The last part of the change's path in the admin API.
    fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Rollback => "rollback",
        }
    }
}

pub(in crate::cli) fn policy(command: &PolicyCommand) -> Result<(), CommandFailure> {
    match command {
        PolicyCommand::List { config, json } => {
            let config = load(config.as_deref())?.config;
            let policies = in_runtime(get(&config, "/api/policies"))?;
            print(&if *json {
                format!("{policies:#}")
            } else {
                as_text(&policies)
            })
        }
        PolicyCommand::Reload { tag, config } => {
            change(tag, PolicyChange::Reload, config.as_deref())
        }
        PolicyCommand::Rollback { tag, config } => {
            change(tag, PolicyChange::Rollback, config.as_deref())
        }
        PolicyCommand::Replay {
            component,
            record,
            policy_config,
            tag,
        } => replay::replay(component, record, policy_config, tag.as_deref()),
    }
}

fn change(tag: &str, change: PolicyChange, config: Option<&Path>) -> Result<(), CommandFailure> {
    let config = load(config)?.config;
    let done = in_runtime(async {
        let encoded = utf8_percent_encode(tag, NON_ALPHANUMERIC);
        let path = format!("/api/policies/{encoded}/{}", change.as_str());
        let mut done = std::pin::pin!(post(&config, &path));
        loop {
            tokio::select! {
                done = done.as_mut() => return done,
                () = sleep(PROGRESS_INTERVAL) => print_progress(&config, tag).await?,
            }
        }
    });
    let done = done.map_err(|error| format!("policy {tag:?}: {error}"))?;
    print(&format!("policy {tag:?}: {}", text(&done, "done")))
}

/// Prints the stage of a policy's load, if one is running.
async fn print_progress(config: &Config, tag: &str) -> Result<(), CommandFailure> {
    let policies = get(config, "/api/policies").await?;
    let policy = list(&policies, "policies")
        .iter()
        .find(|policy| text(policy, "tag") == tag);
    if let Some((stage, age)) = policy.and_then(loading) {
        eprintln!("tollgate: policy {tag:?}: {stage} for {}", span(age));
    }
    Ok(())
}

/// Returns the stage of a policy's load, and its age in milliseconds.
fn loading(policy: &Value) -> Option<(&str, u64)> {
    let loading = policy["loading"].as_array()?;
    Some((loading.first()?.as_str()?, loading.get(1)?.as_u64()?))
}

const POLICY_COLUMNS: [&str; 10] = [
    "policy",
    "kind",
    "component",
    "gen",
    "state",
    "calls",
    "faults",
    "p50",
    "p99",
    "last reload",
];

fn as_text(answer: &Value) -> String {
    let at = number(answer, "at");
    let policies = list(answer, "policies");
    let mut rows = vec![POLICY_COLUMNS.map(str::to_owned)];
    rows.extend(policies.iter().map(|policy| cells(policy, at)));
    let side = |column: usize| {
        if matches!(column, 3 | 5..=8) {
            CellSide::Right
        } else {
            CellSide::Left
        }
    };
    let mut lines = lines(&rows, side);
    let notes: Vec<String> = policies.iter().flat_map(notes).collect();
    if !notes.is_empty() {
        lines.push(String::new());
        lines.extend(notes);
    }
    lines.join("\n")
}

fn cells(policy: &Value, at: u64) -> [String; 10] {
    let faults: u64 = policy["faults"]
        .as_object()
        .map_or(0, |faults| faults.values().filter_map(Value::as_u64).sum());
    let time = |name: &str| {
        policy["call_us"][name]
            .as_f64()
            .map_or("-".to_owned(), micros)
    };
    let reload = &policy["last_reload"];
    let last = match reload["at"].as_u64() {
        Some(when) => format!(
            "{} {} ago",
            in_words(text(reload, "outcome")),
            span(at.saturating_sub(when))
        ),
        None => "-".to_owned(),
    };
    let state = match loading(policy) {
        Some((stage, age)) if text(policy, "state") == "loading" => {
            format!("{stage} for {}", span(age))
        }
        Some((stage, _)) => format!("{}, {stage} a new one", in_words(text(policy, "state"))),
        None => in_words(text(policy, "state")),
    };
    [
        text(policy, "tag").to_owned(),
        text(policy, "kind").to_owned(),
        format!("{} {}", text(policy, "name"), text(policy, "version"))
            .trim()
            .to_owned(),
        number(policy, "generation").to_string(),
        state,
        number(policy, "calls").to_string(),
        faults.to_string(),
        time("p50"),
        time("p99"),
        last,
    ]
}

/// Returns a name of the admin API as a person reads it.
fn in_words(name: &str) -> String {
    match name {
        "quarantined" => "breaker open".to_owned(),
        _ => name.replace('_', " "),
    }
}

/// Formats a duration: `850 ns`, `3.2 us`, `4.1 ms`.
fn micros(micros: f64) -> String {
    match micros {
        micros if micros < 1.0 => format!("{:.0} ns", micros * 1e3),
        micros if micros < 1e3 => format!("{micros:.1} us"),
        micros => format!("{:.1} ms", micros / 1e3),
    }
}

/// Returns what does not fit into a column, one line each.
fn notes(policy: &Value) -> Vec<String> {
    let tag = text(policy, "tag");
    let mut notes = Vec::new();
    if let Some(reason) = policy["last_reload"]["reason"].as_str() {
        notes.push(format!(
            "{tag}: {}: {reason}",
            in_words(text(&policy["last_reload"], "outcome"))
        ));
    }
    if let Some(faults) = policy["faults"]
        .as_object()
        .filter(|faults| !faults.is_empty())
    {
        let kinds: Vec<String> = faults
            .iter()
            .map(|(kind, count)| format!("{} {}", count, in_words(kind)))
            .collect();
        notes.push(format!("{tag}: faults: {}", kinds.join(", ")));
    }
    let shadow = &policy["shadow"];
    if shadow.is_object() {
        let (name, version) = (text(shadow, "name"), text(shadow, "version"));
        let (compared, disagreed) = (number(shadow, "compared"), number(shadow, "disagreed"));
        notes.push(format!(
            "{tag}: shadow {name} {version}: {disagreed} of {compared} results differ"
        ));
    }
    notes
}
