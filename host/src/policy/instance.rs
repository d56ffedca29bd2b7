//! Instances: one warm one per thread and generation, taken out for a call and put back after it. An instance that
//! trapped is dropped; the next call makes a new one. They go with their generation, whatever thread they were of.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::InstancePre;
use wasmtime::{ResourceLimiter, Result, Store, Trap, UpdateDeadline, bail};

use super::bindings::balancer::tollgate::policy::host;
use super::bindings::balancer::tollgate::policy::types::{Diagnostic, Manifest, Request};
use super::engine::{Engine, TICK};
use super::fault::{Fault, FaultKind};
use super::load::Stamp;
use super::quarantine::{Quarantine, Verdict};
use super::repeat::Call;
use super::slot::Slot;
use super::{Facts, Field};
use crate::config::PolicyKind;
use crate::values::clock::Millis;

/// Places for warm instances of one generation; threads share them where there are more.
const PLACES: usize = 32;

/// A guest is renewed after so many calls, or when it has grown to this part of its memory since it was new: what it leaks
/// has a bound.
const CALLS_MAX: u64 = 1_000_000;
const GROWN: usize = 2;

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
pub(super) trait World: Sized + Send + Sync + 'static {
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
    slot: Arc<Slot>,
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

impl Drop for Guest {
    fn drop(&mut self) {
        self.slot.stats().instance_gone(self.memory);
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: u32, message: String) {
        self.log_lines += 1;
        if self.log_lines > LOG_LINES || !self.slot.may_log() {
            return;
        }
        let end = message.floor_char_boundary(LOG_LINE_BYTES);
        let (policy, text) = (self.slot.tag(), &message[..end]);
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
        self.slot.stats().memory_grew(total - self.memory);
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= 20_000)
    }
}

/// A policy in its slot: a generation that was loaded, or none yet.
pub(super) struct Seat<W: World> {
    slot: Arc<Slot>,
    state: State<W>,
}

enum State<W: World> {
    Loaded(Box<Generation<W>>),
    /// It cannot be called, and why.
    Absent {
        stamp: Stamp,
        reason: String,
    },
}

/// A policy that was loaded: from it come instances for every thread.
pub(super) struct Generation<W: World> {
    pub(super) fields: Vec<Field>,
    pub(super) manifest: Manifest,
    number: u64,
    stamp: Stamp,
    engine: Engine,
    pre: W::Pre,
    config: String,
    timeout: Duration,
    memory: usize,
    quarantine: Quarantine,
    /// It is too slow for the threads that serve requests.
    is_slow: bool,
    places: Box<[Place<W>]>,
}

/// A place for one warm instance, on a cache line of its own.
#[repr(align(128))]
struct Place<W>(Mutex<Option<Box<Instance<W>>>>);

struct Instance<W> {
    store: Store<Guest>,
    world: W,
    calls: u64,
    memory_when_new: usize,
}

