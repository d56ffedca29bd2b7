//! Shadows: a newcomer is asked what the policy in service is asked, off the way of requests. What it says changes
//! nothing; where it says something else, that is counted and kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::Serialize;

use super::load::Stamp;
use super::repeat::{Call, Policy, Said};

/// Calls that wait for the newcomer. Past it a call is left out, and counted.
const QUEUE: usize = 256;

/// Disagreements that are kept.
const KEPT: usize = 100;

/// A newcomer beside a policy.
pub struct Shadow {
    shared: Arc<Shared>,
    calls: SyncSender<Arc<Call>>,
}

struct Shared {
    stamp: Stamp,
    compared: AtomicU64,
    disagreed: AtomicU64,
    left_out: AtomicU64,
    kept: Mutex<VecDeque<Disagreement>>,
}

/// Where the newcomer says something else.
#[derive(Debug, Clone, Serialize)]
pub struct Disagreement {
    /// The call, and what the policy in service said.
    #[serde(serialize_with = "shared")]
    pub call: Arc<Call>,
    /// What the newcomer says.
    pub shadow_said: Said,
}

fn shared<S: serde::Serializer>(call: &Arc<Call>, serializer: S) -> Result<S::Ok, S::Error> {
    call.serialize(serializer)
}

/// How a newcomer does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShadowStatus {
    /// Its own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The SHA-256 of its component.
    pub digest: String,
    /// Calls that it was asked, too.
    pub compared: u64,
    /// Those of them where it said something else.
    pub disagreed: u64,
    /// Calls that it was too slow for.
    pub left_out: u64,
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow")
            .field("name", &self.shared.stamp.name)
            .finish_non_exhaustive()
    }
}

impl Shadow {
    /// Runs `policy` as a shadow, in a thread of its own, until this is dropped.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(policy: Policy, stamp: Stamp) -> Result<Arc<Self>, String> {
        let (calls, received) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            stamp,
            compared: AtomicU64::new(0),
            disagreed: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            kept: Mutex::default(),
        });
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.run(&policy, &received)
        };
        let started = thread::Builder::new()
            .name("policy-shadow".to_owned())
            .spawn(run);
        started.map_err(|error| error.to_string())?;
        Ok(Arc::new(Self { shared, calls }))
    }

    pub(super) fn take(&self, call: &Arc<Call>) {
        if self.calls.try_send(Arc::clone(call)).is_err() {
            self.shared.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How it does.
    pub fn status(&self) -> ShadowStatus {
        let Shared {
            stamp,
            compared,
            disagreed,
            left_out,
            ..
        } = &*self.shared;
        ShadowStatus {
            name: stamp.name.clone(),
            version: stamp.version.clone(),
            digest: stamp.digest.clone(),
            compared: compared.load(Ordering::Relaxed),
            disagreed: disagreed.load(Ordering::Relaxed),
            left_out: left_out.load(Ordering::Relaxed),
        }
    }

    /// The last disagreements, oldest first.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}

impl Shared {
    fn run(&self, policy: &Policy, calls: &Receiver<Arc<Call>>) {
        while let Ok(call) = calls.recv() {
            let Some(said) = policy.repeat(&call) else {
                continue;
            };
            if !said.agrees_with(&call.said) {
                self.disagreed.fetch_add(1, Ordering::Relaxed);
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(Disagreement {
                    call,
                    shadow_said: said,
                });
            }
            // Last: whoever sees that so many were compared sees what came of them.
            self.compared.fetch_add(1, Ordering::Release);
        }
    }
}
