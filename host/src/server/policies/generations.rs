//! Which generation of each policy serves, and which one a rollback or a failure returns to.
//!
//! Owns the changes from one generation to another. Does not load any. Invariant: the generation
//! that serves changes only through the methods of [`PolicyEntry`], each of which notes it in
//! [`LastReload`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::last_reload::{LastReload, ReloadOutcome};
use super::loader::LoadProgress;
use crate::config::{PolicyConfig, PolicyId};
use crate::policy::{
    BalancerGeneration, PolicyGeneration, PricerGeneration, RewriterGeneration, SharedPolicyState,
};

/// A configured policy and its generations.
pub(crate) struct PolicyEntry {
    config: PolicyConfig,
    shared: Arc<SharedPolicyState>,
    current: PolicyGeneration,
    /// The last good generation before `current`.
    previous: Option<PolicyGeneration>,
    suspended: Option<SuspendedGeneration>,
    /// The highest number that a generation has.
    last_number: u64,
    loading: Option<LoadProgress>,
    last_reload: Option<LastReload>,
    reloads: ReloadCounts,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ReloadCounts {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    /// Returns to the generation before, by an operator or after failures.
    pub(crate) back: u64,
}

/// A generation that failed too often and was replaced by the one before it.
struct SuspendedGeneration {
    policy: PolicyGeneration,
    /// When it serves again; `None` while it does, on probation.
    retry_at: Option<Instant>,
    /// How often it was suspended.
    times: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GenerationChange {
    /// The current generation failed too often; the one before it serves.
    FellBack,
    /// A suspended generation serves again, on probation.
    Retried,
    /// A retried generation has passed its probation.
    Confirmed,
}

/// There is no generation to roll back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoPreviousGeneration;

impl PolicyEntry {
    pub(crate) fn new(
        config: PolicyConfig,
        shared: Arc<SharedPolicyState>,
        current: PolicyGeneration,
    ) -> Self {
        Self {
            last_number: current.status().generation,
            config,
            shared,
            current,
            previous: None,
            suspended: None,
            loading: None,
            last_reload: None,
            reloads: ReloadCounts::default(),
        }
    }

    /// Returns an entry whose first generation is still being loaded.
    pub(crate) fn loading(
        config: PolicyConfig,
        shared: Arc<SharedPolicyState>,
        progress: LoadProgress,
    ) -> Self {
        let reason = "its component is still being compiled".to_owned();
        let absent = PolicyGeneration::unavailable(&config, &shared, reason);
        Self {
            loading: Some(progress),
            ..Self::new(config, shared, absent)
        }
    }

    pub(crate) fn tag(&self) -> &str {
        &self.config.tag
    }

    pub(crate) fn config(&self) -> &PolicyConfig {
        &self.config
    }

    pub(crate) fn shared(&self) -> &Arc<SharedPolicyState> {
        &self.shared
    }

    pub(crate) fn current(&self) -> &PolicyGeneration {
        &self.current
    }

    /// The number of the generation that serves; 0 if none was loaded yet.
    pub(crate) fn generation(&self) -> u64 {
        self.current.status().generation
    }

    pub(crate) fn previous_generation(&self) -> Option<u64> {
        self.previous
            .as_ref()
            .map(|previous| previous.status().generation)
    }

    /// The number for the next generation.
    pub(crate) fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// The digest of the component that serves, if one does.
    pub(crate) fn serving_digest(&self) -> Option<String> {
        (self.generation() > 0).then(|| self.current.identity().digest.clone())
    }

    pub(crate) fn load_progress(&self) -> Option<&LoadProgress> {
        self.loading.as_ref()
    }

    pub(crate) fn last_reload(&self) -> Option<&LastReload> {
        self.last_reload.as_ref()
    }

    pub(crate) fn reloads(&self) -> ReloadCounts {
        self.reloads
    }