thread_local! {
    /// Which place this thread looks at first.
    static PLACE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// How a policy is to be run.
pub(super) struct Setting {
    pub(super) number: u64,
    pub(super) config: String,
    pub(super) timeout: Duration,
    pub(super) memory: usize,
}

/// What is known of a component that was looked at.
pub(super) struct Known {
    pub(super) manifest: Manifest,
    pub(super) fields: Vec<Field>,
    pub(super) stamp: Stamp,
}

/// What is wrong with what a guest answered: told to the operator.
pub(super) struct Bad {
    kind: FaultKind,
    detail: String,
}

impl Bad {
    /// Nobody can use it.
    pub(super) fn output(what: impl std::fmt::Display) -> Self {
        Self { kind: FaultKind::BadOutput, detail: format!("bad output: {what}") }
    }

    /// The guest says itself that it failed.
    pub(super) fn words(words: String) -> Self {
        Self { kind: FaultKind::Failed, detail: words }
    }
}

impl<W: World> Seat<W> {
    pub(super) fn new(slot: &Arc<Slot>, engine: Engine, pre: W::Pre, setting: Setting, known: Known) -> Self {
        let generation = Generation {
            fields: known.fields,
            manifest: known.manifest,
            number: setting.number,
            stamp: known.stamp,
            engine,
            pre,
            config: setting.config,
            timeout: setting.timeout,
            memory: setting.memory,
            quarantine: Quarantine::new(slot.rules(), setting.number > 1),
            is_slow: false,
            places: (0..PLACES).map(|_| Place(Mutex::new(None))).collect(),
        };
        Self { slot: Arc::clone(slot), state: State::Loaded(Box::new(generation)) }
    }

    /// A policy that cannot be called: each call fails at once, for that reason.
    pub(super) fn absent(slot: &Arc<Slot>, reason: String) -> Self {
        let stamp = Stamp { name: slot.tag().to_owned(), version: String::new(), digest: String::new() };
        Self { slot: Arc::clone(slot), state: State::Absent { stamp, reason } }
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    pub(super) fn stamp(&self) -> &Stamp {
        match &self.state {
            State::Loaded(generation) => &generation.stamp,
            State::Absent { stamp, .. } => stamp,
        }
    }

    /// Its number among those of its slot; 0 where there is none yet.
    pub(super) fn number(&self) -> u64 {
        self.loaded().map_or(0, |generation| generation.number)
    }

    pub(super) fn loaded(&self) -> Option<&Generation<W>> {
        match &self.state {
            State::Loaded(generation) => Some(generation),
            State::Absent { .. } => None,
        }
    }

    /// Whether its calls belong on a thread of their own.
    pub(super) fn is_slow(&self) -> bool {
        self.loaded().is_some_and(|generation| generation.is_slow)
    }

    pub(super) fn found_slow(&mut self) {
        if let State::Loaded(generation) = &mut self.state {
            generation.is_slow = true;
        }
    }

    /// For how long it is not called, because it failed too often.
    pub(super) fn barred_for(&self) -> Option<Duration> {
        self.loaded()?.quarantine.barred_for(Instant::now())
    }

    /// Calls that this generation has had.
    pub(super) fn calls(&self) -> u64 {
        self.loaded().map_or(0, |generation| generation.quarantine.calls())
    }

    /// Lets a generation that was barred be called again.
    pub(super) fn lift(&self) {
        if let Some(generation) = self.loaded() {
            generation.quarantine.lift();
        }
    }

    /// The request as this policy asked to see it.
    pub(super) fn request(&self, facts: &Facts<'_>) -> Request {
        let fields = self.loaded().map_or(&[][..], |generation| &generation.fields);
        Request {
            strings: fields.iter().map(|field| facts.field(*field).to_owned()).collect(),
            transport: facts.transport.number(),
            attempt: facts.attempt,
            now_ms: facts.now.0 as f64,
            seed: facts.seed_number(),
            sequence: facts.sequence as f64,
        }
    }

    /// Calls a warm instance of this thread, or a new one, and checks what it answers. What came of it is counted, and
    /// too many faults bar the generation from further calls.
    pub(super) fn call<A, R>(
        &self,
        name: &'static str,
        facts: &Facts<'_>,
        call: impl FnOnce(&mut Store<Guest>, &W) -> Result<A>,
        check: impl FnOnce(A) -> std::result::Result<R, Bad>,
    ) -> std::result::Result<R, Fault> {
        let fault = |kind: FaultKind, detail: String| {
            self.slot.stats().failed(kind);
            Fault::new(&self.slot, name, kind, detail)
        };
        let generation = match &self.state {
            State::Loaded(generation) => generation,
            State::Absent { reason, .. } => return Err(fault(FaultKind::Unavailable, reason.clone())),
        };
        let begun = Instant::now();
        if facts.trial {
            let judged = generation.run(&self.slot, facts, call).and_then(check);
            return judged.map_err(|Bad { kind, detail }| Fault::new(&self.slot, name, kind, detail));
        }
        if let Err(left) = generation.quarantine.admits(begun) {
            let detail = format!("quarantined for another {} ms after too many faults", left.as_millis());
            return Err(fault(FaultKind::Quarantined, detail));
        }
        let answered = generation.run(&self.slot, facts, call);
        let ended = Instant::now();
        self.slot.stats().called(ended - begun);
        let judged = answered.and_then(check);
        let was_misconduct = judged.as_ref().is_err_and(|bad| bad.kind.is_misconduct());
        if generation.quarantine.ended(was_misconduct, ended) == Verdict::Barred {
            tracing::error!(
                policy = self.slot.tag(),
                generation = generation.number,
                digest = generation.stamp.digest,
                "policy quarantined: it failed too often"
            );
            self.slot.tell_of_trouble();
        }
        judged.map_err(|Bad { kind, detail }| fault(kind, detail))
    }

    /// Where its calls are kept: what this one was and came to.
    pub(super) fn kept(
        &self,
        facts: &Facts<'_>,
        begun: Instant,
        asked: super::repeat::Asked,
        said: super::repeat::Said,
    ) -> Call {
        Call {
            policy: self.slot.tag().to_owned(),
            generation: self.number(),
            digest: self.stamp().digest.clone(),
            took_ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
            request: super::repeat::OwnFacts::of(facts),
            asked,
            said,
        }
    }
}

impl<W: World> Generation<W> {
    fn run<R>(
        &self,
        slot: &Arc<Slot>,
        facts: &Facts<'_>,
        call: impl FnOnce(&mut Store<Guest>, &W) -> Result<R>,
    ) -> std::result::Result<R, Bad> {
        let mut instance = match self.take() {
            Some(instance) => instance,
            None => {
                let unavailable = |error: wasmtime::Error| Bad {
                    kind: FaultKind::Unavailable,
                    detail: format!("no instance: {}", root_cause(&error)),
                };
                Box::new(self.build(slot).map_err(unavailable)?)
            }
        };
        let store = &mut instance.store;
        store.data_mut().begin(facts.now, facts.seed);
        store.set_epoch_deadline(store.data().deadline.ticks);
        match call(store, &instance.world) {
            Ok(result) => {
                instance.calls += 1;
                if !instance.is_worn(self.memory) {
                    self.put_back(instance);
                }
                Ok(result)
            }
            Err(error) => Err(self.trapped(&error, instance.store.data())),
        }
    }

    fn trapped(&self, error: &wasmtime::Error, guest: &Guest) -> Bad {
        let (kind, detail) = if guest.memory_exceeded {
            (FaultKind::Memory, format!("memory limit of {} bytes exceeded", self.memory))
        } else if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            (FaultKind::Deadline, format!("deadline exceeded after {} ms", self.timeout.as_millis()))
        } else {
            (FaultKind::Trap, format!("trap: {}{}", root_cause(error), last_words(guest)))
        };
        Bad { kind, detail }
    }

    fn take(&self) -> Option<Box<Instance<W>>> {
        let mut place = lock(self.place())?;
        place.take()
    }

    /// Where its place is taken, another thread that shares it was faster: one warm instance is enough for both.
    fn put_back(&self, instance: Box<Instance<W>>) {
        if let Some(mut place) = lock(self.place()) {
            *place = Some(instance);
        }
    }

    fn place(&self) -> &Place<W> {
        &self.places[PLACE.with(|place| place % PLACES)]
    }

    fn build(&self, slot: &Arc<Slot>) -> Result<Instance<W>> {
        let mut store = new_store(&self.engine, slot, self.timeout, self.memory);
        // A cold instance touches its memory for the first time: give it what loading has.
        store.set_epoch_deadline((LOAD_TIMEOUT.as_millis() / TICK.as_millis()) as u64);
        let world = W::instantiate(&self.pre, &mut store)?;
        if let Err(diagnostics) = world.configure(&mut store, &self.config)? {
            bail!("configuration refused: {}", diagnostics.first().map_or("", |first| &first.message));
        }
        world.prepare(&mut store)?;
        let memory_when_new = store.data().memory;
        Ok(Instance { store, world, calls: 0, memory_when_new })
    }
}

impl<W> Instance<W> {
    /// Whether it is time for a new one.
    fn is_worn(&self, memory_max: usize) -> bool {
        let grown = self.store.data().memory - self.memory_when_new;
        self.calls >= CALLS_MAX || grown > memory_max / GROWN
    }
}

/// What a place holds, unless another thread looks at it at this moment. Nobody waits.
fn lock<W>(place: &Place<W>) -> Option<std::sync::MutexGuard<'_, Option<Box<Instance<W>>>>> {
    match place.0.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A store with every limit set, and nothing in it.
pub(super) fn new_store(engine: &Engine, slot: &Arc<Slot>, timeout: Duration, memory: usize) -> Store<Guest> {
    slot.stats().instance_made();
    let guest = Guest {
        slot: Arc::clone(slot),
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
