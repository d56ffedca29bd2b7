//! The policies of the running gateway: each in its slot, with the generation that serves and the one before it.
//!
//! Owns which generation serves; refuses to know who asks it. Invariant: what serves was loaded, configured and tried; a
//! failure on the way there leaves it as it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Notify;

use crate::config::{Config, PolicyConfig, PolicyId, PolicyKind, PolicySource, Problem};
use crate::policy::{
    Balancer, Engine, EngineError, FaultKind, LoadError, Loading, Policy, Pricer, Rewriter, Rules,
    Shadow, ShadowStatus, Slot, Source, Threads, Urgency,
};
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;

/// The folder of compiled code in `data_dir`.
const CACHE: &str = "compiled";

/// What loading a policy takes.
#[derive(Clone)]
pub(super) struct Workshop {
    engine: Engine,
    /// What the engine's guests may have at most, in bytes.
    memory_max: usize,
    threads: Threads,
    pub(super) trouble: Arc<Notify>,
    pub(super) limits: Arc<Limits>,
}

impl Workshop {
    /// One whose policies may have up to `memory_max` bytes each.
    ///
    /// # Errors
    /// This machine cannot run them.
    pub(super) fn new(memory_max: usize, limits: &Arc<Limits>) -> Result<Self, EngineError> {
        let engine = Engine::of_the_process(memory_max)?;
        let (threads, limits) = (Threads::new(limits), Arc::clone(limits));
        Ok(Self {
            engine,
            memory_max,
            threads,
            trouble: Arc::default(),
            limits,
        })
    }

    /// The same, with compiled code kept in `data_dir`.
    pub(super) fn with_cache(mut self, data_dir: &Path) -> Self {
        self.engine = self
            .engine
            .with_cache(&data_dir.join(CACHE), self.limits.policy_cache_bytes);
        self
    }

    /// The same, within other bounds.
    pub(super) fn with_limits(&self, limits: &Arc<Limits>) -> Self {
        Self {
            limits: Arc::clone(limits),
            ..self.clone()
        }
    }

    /// A slot for `policy`, and what is told beside it.
    ///
    /// # Errors
    /// Its calls cannot be recorded, or its shadow cannot be used; the text names which.
    pub(super) fn slot(&self, policy: &PolicyConfig) -> Result<Arc<Slot>, LoadError> {
        let failed = |reason: String| LoadError::Component {
            tag: policy.tag.clone(),
            stage: "use it",
            reason,
        };
        let slot = Slot::new(policy, &self.limits, &self.threads, &self.trouble).map_err(failed)?;
        slot.set_shadow(self.shadow(policy)?);
        Ok(slot)
    }

    /// The newcomer beside `policy`, where there is to be one.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn shadow(&self, policy: &PolicyConfig) -> Result<Option<Arc<Shadow>>, LoadError> {
        let Some(path) = &policy.shadow else {
            return Ok(None);
        };
        let newcomer = PolicyConfig {
            tag: format!("{} (shadow)", policy.tag),
            source: PolicySource::File(path.clone()),
            shadow: None,
            record: None,
            ..policy.clone()
        };
        let loaded = crate::policy::load_alone(&self.engine, &newcomer)?;
        let stamp = loaded.stamp().clone();
        let started = Shadow::start(loaded, stamp);
        let failed = |reason| LoadError::Component {
            tag: newcomer.tag.clone(),
            stage: "run it",
            reason,
        };
        started.map(Some).map_err(failed)
    }

    /// Loads a generation.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn load(
        &self,
        policy: &PolicyConfig,
        source: &Source,
        slot: &Arc<Slot>,
        generation: u64,
        urgency: Urgency,
        progress: &Progress,
    ) -> Result<Policy, LoadError> {
        if policy.memory > self.memory_max {
            let path = format!("{}.memory", policy.path_in_config);
            let (most, found) = (self.memory_max, policy.memory);
            let message =
                format!("expected at most {most} until the gateway is started anew, found {found}");
            return Err(LoadError::Config(vec![Problem::new(path, message)]));
        }
        let tell = |stage: &'static str| progress.at(stage);
        let begun = Instant::now();
        let loaded = Policy::load(
            &self.engine,
            policy,
            source,
            &Loading {
                slot,
                generation,
                urgency,
                progress: &tell,
            },
        )?;
        let stamp = loaded.stamp();
        tracing::debug!(
            policy = policy.tag,
            generation,
            name = stamp.name,
            version = stamp.version,
            digest = stamp.digest,
            took_ms = begun.elapsed().as_millis() as u64,
            "policy loaded"
        );
        Ok(loaded)
    }
}

