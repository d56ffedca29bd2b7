//! `tollgate policy`: the policies of the running gateway, and records of their calls.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::time::sleep;

use super::admin_client::{get, in_runtime, list, number, post, span, text};
use super::configuration::load;
use super::error::CommandFailure;
use super::output::print;
use super::table::{CellSide, lines};
use crate::config::{POLICY_MEMORY, PolicyConfig, PolicyKind, PolicySource};
use crate::files::{plain, read_regular};
use crate::policy::{Call, Engine, kind_of, load_alone};
use crate::values::limits::COMPONENT_BYTES;

/// Differences that are printed; all are counted.
const SHOWN: usize = 20;

/// What is being done is told so often.
const TELL: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Print the policies of the running gateway.
    List {
        /// The configuration, for its data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Load a policy's component again.
    ///
    /// That happens by itself when its file changes. Requests under way keep the generation that they began with; where
    /// the component cannot be used, what serves goes on.
    Reload {
        /// The policy's tag.
        tag: String,
        /// The configuration, for its data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Go back to the generation of a policy before the one that serves.
    Rollback {
        /// The policy's tag.
        tag: String,
        /// The configuration, for its data_dir.
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run a component over recorded calls, and print where it says something else.
    ///
    /// Exits with 1 where it does.
    Replay {
        /// The component, or `builtin:NAME` for a shipped one.
        component: String,
        /// A record, as a policy's `record` names it.
        record: PathBuf,
        /// The configuration of the component, as JSON.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        policy_config: String,
        /// Only calls of the policy of this tag.
        #[arg(long)]
        tag: Option<String>,
    },
}

pub(super) fn policy(command: &PolicyCommand) -> Result<(), CommandFailure> {
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
        PolicyCommand::Reload { tag, config } => change(tag, "reload", config.as_deref()),
        PolicyCommand::Rollback { tag, config } => change(tag, "rollback", config.as_deref()),
        PolicyCommand::Replay {
            component,
            record,
            policy_config,
            tag,
        } => replay(component, record, policy_config, tag.as_deref()),
    }
}

fn change(tag: &str, what: &str, config: Option<&Path>) -> Result<(), CommandFailure> {
    let config = load(config)?.config;
    let done = in_runtime(async {
        let path = format!(
            "/api/policies/{}/{what}",
            utf8_percent_encode(tag, NON_ALPHANUMERIC)
        );
        let mut done = std::pin::pin!(post(&config, &path));
        loop {
            tokio::select! {
                done = done.as_mut() => return done,
                () = sleep(TELL) => {
                    // Whoever waits wants to know for what.
                    let policies = get(&config, "/api/policies").await?;
                    let found = list(&policies, "policies").iter().find(|policy| text(policy, "tag") == tag);
                    if let Some((stage, since)) = found.and_then(loading) {
                        eprintln!("tollgate: policy {tag:?}: {stage} for {}", span(since));
                    }
                }
            }
        }
    });
    let done = done.map_err(|error| format!("policy {tag:?}: {error}"))?;
    print(&format!("policy {tag:?}: {}", text(&done, "done")))
}

/// What is being loaded of a policy, and for how long already.
fn loading(policy: &Value) -> Option<(&str, u64)> {
    let loading = policy["loading"].as_array()?;
    Some((loading.first()?.as_str()?, loading.get(1)?.as_u64()?))
}

const HEAD: [&str; 10] = [
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
    let mut rows = vec![HEAD.map(str::to_owned)];
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
            text(reload, "outcome").replace('_', " "),
            span(at.saturating_sub(when))
        ),
        None => "-".to_owned(),
    };
    let state = match loading(policy) {
        Some((stage, since)) if text(policy, "state") == "loading" => {
            format!("{stage} for {}", span(since))
        }
        Some((stage, _)) => format!(
            "{}, {stage} the next",
            text(policy, "state").replace('_', " ")
        ),
        None => text(policy, "state").replace('_', " "),
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

/// `850 ns`, `3.2 us`, `4.1 ms`.
fn micros(micros: f64) -> String {
    match micros {
        micros if micros < 1.0 => format!("{:.0} ns", micros * 1e3),
        micros if micros < 1e3 => format!("{micros:.1} us"),
        micros => format!("{:.1} ms", micros / 1e3),
    }
}

/// What does not fit into a column, one line each.
fn notes(policy: &Value) -> Vec<String> {
    let tag = text(policy, "tag");
    let mut notes = Vec::new();
    if let Some(reason) = policy["last_reload"]["reason"].as_str() {
        notes.push(format!(
            "{tag}: {}: {reason}",
            text(&policy["last_reload"], "outcome").replace('_', " ")
        ));
    }
    if let Some(faults) = policy["faults"]
        .as_object()
        .filter(|faults| !faults.is_empty())
    {
        let kinds: Vec<String> = faults
            .iter()
            .map(|(kind, count)| format!("{} {}", count, kind.replace('_', " ")))
            .collect();
        notes.push(format!("{tag}: faults: {}", kinds.join(", ")));
    }
    let shadow = &policy["shadow"];
    if shadow.is_object() {
        let (name, version) = (text(shadow, "name"), text(shadow, "version"));
        let (compared, disagreed) = (number(shadow, "compared"), number(shadow, "disagreed"));
        notes.push(format!(
            "{tag}: shadow {name} {version}: {disagreed} of {compared} calls say something else"
        ));
    }
    notes
}

fn replay(
    component: &str,
    record: &Path,
    config: &str,
    tag: Option<&str>,
) -> Result<(), CommandFailure> {
    let config = serde_json::from_str(config)
        .map_err(|error| format!("--policy-config: expected JSON: {error}"))?;
    let (source, kind) = component_of(component)?;
    let shown = PolicyConfig {
        tag: component.to_owned(),
        source,
        ..PolicyConfig::shipped("", kind, config)
    };
    let engine = Engine::of_the_process(POLICY_MEMORY).map_err(|error| error.to_string())?;
    let policy = load_alone(&engine, &shown).map_err(|error| error.to_string())?;
    let failed = |error: &std::io::Error| format!("{}: {}", record.display(), plain(error));
    let file = BufReader::new(File::open(record).map_err(|error| failed(&error))?);
    let (mut repeated, mut others, mut differ) = (0_u64, 0_u64, 0_usize);
    for (number, line) in file.lines().enumerate() {
        let line = line.map_err(|error| failed(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        let call: Call = serde_json::from_str(&line).map_err(|error| {
            format!(
                "{} line {}: expected a recorded call: {error}",
                record.display(),
                number + 1
            )
        })?;
        let wanted = tag.is_none_or(|tag| tag == call.policy);
        let Some(said) = wanted.then(|| policy.repeat(&call)).flatten() else {
            others += 1;
            continue;
        };
        repeated += 1;
        if said.agrees_with(&call.said) {
            continue;
        }
        differ += 1;
        if differ <= SHOWN {
            let json =
                |value: &crate::policy::Said| serde_json::to_string(value).unwrap_or_default();
            print(&format!(
                "line {}, request {}, policy {:?}\n  said: {}\n  says: {}",
                number + 1,
                call.request.request_id,
                call.policy,
                json(&call.said),
                json(&said)
            ))?;
        }
    }
    if differ > SHOWN {
        print(&format!("... and {} more", differ - SHOWN))?;
    }
    print(&format!(
        "{repeated} calls repeated, {differ} differ, {others} of other policies left out"
    ))?;
    match (repeated, differ) {
        (0, _) => Err(format!(
            "{}: no call that {component:?} could repeat",
            record.display()
        )),
        (_, 0) => Ok(()),
        _ => Err(format!(
            "{component:?} says something else in {differ} of {repeated} calls"
        )),
    }
}

/// The component of that name, and what it decides.
fn component_of(component: &str) -> Result<(PolicySource, PolicyKind), CommandFailure> {
    if let Some(name) = component.strip_prefix("builtin:") {
        let shipped = crate::config::resolve::shipped_policy(name);
        let (name, kind) = shipped
            .ok_or_else(|| format!("{component:?}: there is no shipped policy of that name"))?;
        return Ok((PolicySource::Shipped(name), kind));
    }
    let path = PathBuf::from(component);
    let bytes =
        read_regular(&path, COMPONENT_BYTES).map_err(|reason| format!("{component}: {reason}"))?;
    let kind = kind_of(&bytes).ok_or_else(|| {
        format!("{component}: expected a balancer, a rewriter or a pricer of this contract, found something else")
    })?;
    Ok((PolicySource::File(path), kind))
}