    /// Notes that a load has begun.
    pub(crate) fn begin_load(&mut self) -> LoadProgress {
        let progress = LoadProgress::new();
        self.loading = Some(progress.clone());
        progress
    }

    /// Notes that a load has ended, whatever its outcome.
    pub(crate) fn end_load(&mut self) {
        self.loading = None;
    }

    /// Lets `loaded` serve. The generation that served until now is kept for a rollback.
    pub(crate) fn install(&mut self, loaded: PolicyGeneration, took: Duration) {
        self.last_number = self.last_number.max(loaded.status().generation);
        self.suspended = None;
        let served = std::mem::replace(&mut self.current, loaded);
        if served.status().generation > 0 {
            self.previous = Some(served);
        }
        self.reloads.ok += 1;
        self.note(ReloadOutcome::Ok, None, took);
    }

    /// Notes a failed load. The current generation keeps serving; if there is none, requests fail
    /// with `reason`.
    pub(crate) fn load_failed(&mut self, reason: String, took: Duration) {
        if self.generation() == 0 {
            let reason = format!("its component cannot be used: {reason}");
            self.current = PolicyGeneration::unavailable(&self.config, &self.shared, reason);
        }
        self.reloads.failed += 1;
        self.note(ReloadOutcome::Failed, Some(reason), took);
    }

    /// Returns to the generation before the current one, which a second call returns to.
    pub(crate) fn roll_back(&mut self) -> Result<(), NoPreviousGeneration> {
        let previous = self.previous.take().ok_or(NoPreviousGeneration)?;
        previous.close_breaker();
        self.suspended = None;
        self.previous = Some(std::mem::replace(&mut self.current, previous));
        self.reloads.back += 1;
        self.note(ReloadOutcome::RolledBack, None, Duration::ZERO);
        Ok(())
    }

    /// Applies a changed configuration. `new` is what had to be loaded for it; if it is `None`, the
    /// generations stay. Returns the entry that serves from now on, and the entry that it replaces.
    fn reconfigure(mut self, config: PolicyConfig, new: Option<Self>) -> (Self, Option<Self>) {
        match new {
            Some(new) if Arc::ptr_eq(&self.shared, &new.shared) => {
                self.config = config;
                self.loading = None;
                self.install(new.current, Duration::ZERO);
                (self, None)
            }
            Some(new) => (new, Some(self)),
            None => {
                self.config = config;
                (self, None)
            }
        }
    }

    /// Falls back from a generation that failed too often, and retries a suspended one when its
    /// pause is over.
    pub(crate) fn review(&mut self, now: Instant) -> Option<GenerationChange> {
        if self.fall_back(now) {
            Some(GenerationChange::FellBack)
        } else if self.confirm_retried() {
            Some(GenerationChange::Confirmed)
        } else if self.retry_suspended(now) {
            Some(GenerationChange::Retried)
        } else {
            None
        }
    }

    /// When a suspended generation is due to be retried.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.suspended.as_ref()?.retry_at
    }

    /// Whether the current generation was suspended before and has yet to pass its probation.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.suspended
            .as_ref()
            .is_some_and(|suspended| suspended.retry_at.is_none())
    }

    fn fall_back(&mut self, now: Instant) -> bool {
        if !is_barred(&self.current) {
            return false;
        }
        let Some(previous) = self.previous.take_if(|previous| !is_barred(previous)) else {
            return false;
        };
        let times = self.suspended.take().map_or(0, |suspended| suspended.times);
        let failed = std::mem::replace(&mut self.current, previous);
        let number = failed.status().generation;
        self.suspended = Some(SuspendedGeneration {
            policy: failed,
            retry_at: Some(now + self.shared.breaker_rules().pause(times)),
            times: times + 1,
        });
        self.reloads.back += 1;
        let reason = format!("generation {number} failed too often");
        self.note(ReloadOutcome::TakenBack, Some(reason), Duration::ZERO);
        true
    }