/// How far a load is, for whoever wants to know.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<(&'static str, Instant)>>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(("reading", Instant::now()))))
    }

    fn at(&self, stage: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = stage;
    }

    /// What is being done, and since when it all goes on.
    pub(super) fn told(&self) -> (&'static str, Duration) {
        let (stage, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (stage, since.elapsed())
    }
}

/// A policy in its slot.
pub(super) struct Entry {
    pub(super) config: PolicyConfig,
    pub(super) slot: Arc<Slot>,
    pub(super) current: Policy,
    /// The last good one before it.
    pub(super) before: Option<Policy>,
    /// A newer one, which failed too often and waits to be tried again.
    pub(super) benched: Option<Benched>,
    /// The last number that was given to a generation.
    pub(super) numbered: u64,
    pub(super) progress: Option<Progress>,
    pub(super) last: Option<LastReload>,
    pub(super) reloads: Reloads,
}

/// Reloads by what came of them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Reloads {
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// To the generation before: because an operator said so, or because the newer one failed too often.
    pub(super) back: u64,
}

/// A generation that was taken out of service.
pub(super) struct Benched {
    pub(super) policy: Policy,
    pub(super) until: Instant,
    /// How often it was taken out.
    pub(super) times: u32,
}

impl Benched {
    /// Whether it serves again, on probation.
    fn is_tried(&self) -> bool {
        self.until > Instant::now() + FAR / 2
    }
}

/// What came of the last reload.
#[derive(Debug, Clone, Serialize)]
pub struct LastReload {
    /// When, in Unix milliseconds.
    pub at: u64,
    /// `ok`, `unchanged`, `failed`, `rolled_back`, `taken_back` or `tried_again`.
    pub outcome: &'static str,
    /// The generation that serves since, or still.
    pub generation: u64,
    /// Why it failed or was taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From the first look at the file to serving, in milliseconds.
    pub took_ms: u64,
}

impl LastReload {
    pub(super) fn now(
        outcome: &'static str,
        generation: u64,
        reason: Option<String>,
        took: Duration,
    ) -> Self {
        Self {
            at: Timestamp::now().0,
            outcome,
            generation,
            reason,
            took_ms: took.as_millis() as u64,
        }
    }

    /// Whether what was asked for is so.
    pub(super) fn is_good(&self) -> bool {
        self.outcome != "failed"
    }
}

impl Entry {
    pub(super) fn new(config: PolicyConfig, slot: Arc<Slot>, current: Policy) -> Self {
        let numbered = current.conduct().generation;
        Self {
            config,
            slot,
            current,
            before: None,
            benched: None,
            numbered,
            progress: None,
            last: None,
            reloads: Reloads::default(),
        }
    }

    /// The generation that serves.
    pub(super) fn generation(&self) -> u64 {
        self.current.conduct().generation
    }

    /// `loaded` serves from now on. What served is kept, to go back to, where it ever served.
    pub(super) fn take_in(&mut self, loaded: Policy, took: Duration) {
        self.benched = None;
        let served = std::mem::replace(&mut self.current, loaded);
        if served.conduct().generation > 0 {
            self.before = Some(served);
        }
        self.reloads.ok += 1;
        self.last = Some(LastReload::now("ok", self.generation(), None, took));
    }

    /// A load failed: what serves goes on.
    pub(super) fn failed(&mut self, reason: String, took: Duration) {
        self.reloads.failed += 1;
        self.last = Some(LastReload::now(
            "failed",
            self.generation(),
            Some(reason),
            took,
        ));
    }

