//! Instances: one warm one per thread and policy, taken out for a call and put back after it. An instance that
//! trapped is dropped; the next call makes a new one.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::InstancePre;
use wasmtime::{ResourceLimiter, Result, Store, Trap, UpdateDeadline, bail};

use super::bindings::balancer::tollgate::policy::host;
use super::bindings::balancer::tollgate::policy::types::{Diagnostic, Manifest, Request};
use super::engine::{Engine, TICK};
use super::fault::{Fault, FaultKind};
use super::{Facts, Field};
use crate::config::PolicyKind;
use crate::values::clock::Millis;

/// Warm instances of one thread, over all policies; past it the one that was idle longest is dropped.
const WARM_PER_THREAD: usize = 64;

/// A guest is renewed after so many calls: what it leaks has a bound.
const CALLS_MAX: u64 = 1_000_000;

/// What a guest may write to its streams in one call, in bytes.
const OUTPUT_BYTES: usize = 4096;

/// Lines that a guest may log in one call, and the length of each in bytes.
const LOG_LINES: u32 = 16;
const LOG_LINE_BYTES: usize = 1024;

/// However little of the processor a call got, it ends after so many timeouts.
const STARVED_TIMEOUTS: u64 = 200;

/// A call while a policy is loaded may take so long: instances are cold and schemas are written.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// A world of the contract.
pub(super) trait World: Sized + 'static {
    const KIND: PolicyKind;
    type Pre: Send + Sync;

    fn pre(pre: InstancePre<Guest>) -> Result<Self::Pre>;
    fn instantiate(pre: &Self::Pre, store: &mut Store<Guest>) -> Result<Self>;
    fn describe(&self, store: &mut Store<Guest>) -> Result<Manifest>;
    fn configure(&self, store: &mut Store<Guest>, config: &str) -> Result<std::result::Result<(), Vec<Diagnostic>>>;
    /// Tells a new instance what does not change.
    fn prepare(&self, _store: &mut Store<Guest>) -> Result<()> {
        Ok(())
    }
}

macro_rules! world {
    ($world:path, $pre:path, $kind:expr $(, $prepare:item)?) => {
        impl crate::policy::instance::World for $world {
            const KIND: crate::config::PolicyKind = $kind;
            type Pre = $pre;

            fn pre(
                pre: wasmtime::component::InstancePre<crate::policy::instance::Guest>,
            ) -> wasmtime::Result<Self::Pre> {
                <$pre>::new(pre)
            }
            fn instantiate(
                pre: &Self::Pre,
                store: &mut wasmtime::Store<crate::policy::instance::Guest>,
            ) -> wasmtime::Result<Self> {
                pre.instantiate(store)
            }
            fn describe(
                &self,
                store: &mut wasmtime::Store<crate::policy::instance::Guest>,
            ) -> wasmtime::Result<crate::policy::bindings::balancer::tollgate::policy::types::Manifest> {
                self.tollgate_policy_lifecycle().call_describe(store)
            }
            fn configure(
                &self,
                store: &mut wasmtime::Store<crate::policy::instance::Guest>,
                config: &str,
            ) -> wasmtime::Result<
                Result<(), Vec<crate::policy::bindings::balancer::tollgate::policy::types::Diagnostic>>,
            > {
                self.tollgate_policy_lifecycle().call_configure(store, config)
            }
            $($prepare)?
        }
    };
}
pub(super) use world;

/// What the host keeps beside a guest.
pub(super) struct Guest {
    tag: Arc<str>,
    memory_max: usize,
    memory: usize,
    memory_exceeded: bool,
    now: Millis,
    chance: u64,
    output: Vec<u8>,
    log_lines: u32,
    deadline: Deadline,
    /// For a balancer: which pool's members it was told last.
    pub(super) announced: Option<(u64, u64)>,
}

/// A call's deadline. Ticks pass for a thread that is not running, too; a call is stopped for what it used.
struct Deadline {
    timeout: Duration,
    ticks: u64,
    extensions: u64,
    /// The thread's processor time when the ticks ran out first.
    used_at_first: Option<Duration>,
}

impl Deadline {
    fn new(timeout: Duration) -> Self {
        let ticks = (timeout.as_micros().div_ceil(TICK.as_micros()) + 1) as u64;
        Self { timeout, ticks, extensions: 0, used_at_first: None }
    }

    fn begin(&mut self) {
        self.extensions = 0;
        self.used_at_first = None;
    }

    fn expired(&mut self) -> UpdateDeadline {
        self.extensions += 1;
        let used = thread_time();
        let first = *self.used_at_first.get_or_insert(used);
        if used.saturating_sub(first) >= self.timeout / 2 || self.extensions > STARVED_TIMEOUTS {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(self.ticks)
        }
    }
}

fn thread_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

impl Guest {
    pub(super) fn now(&self) -> Millis {
        self.now
    }

    /// The next of the call's random numbers: splitmix64 from its seed.
    pub(super) fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES - self.output.len();
        self.output.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn begin(&mut self, now: Millis, seed: u64) {
        self.now = now;
        self.chance = seed;
        self.output.clear();
        self.log_lines = 0;
        self.deadline.begin();
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: u32, message: String) {
        self.log_lines += 1;
        if self.log_lines > LOG_LINES {
            return;
        }
        let end = message.floor_char_boundary(LOG_LINE_BYTES);
        let (policy, text) = (&*self.tag, &message[..end]);
        match level {
            0 => tracing::error!(policy, "{text}"),
            1 => tracing::warn!(policy, "{text}"),
            2 => tracing::info!(policy, "{text}"),
            3 => tracing::debug!(policy, "{text}"),
            _ => tracing::trace!(policy, "{text}"),
        }
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let total = self.memory.saturating_sub(current).saturating_add(desired);
        if total > self.memory_max {
            self.memory_exceeded = true;
            bail!("memory limit of {} bytes exceeded", self.memory_max);
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= 20_000)
    }
}

