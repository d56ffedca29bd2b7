//! What operators see of policies and their reloads. The field names are those of the admin API.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::generations::PolicyEntry;
use super::last_reload::LastReload;
use crate::config::{PolicyKind, PolicySource};
use crate::policy::{FaultKind, LoadPhase, ShadowStatus};

/// Whether a policy serves, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PolicyState {
    Serving,
    /// The first generation is being loaded.
    Loading,
    /// The first generation cannot be loaded.
    Failed,
    /// The circuit breaker is open.
    #[serde(rename = "quarantined")]
    BreakerOpen,
    /// A generation that failed too often serves again.
    OnProbation,
}

/// A policy as operators see it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PolicyStatus {
    pub(crate) tag: String,
    pub(crate) kind: PolicyKind,
    /// Its file, or `builtin:NAME`.
    pub(crate) source: String,
    /// The component's own name.
    pub(crate) name: String,
    /// The component's own version.
    pub(crate) version: String,
    /// The SHA-256 of the component, in hexadecimal.
    pub(crate) digest: String,
    /// The generation that serves; 0 if none does yet.
    pub(crate) generation: u64,
    /// The generation that a rollback returns to.
    pub(crate) generation_before: Option<u64>,
    pub(crate) state: PolicyState,
    /// The phase of the load in progress, and its age in milliseconds.
    pub(crate) loading: Option<(LoadPhase, u64)>,
    /// Calls of all generations.
    pub(crate) calls: u64,
    /// Requests that the policy refused.
    pub(crate) refusals: u64,
    /// Faults by kind; kinds without any are left out.
    #[serde(serialize_with = "serialize_faults")]
    faults: Vec<(FaultKind, u64)>,
    pub(crate) call_us: CallDurations,
    /// Whether calls run on policy threads.
    pub(crate) slow: bool,
    /// Warm instances in all threads.
    pub(crate) instances: u64,
    /// The instances' linear memory.
    pub(crate) memory_bytes: u64,
    /// Log lines that exceeded the limit.
    pub(crate) unlogged: u64,
    /// Calls that were not recorded because the disk was too slow.
    pub(crate) unrecorded: u64,
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) shadow: Option<ShadowStatus>,
}

/// How long calls took, in microseconds; `None` without any calls.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CallDurations {
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl PolicyStatus {
    pub(crate) fn of(entry: &PolicyEntry) -> Self {
        let (config, shared) = (entry.config(), entry.shared());
        let (status, component) = (entry.current().status(), entry.current().identity());
        let stats = shared.stats();
        Self {
            tag: config.tag.clone(),
            kind: config.kind,
            source: match &config.source {
                PolicySource::Shipped(shipped) => format!("builtin:{}", shipped.name()),
                PolicySource::File(path) => path.display().to_string(),
            },
            name: component.name.clone(),
            version: component.version.clone(),
            digest: component.digest.clone(),
            generation: status.generation,
            generation_before: entry.previous_generation(),
            state: state(entry),
            loading: entry.load_progress().map(|progress| {
                let (phase, age) = progress.phase();
                (phase, age.as_millis() as u64)
            }),
            calls: stats.calls(),
            refusals: stats.refusals(),
            faults: FaultKind::ALL
                .into_iter()
                .map(|kind| (kind, stats.faults(kind)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            call_us: call_durations(entry),
            slow: status.is_slow,
            instances: stats.instances(),
            memory_bytes: stats.memory_bytes(),
            unlogged: stats.unlogged(),
            unrecorded: shared.unrecorded(),
            last_reload: entry.last_reload().cloned(),
            shadow: shared.shadow().map(|shadow| shadow.status()),
        }
    }

    /// Returns how many calls failed in this way.
    pub(crate) fn faults(&self, kind: FaultKind) -> u64 {
        self.faults
            .iter()
            .find(|(of, _)| *of == kind)
            .map_or(0, |(_, count)| *count)
    }
}

/// Writes an object with the faults by name.
fn serialize_faults<S: Serializer>(
    faults: &[(FaultKind, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let by_name: BTreeMap<&str, u64> = faults
        .iter()
        .map(|(kind, count)| (kind.as_str(), *count))
        .collect();
    by_name.serialize(serializer)
}

fn state(entry: &PolicyEntry) -> PolicyState {
    let status = entry.current().status();
    let is_absent = status.generation == 0;
    if status.breaker_open_for.is_some() {
        PolicyState::BreakerOpen
    } else if is_absent && entry.load_progress().is_some() {
        PolicyState::Loading
    } else if is_absent && entry.last_reload().is_some_and(LastReload::is_failure) {
        PolicyState::Failed
    } else if entry.is_on_probation() {
        PolicyState::OnProbation
    } else {
        PolicyState::Serving
    }
}

fn call_durations(entry: &PolicyEntry) -> CallDurations {
    let micros = |span: Duration| span.as_nanos() as f64 / 1e3;
    let time = entry.shared().stats().time();
    CallDurations {
        p50: time.quantile(0.5).map(micros),
        p99: time.quantile(0.99).map(micros),
        max: (time.count() > 0).then(|| micros(time.max())),
    }
}