    /// Goes back to the generation before.
    pub(super) fn roll_back(&mut self) -> Result<(), String> {
        let Some(before) = self.before.take() else {
            return Err("there is no generation before this one".to_owned());
        };
        before.lift();
        self.benched = None;
        self.before = Some(std::mem::replace(&mut self.current, before));
        self.reloads.back += 1;
        self.last = Some(LastReload::now(
            "rolled_back",
            self.generation(),
            None,
            Duration::ZERO,
        ));
        Ok(())
    }

    /// Where what serves is quarantined and there is a good one before it, that serves again; the other is tried again
    /// later. Answers whether it is so.
    pub(super) fn take_back(&mut self, rules: Rules, now: Instant) -> bool {
        if self.current.conduct().barred_for.is_none() {
            return false;
        }
        let is_good = |policy: &Policy| policy.conduct().barred_for.is_none();
        let Some(before) = self.before.take_if(|before| is_good(before)) else {
            return false;
        };
        let times = self.benched.take().map_or(0, |benched| benched.times);
        let failed = std::mem::replace(&mut self.current, before);
        self.reloads.back += 1;
        let reason = format!(
            "generation {} failed too often",
            failed.conduct().generation
        );
        self.last = Some(LastReload::now(
            "taken_back",
            self.generation(),
            Some(reason),
            Duration::ZERO,
        ));
        self.benched = Some(Benched {
            policy: failed,
            until: now + rules.pause(times),
            times: times + 1,
        });
        true
    }

    /// Whether a generation that was tried again has passed its probation by now.
    pub(super) fn is_proven(&mut self) -> bool {
        let is_tried = self.benched.as_ref().is_some_and(Benched::is_tried);
        let proven = is_tried && self.current.conduct().is_proven;
        if proven {
            self.benched = None;
        }
        proven
    }

    /// A generation whose time on the bench is over serves again, on probation. Answers whether it is so.
    pub(super) fn try_again(&mut self, now: Instant) -> bool {
        let Some(benched) = self.benched.as_mut().filter(|benched| benched.until <= now) else {
            return false;
        };
        // For what it does from here on; how often it was taken out stays known.
        benched.until = now + FAR;
        let policy = benched.policy.clone();
        policy.try_anew();
        self.before = Some(std::mem::replace(&mut self.current, policy));
        self.last = Some(LastReload::now(
            "tried_again",
            self.generation(),
            None,
            Duration::ZERO,
        ));
        true
    }
}

/// Longer than any gateway runs.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The policies, in the order of the configuration: [`PolicyId`] is an index.
#[derive(Default)]
pub(super) struct Policies {
    pub(super) entries: Vec<Entry>,
}

impl Policies {
    pub(super) fn named(&mut self, tag: &str) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.config.tag == tag)
    }

    // The resolved configuration refers to policies only by ids of the right kind.

    pub(super) fn balancer(&self, id: PolicyId) -> Arc<Balancer> {
        let Policy::Balancer(balancer) = &self.entries[id.0].current else {
            unreachable!("resolved as a balancer")
        };
        Arc::clone(balancer)
    }

    pub(super) fn rewriter(&self, id: PolicyId) -> Arc<Rewriter> {
        let Policy::Rewriter(rewriter) = &self.entries[id.0].current else {
            unreachable!("resolved as a rewriter")
        };
        Arc::clone(rewriter)
    }

    pub(super) fn pricer(&self, id: PolicyId) -> Arc<Pricer> {
        let Policy::Pricer(pricer) = &self.entries[id.0].current else {
            unreachable!("resolved as a pricer")
        };
        Arc::clone(pricer)
    }

    /// How they are.
    pub(super) fn status(&self) -> Vec<PolicyStatus> {
        self.entries.iter().map(Entry::status).collect()
    }
}