/// A policy that was loaded: from it come instances for every thread.
pub(super) struct Seat<W: World> {
    pub(super) tag: Arc<str>,
    pub(super) fields: Vec<Field>,
    pub(super) manifest: Manifest,
    engine: Engine,
    pre: W::Pre,
    config: String,
    timeout: Duration,
    memory: usize,
    /// Unique in the process: the key of its warm instances.
    key: u64,
}

struct Instance<W> {
    store: Store<Guest>,
    world: W,
    calls: u64,
}

thread_local! {
    static WARM: RefCell<Vec<(u64, Box<dyn Any>)>> = const { RefCell::new(Vec::new()) };
}

/// How a policy is to be run.
pub(super) struct Setting {
    pub(super) tag: Arc<str>,
    pub(super) config: String,
    pub(super) timeout: Duration,
    pub(super) memory: usize,
}

impl<W: World> Seat<W> {
    pub(super) fn new(engine: Engine, pre: W::Pre, setting: Setting, manifest: Manifest, fields: Vec<Field>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            tag: setting.tag,
            fields,
            manifest,
            engine,
            pre,
            config: setting.config,
            timeout: setting.timeout,
            memory: setting.memory,
            key: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The request as this policy asked to see it.
    pub(super) fn request(&self, facts: &Facts<'_>) -> Request {
        Request {
            strings: self.fields.iter().map(|field| facts.field(*field).to_owned()).collect(),
            transport: facts.transport.number(),
            attempt: facts.attempt,
            now_ms: facts.now.0 as f64,
            seed: facts.seed_number(),
            sequence: facts.sequence as f64,
        }
    }

    /// Calls a warm instance of this thread, or a new one.
    pub(super) fn call<R>(
        &self,
        name: &'static str,
        facts: &Facts<'_>,
        call: impl FnOnce(&mut Store<Guest>, &W) -> Result<R>,
    ) -> std::result::Result<R, Fault> {
        let mut instance = match self.take() {
            Some(instance) => instance,
            None => self.build().map_err(|error| self.fault(name, FaultKind::Unavailable, format!("{error:#}")))?,
        };
        let store = &mut instance.store;
        store.data_mut().begin(facts.now, facts.seed);
        store.set_epoch_deadline(store.data().deadline.ticks);
        match call(store, &instance.world) {
            Ok(result) => {
                instance.calls += 1;
                if instance.calls < CALLS_MAX {
                    self.put_back(instance);
                }
                Ok(result)
            }
            Err(error) => Err(self.trapped(name, &error, instance.store.data())),
        }
    }

    pub(super) fn fault(&self, call: &'static str, kind: FaultKind, detail: String) -> Fault {
        Fault { tag: self.tag.clone(), call, kind, detail }
    }

    fn trapped(&self, call: &'static str, error: &wasmtime::Error, guest: &Guest) -> Fault {
        let (kind, detail) = if guest.memory_exceeded {
            (FaultKind::Memory, format!("memory limit of {} bytes exceeded", self.memory))
        } else if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            (FaultKind::Deadline, format!("deadline exceeded after {} ms", self.timeout.as_millis()))
        } else {
            (FaultKind::Trap, format!("trap: {}{}", root_cause(error), last_words(guest)))
        };
        self.fault(call, kind, detail)
    }

    fn take(&self) -> Option<Instance<W>> {
        WARM.with_borrow_mut(|warm| {
            let at = warm.iter().rposition(|(key, _)| *key == self.key)?;
            let (_, instance) = warm.remove(at);
            instance.downcast().ok().map(|instance| *instance)
        })
    }

    fn put_back(&self, instance: Instance<W>) {
        WARM.with_borrow_mut(|warm| {
            if warm.len() >= WARM_PER_THREAD {
                warm.remove(0);
            }
            warm.push((self.key, Box::new(instance)));
        });
    }

    fn build(&self) -> Result<Instance<W>> {
        let mut store = new_store(&self.engine, self.tag.clone(), self.timeout, self.memory);
        // A cold instance touches its memory for the first time: give it what loading has.
        store.set_epoch_deadline((LOAD_TIMEOUT.as_millis() / TICK.as_millis()) as u64);
        let world = W::instantiate(&self.pre, &mut store)?;
        if let Err(diagnostics) = world.configure(&mut store, &self.config)? {
            bail!("configuration refused: {}", diagnostics.first().map_or("", |first| &first.message));
        }
        world.prepare(&mut store)?;
        Ok(Instance { store, world, calls: 0 })
    }
}

/// A store with every limit set, and nothing in it.
pub(super) fn new_store(engine: &Engine, tag: Arc<str>, timeout: Duration, memory: usize) -> Store<Guest> {
    let guest = Guest {
        tag,
        memory_max: memory,
        memory: 0,
        memory_exceeded: false,
        now: Millis(0),
        chance: 0,
        output: Vec::new(),
        log_lines: 0,
        deadline: Deadline::new(timeout),
        announced: None,
    };
    let mut store = Store::new(engine.wasmtime(), guest);
    store.limiter(|guest| guest);
    store.epoch_deadline_callback(|mut store| Ok(store.data_mut().deadline.expired()));
    store
}

pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

/// What a guest wrote before it trapped: a panic's message.
pub(super) fn last_words(guest: &Guest) -> String {
    let words = String::from_utf8_lossy(&guest.output);
    let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(" ")) }
}