    fn confirm_retried(&mut self) -> bool {
        let is_confirmed = self.is_on_probation() && self.current.status().has_passed_probation;
        if is_confirmed {
            self.suspended = None;
        }
        is_confirmed
    }

    fn retry_suspended(&mut self, now: Instant) -> bool {
        let Some(suspended) = &mut self.suspended else {
            return false;
        };
        if suspended.retry_at.is_none_or(|retry_at| retry_at > now) {
            return false;
        }
        // The entry stays, so that `times` counts the next suspension too.
        suspended.retry_at = None;
        let policy = suspended.policy.clone();
        policy.restart_probation();
        self.previous = Some(std::mem::replace(&mut self.current, policy));
        self.note(ReloadOutcome::TriedAgain, None, Duration::ZERO);
        true
    }

    fn note(&mut self, outcome: ReloadOutcome, reason: Option<String>, took: Duration) {
        self.last_reload = Some(LastReload::now(outcome, self.generation(), reason, took));
    }
}

fn is_barred(policy: &PolicyGeneration) -> bool {
    policy.status().breaker_open_for.is_some()
}

/// The policies in the order of the configuration: a [`PolicyId`] is an index.
#[derive(Default)]
pub(crate) struct PolicyTable {
    entries: Vec<PolicyEntry>,
}

impl PolicyTable {
    pub(crate) fn push(&mut self, entry: PolicyEntry) {
        self.entries.push(entry);
    }

    pub(crate) fn entries(&self) -> &[PolicyEntry] {
        &self.entries
    }

    pub(crate) fn entries_mut(&mut self) -> &mut [PolicyEntry] {
        &mut self.entries
    }

    pub(crate) fn find(&self, tag: &str) -> Option<&PolicyEntry> {
        self.entries.iter().find(|entry| entry.tag() == tag)
    }

    pub(crate) fn find_mut(&mut self, tag: &str) -> Option<&mut PolicyEntry> {
        self.entries.iter_mut().find(|entry| entry.tag() == tag)
    }

    /// Applies a changed configuration: all its policies, and for each what had to be loaded.
    ///
    /// Returns the entries that are no longer in use. Dropping one waits until its record is
    /// written: drop them after the lock of this table is released.
    #[must_use]
    pub(crate) fn reconfigure(
        &mut self,
        policies: Vec<(PolicyConfig, Option<PolicyEntry>)>,
    ) -> Vec<PolicyEntry> {
        let mut known = std::mem::take(&mut self.entries);
        let mut replaced = Vec::new();
        for (policy, new) in policies {
            let place = known.iter().position(|entry| entry.tag() == policy.tag);
            let known = place.map(|place| known.swap_remove(place));
            self.entries.push(match (known, new) {
                (Some(known), new) => {
                    let (entry, old) = known.reconfigure(policy, new);
                    replaced.extend(old);
                    entry
                }
                (None, Some(new)) => new,
                (None, None) => unreachable!("a policy that is not known was loaded"),
            });
        }
        replaced.extend(known);
        replaced
    }

    // The resolved configuration refers to each policy by an id of the right kind.

    pub(crate) fn balancer(&self, id: PolicyId) -> Arc<BalancerGeneration> {
        let PolicyGeneration::Balancer(balancer) = &self.entries[id.0].current else {
            unreachable!("resolved as a balancer")
        };
        Arc::clone(balancer)
    }

    pub(crate) fn rewriter(&self, id: PolicyId) -> Arc<RewriterGeneration> {
        let PolicyGeneration::Rewriter(rewriter) = &self.entries[id.0].current else {
            unreachable!("resolved as a rewriter")
        };
        Arc::clone(rewriter)
    }

    pub(crate) fn pricer(&self, id: PolicyId) -> Arc<PricerGeneration> {
        let PolicyGeneration::Pricer(pricer) = &self.entries[id.0].current else {
            unreachable!("resolved as a pricer")
        };
        Arc::clone(pricer)
    }
}
