//! What a policy's calls came to: counted over all its generations, for the operator.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fault::FaultKind;
use crate::values::histogram::DurationHistogram;

/// Counts of one policy. Each is told by itself: together they may be of slightly different moments.
#[derive(Debug, Default)]
pub struct Stats {
    refusals: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
    time: DurationHistogram,
    instances: AtomicU64,
    memory_bytes: AtomicU64,
    unlogged: AtomicU64,
}

impl Stats {
    /// Calls that reached the component.
    pub fn calls(&self) -> u64 {
        self.time.count()
    }

    /// Requests that a rewriter refused on purpose.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Calls that failed in that way.
    pub fn faults(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize].load(Ordering::Relaxed)
    }

    /// How long calls took.
    pub fn time(&self) -> &DurationHistogram {
        &self.time
    }

    /// Instances that there are now.
    pub fn instances(&self) -> u64 {
        self.instances.load(Ordering::Relaxed)
    }

    /// Their linear memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// Lines of its log that were left out, because there were too many.
    pub fn unlogged(&self) -> u64 {
        self.unlogged.load(Ordering::Relaxed)
    }

    pub(super) fn called(&self, took: Duration) {
        self.time.record(took);
    }

    pub(super) fn failed(&self, kind: FaultKind) {
        self.faults[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn left_out_of_the_log(&self) {
        self.unlogged.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn instance_made(&self) {
        self.instances.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn memory_grew(&self, by: usize) {
        self.memory_bytes.fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(super) fn instance_gone(&self, memory: usize) {
        self.instances.fetch_sub(1, Ordering::Relaxed);
        self.memory_bytes
            .fetch_sub(memory as u64, Ordering::Relaxed);
    }
}
