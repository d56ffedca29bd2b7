//! Shadows: a candidate component repeats a policy's calls, off the path of requests.
//!
//! Invariant: the outcomes of a shadow change nothing. Those that differ are counted and kept for
//! the operator.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::Serialize;

use super::recorded::{CallOutcome, RecordedCall};
use crate::policy::contract::identity::ComponentIdentity;

/// The calls that may wait for the shadow. Further ones are left out and counted.
const QUEUE_LENGTH: usize = 256;

/// The disagreements that are kept.
const DISAGREEMENTS_MAX: usize = 100;

/// A candidate component beside a policy.
pub(crate) struct PolicyShadow {
    comparison: Arc<ShadowComparison>,
    calls: SyncSender<Arc<RecordedCall>>,
}

/// What the comparison with the policy found so far.
struct ShadowComparison {
    identity: ComponentIdentity,
    compared: AtomicU64,
    disagreed: AtomicU64,
    left_out: AtomicU64,
    disagreements: Mutex<VecDeque<ShadowDisagreement>>,
}

/// A call whose outcome differs between the policy and its shadow.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ShadowDisagreement {
    /// The call, with the outcome of the policy.
    #[serde(serialize_with = "serialize_shared")]
    call: Arc<RecordedCall>,
    #[serde(rename = "shadow_said")]
    shadow_outcome: CallOutcome,
}

fn serialize_shared<S: serde::Serializer>(
    call: &Arc<RecordedCall>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    call.serialize(serializer)
}

/// The state of a shadow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowStatus {
    /// The name in the component's manifest.
    pub name: String,
    /// The version in the component's manifest.
    pub version: String,
    /// The SHA-256 of the component.
    pub digest: String,
    /// The calls that the shadow repeated.
    pub compared: u64,
    /// The repeated calls with another outcome.
    pub disagreed: u64,
    /// The calls that the shadow was too slow to repeat.
    pub left_out: u64,
}

impl std::fmt::Debug for PolicyShadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyShadow")
            .field("name", &self.comparison.identity.name)
            .finish_non_exhaustive()
    }
}

impl PolicyShadow {
    /// Starts a shadow whose component `repeat` calls. Its thread ends when this value is dropped.
    ///
    /// `repeat` returns `None` for a call of another kind of policy.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(
        identity: ComponentIdentity,
        repeat: impl Fn(&RecordedCall) -> Option<CallOutcome> + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let (calls, received) = sync_channel(QUEUE_LENGTH);
        let comparison = Arc::new(ShadowComparison {
            identity,
            compared: AtomicU64::new(0),
            disagreed: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            disagreements: Mutex::default(),
        });
        let running = Arc::clone(&comparison);
        thread::Builder::new()
            .name("policy-shadow".to_owned())
            .spawn(move || running.run(&received, repeat))?;
        Ok(Arc::new(Self { comparison, calls }))
    }

    /// Has the shadow repeat `call`, or leaves it out if the queue is full.
    pub(super) fn compare(&self, call: &Arc<RecordedCall>) {
        if self.calls.try_send(Arc::clone(call)).is_err() {
            self.comparison.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the SHA-256 of the component.
    pub(crate) fn digest(&self) -> &str {
        &self.comparison.identity.digest
    }

    /// Returns the state of the shadow.
    pub(crate) fn status(&self) -> ShadowStatus {
        let ShadowComparison {
            identity,
            compared,
            disagreed,
            left_out,
            disagreements: _,
        } = &*self.comparison;
        ShadowStatus {
            name: identity.name.clone(),
            version: identity.version.clone(),
            digest: identity.digest.clone(),
            compared: compared.load(Ordering::Relaxed),
            disagreed: disagreed.load(Ordering::Relaxed),
            left_out: left_out.load(Ordering::Relaxed),
        }
    }

    /// Returns the last disagreements, oldest first.
    pub(crate) fn disagreements(&self) -> Vec<ShadowDisagreement> {
        self.comparison.disagreements().iter().cloned().collect()
    }
}

impl ShadowComparison {
    fn run(
        &self,
        calls: &Receiver<Arc<RecordedCall>>,
        repeat: impl Fn(&RecordedCall) -> Option<CallOutcome>,
    ) {
        while let Ok(call) = calls.recv() {
            let Some(outcome) = repeat(&call) else {
                continue;
            };
            if !outcome.agrees_with(&call.outcome) {
                self.record_disagreement(ShadowDisagreement {
                    call,
                    shadow_outcome: outcome,
                });
            }
            // Last, so that a reader of this count also sees the disagreements among these calls.
            self.compared.fetch_add(1, Ordering::Release);
        }
    }

    fn record_disagreement(&self, disagreement: ShadowDisagreement) {
        self.disagreed.fetch_add(1, Ordering::Relaxed);
        let mut disagreements = self.disagreements();
        if disagreements.len() == DISAGREEMENTS_MAX {
            disagreements.pop_front();
        }
        disagreements.push_back(disagreement);
    }

    fn disagreements(&self) -> MutexGuard<'_, VecDeque<ShadowDisagreement>> {
        self.disagreements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