/// How a policy is.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyStatus {
    /// Its tag.
    pub tag: String,
    /// `balancer`, `rewriter` or `pricer`.
    pub kind: &'static str,
    /// Its file, or `builtin:NAME`.
    pub source: String,
    /// What the component calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its SHA-256.
    pub digest: String,
    /// The generation that serves; 0 where none does yet.
    pub generation: u64,
    /// The one that `rollback` goes back to.
    pub generation_before: Option<u64>,
    /// `serving`, `loading`, `failed`, `quarantined` or `on_probation`.
    pub state: &'static str,
    /// What is being loaded, and for how long already, in milliseconds.
    pub loading: Option<(&'static str, u64)>,
    /// Calls of all generations.
    pub calls: u64,
    /// Requests that it refused on purpose.
    pub refusals: u64,
    /// Faults by kind; those that did not happen are left out.
    pub faults: BTreeMap<&'static str, u64>,
    /// How long calls took, in microseconds.
    pub call_us: CallTimes,
    /// Whether calls run on threads of their own.
    pub slow: bool,
    /// Warm instances.
    pub instances: u64,
    /// Their linear memory, in bytes.
    pub memory_bytes: u64,
    /// Lines of its log that were left out.
    pub unlogged: u64,
    /// Calls that could not be recorded.
    pub unrecorded: u64,
    /// What came of the last reload.
    pub last_reload: Option<LastReload>,
    /// How the newcomer beside it does.
    pub shadow: Option<ShadowStatus>,
}

/// How long calls took, in microseconds; none where there were none.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CallTimes {
    /// Half of them took at most so long.
    pub p50: Option<f64>,
    /// 99 of 100 did.
    pub p99: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
}

impl Entry {
    fn status(&self) -> PolicyStatus {
        let (stats, conduct, stamp) = (
            self.slot.stats(),
            self.current.conduct(),
            self.current.stamp(),
        );
        let micros = |span: Duration| span.as_nanos() as f64 / 1e3;
        let time = stats.time();
        let loading = self.progress.as_ref().map(|progress| {
            let (stage, since) = progress.told();
            (stage, since.as_millis() as u64)
        });
        let failed = self.last.as_ref().is_some_and(|last| !last.is_good());
        PolicyStatus {
            tag: self.config.tag.clone(),
            kind: match self.config.kind {
                PolicyKind::Balancer => "balancer",
                PolicyKind::Rewriter => "rewriter",
                PolicyKind::Pricer => "pricer",
            },
            source: match &self.config.source {
                PolicySource::Shipped(name) => format!("builtin:{name}"),
                PolicySource::File(path) => path.display().to_string(),
            },
            name: stamp.name.clone(),
            version: stamp.version.clone(),
            digest: stamp.digest.clone(),
            generation: conduct.generation,
            generation_before: self
                .before
                .as_ref()
                .map(|before| before.conduct().generation),
            state: match () {
                () if conduct.barred_for.is_some() => "quarantined",
                () if conduct.generation == 0 && loading.is_some() => "loading",
                () if conduct.generation == 0 && failed => "failed",
                () if self.benched.as_ref().is_some_and(Benched::is_tried) => "on_probation",
                () => "serving",
            },
            loading,
            calls: stats.calls(),
            refusals: stats.refusals(),
            faults: FaultKind::ALL
                .into_iter()
                .map(|kind| (kind.as_str(), stats.faults(kind)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            call_us: CallTimes {
                p50: time.quantile(0.5).map(micros),
                p99: time.quantile(0.99).map(micros),
                max: (time.count() > 0).then(|| micros(time.max())),
            },
            slow: conduct.is_slow,
            instances: stats.instances(),
            memory_bytes: stats.memory_bytes(),
            unlogged: stats.unlogged(),
            unrecorded: self.slot.unrecorded(),
            last_reload: self.last.clone(),
            shadow: self.slot.shadow().map(|shadow| shadow.status()),
        }
    }
}

/// The memory that any guest of `config` may have: the engine's pool is made for it.
pub(super) fn memory_max(config: &Config) -> usize {
    let largest = config.policies.iter().map(|policy| policy.memory).max();
    largest
        .unwrap_or_default()
        .max(crate::config::POLICY_MEMORY)
}
