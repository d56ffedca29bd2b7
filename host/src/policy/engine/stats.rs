//! Counters of a policy's calls, over all its generations, for the operator.
//!
//! Knows nothing about metrics and status output. Each counter is read by itself: values read one
//! after another may be of slightly different moments.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fault::FaultKind;
use crate::values::histogram::DurationHistogram;

/// The counters of one policy.
#[derive(Debug, Default)]
pub(crate) struct PolicyStats {
    refusals: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
    call_time: DurationHistogram,
    instances: AtomicU64,
    memory_bytes: AtomicU64,
    dropped_log_lines: AtomicU64,
}

impl PolicyStats {
    /// Returns the number of calls that reached the component.
    pub(crate) fn calls(&self) -> u64 {
        self.call_time.count()
    }

    /// Returns the number of requests that a rewriter refused.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Returns the number of calls that failed with `kind`.
    pub(crate) fn faults(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize].load(Ordering::Relaxed)
    }

    /// Returns the durations of the calls.
    pub(crate) fn time(&self) -> &DurationHistogram {
        &self.call_time
    }

    /// Returns the number of instances that exist now.
    pub(crate) fn instances(&self) -> u64 {
        self.instances.load(Ordering::Relaxed)
    }

    /// Returns the linear memory of these instances, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of log lines that were dropped because the guest wrote too many.
    pub(crate) fn unlogged(&self) -> u64 {
        self.dropped_log_lines.load(Ordering::Relaxed)
    }

    pub(crate) fn count_call(&self, took: Duration) {
        self.call_time.record(took);
    }

    pub(crate) fn count_fault(&self, kind: FaultKind) {
        self.faults[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_dropped_log_line(&self) {
        self.dropped_log_lines.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn instance_created(&self) {
        self.instances.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn memory_grew(&self, bytes: usize) {
        self.memory_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn instance_dropped(&self, memory_bytes: usize) {
        self.instances.fetch_sub(1, Ordering::Relaxed);
        self.memory_bytes
            .fetch_sub(memory_bytes as u64, Ordering::Relaxed);
    }
}
