//! `tollgate policy replay`: recorded calls, repeated with a component.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::cli::error::CommandFailure;
use crate::cli::output::print;
use crate::config::{POLICY_MEMORY, PolicyConfig, PolicyKind, PolicySource, ShippedPolicy};
use crate::files::{io_reason, read_regular};
use crate::policy::{
    CallOutcome, PolicyEngine, PolicyGeneration, RecordedCall, kind_of, load_standalone,
};
use crate::values::limits::COMPONENT_BYTES;

/// Differences that are printed. All are counted.
const DIFFERENCES_PRINTED: u64 = 20;

/// Calls by what became of them.
#[derive(Debug, Default)]
struct ReplayCounts {
    repeated: u64,
    differing: u64,
    /// Calls of other policies or kinds.
    skipped: u64,
}

/// Repeats the calls in `record`, only those of the policy `tag` if it is given.
///
/// # Errors
/// The component or the record cannot be used, no call can be repeated, or a result differs.
pub(super) fn replay(
    component: &str,
    record: &Path,
    config: &str,
    tag: Option<&str>,
) -> Result<(), CommandFailure> {
    let policy = load_component(component, config)?;
    let failed = |error: io::Error| format!("{}: {}", record.display(), io_reason(&error));
    let file = BufReader::new(File::open(record).map_err(failed)?);
    let mut counts = ReplayCounts::default();
    for (place, line) in file.lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let number = place + 1;
        let call: RecordedCall = serde_json::from_str(&line).map_err(|error| {
            format!(
                "{} line {number}: expected a recorded call: {error}",
                record.display()
            )
        })?;
        let is_wanted = tag.is_none_or(|tag| tag == call.policy);
        let Some(result) = is_wanted.then(|| policy.repeat(&call)).flatten() else {
            counts.skipped += 1;
            continue;
        };
        counts.repeated += 1;
        if !result.agrees_with(&call.outcome) {
            counts.differing += 1;
            print_difference(&counts, number, &call, &result)?;
        }
    }
    report(component, record, &counts)
}

fn print_difference(
    counts: &ReplayCounts,
    line: usize,
    call: &RecordedCall,
    result: &CallOutcome,
) -> Result<(), CommandFailure> {
    if counts.differing > DIFFERENCES_PRINTED {
        return Ok(());
    }
    let json = |result: &CallOutcome| serde_json::to_string(result).unwrap_or_default();
    print(&format!(
        "line {line}, request {}, policy {:?}\n  recorded: {}\n  replayed: {}",
        call.request.request_id,
        call.policy,
        json(&call.outcome),
        json(result)
    ))
}

fn report(component: &str, record: &Path, counts: &ReplayCounts) -> Result<(), CommandFailure> {
    let ReplayCounts {
        repeated,
        differing,
        skipped,
    } = counts;
    if *differing > DIFFERENCES_PRINTED {
        print(&format!("... and {} more", differing - DIFFERENCES_PRINTED))?;
    }
    print(&format!(
        "{repeated} calls repeated, {differing} differ, {skipped} of other policies skipped"
    ))?;
    match (*repeated, *differing) {
        (0, _) => Err(format!(
            "{}: no calls that {component:?} can repeat",
            record.display()
        )
        .into()),
        (_, 0) => Ok(()),
        _ => Err(
            format!("{component:?} gives other results in {differing} of {repeated} calls").into(),
        ),
    }
}

fn load_component(component: &str, config: &str) -> Result<PolicyGeneration, CommandFailure> {
    let config = serde_json::from_str(config)
        .map_err(|error| format!("--policy-config: expected JSON: {error}"))?;
    let (source, kind) = find_component(component)?;
    let policy = PolicyConfig::standalone(component, kind, source, config);
    let engine = PolicyEngine::of_the_process(POLICY_MEMORY).map_err(|error| error.to_string())?;
    Ok(load_standalone(&engine, &policy).map_err(|error| error.to_string())?)
}

/// Returns where the component is, and its kind.
fn find_component(component: &str) -> Result<(PolicySource, PolicyKind), CommandFailure> {
    if let Some(name) = component.strip_prefix("builtin:") {
        let shipped = ShippedPolicy::from_name(name)
            .ok_or_else(|| format!("{component:?}: no shipped policy has this name"))?;
        return Ok((PolicySource::Shipped(shipped), shipped.kind()));
    }
    let path = PathBuf::from(component);
    let bytes =
        read_regular(&path, COMPONENT_BYTES).map_err(|reason| format!("{component}: {reason}"))?;
    let kind = kind_of(&bytes).ok_or_else(|| {
        format!("{component}: expected a balancer, rewriter or pricer component of tollgate:policy")
    })?;
    Ok((PolicySource::File(path), kind))
}
