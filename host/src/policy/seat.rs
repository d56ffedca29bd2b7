//! Seats: a generation in its slot, with one warm instance per thread, taken out for a call and put back after it.
//!
//! Owns what a call is, from the quarantine to the count. Invariant: an instance that trapped is never entered again, and
//! instances go with their generation, whatever thread they were of.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use wasmtime::{Result, Store, Trap, bail};

use super::bindings::balancer::tollgate::policy::types::{Manifest, Request};
use super::engine::Engine;
use super::fault::{Fault, FaultKind};
use super::instance::{Guest, World, last_words, new_store, root_cause};
use super::load::Stamp;
use super::quarantine::{Quarantine, Verdict};
use super::repeat::{Asked, Call, OwnFacts, Said};
use super::slot::Slot;
use super::{Facts, Field};

/// So many slow calls in a row, and a component is.
const SLOW_CALLS: u32 = 16;

/// Places for warm instances of one generation; threads share them where there are more.
const PLACES: usize = 32;

/// A guest is renewed after so many calls, or when it has grown to this part of its memory since it was new: what it leaks
/// has a bound.
const CALLS_MAX: u64 = 1_000_000;
const GROWN: usize = 2;

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
    is_slow: AtomicBool,
    /// Calls in a row that were.
    slow_calls: AtomicU32,
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
        Self {
            kind: FaultKind::BadOutput,
            detail: format!("bad output: {what}"),
        }
    }

    /// The guest says itself that it failed.
    pub(super) fn words(words: String) -> Self {
        Self {
            kind: FaultKind::Failed,
            detail: words,
        }
    }
}

impl<W: World> Seat<W> {
    pub(super) fn new(
        slot: &Arc<Slot>,
        engine: Engine,
        pre: W::Pre,
        setting: Setting,
        known: Known,
    ) -> Self {
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
            is_slow: AtomicBool::new(false),
            slow_calls: AtomicU32::new(0),
            places: (0..PLACES).map(|_| Place(Mutex::new(None))).collect(),
        };
        Self {
            slot: Arc::clone(slot),
            state: State::Loaded(Box::new(generation)),
        }
    }

    /// A policy that cannot be called: each call fails at once, for that reason.
    pub(super) fn absent(slot: &Arc<Slot>, reason: String) -> Self {
        let stamp = Stamp {
            name: slot.tag().to_owned(),
            version: String::new(),
            digest: String::new(),
        };
        Self {
            slot: Arc::clone(slot),
            state: State::Absent { stamp, reason },
        }
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
        self.loaded()
            .is_some_and(|generation| generation.is_slow.load(Ordering::Relaxed))
    }

    pub(super) fn found_slow(&self) {
        if let Some(generation) = self.loaded() {
            generation.is_slow.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it has had its first calls, or has none before it to go back to.
    pub(super) fn is_proven(&self) -> bool {
        self.loaded()
            .is_some_and(|generation| generation.quarantine.is_proven())
    }

    /// For how long it is not called, because it failed too often.
    pub(super) fn barred_for(&self) -> Option<Duration> {
        self.loaded()?.quarantine.barred_for(Instant::now())
    }

    /// Lets a generation that was barred be called again.
    pub(super) fn lift(&self) {
        if let Some(generation) = self.loaded() {
            generation.quarantine.lift();
        }
    }

    /// Lets a generation that was barred be called again, and prove itself again.
    pub(super) fn try_anew(&self) {
        if let Some(generation) = self.loaded() {
            generation.quarantine.try_anew();
        }
    }

    /// The request as this policy asked to see it.
    pub(super) fn request(&self, facts: &Facts<'_>) -> Request {
        let fields = self
            .loaded()
            .map_or(&[][..], |generation| &generation.fields);
        Request {
            strings: fields
                .iter()
                .map(|field| facts.field(*field).to_owned())
                .collect(),
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
            State::Absent { reason, .. } => {
                return Err(fault(FaultKind::Unavailable, reason.clone()));
            }
        };
        let begun = Instant::now();
        if facts.trial {
            let judged = generation
                .run(&self.slot, facts, begun, call)
                .and_then(check);
            return judged
                .map_err(|Bad { kind, detail }| Fault::new(&self.slot, name, kind, detail));
        }
        if let Err(left) = generation.quarantine.admits(begun) {
            let detail = format!(
                "quarantined for another {} ms after too many faults",
                left.as_millis()
            );
            return Err(fault(FaultKind::Quarantined, detail));
        }
        let answered = generation.run(&self.slot, facts, begun, call);
        let ended = Instant::now();
        self.slot.stats().called(ended - begun);
        generation.took(ended - begun, &self.slot);
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
    pub(super) fn kept(&self, facts: &Facts<'_>, begun: Instant, asked: Asked, said: Said) -> Call {
        Call {
            policy: self.slot.tag().to_owned(),
            generation: self.number(),
            digest: self.stamp().digest.clone(),
            took_ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
            request: OwnFacts::of(facts),
            asked,
            said,
        }
    }
}

impl<W: World> Generation<W> {
    /// A component may be slow for requests though it was not when it was tried. One call says nothing: its thread may have
    /// had to wait.
    fn took(&self, span: Duration, slot: &Slot) {
        if span <= slot.slow_after() {
            if self.slow_calls.load(Ordering::Relaxed) > 0 {
                self.slow_calls.store(0, Ordering::Relaxed);
            }
        } else if self.slow_calls.fetch_add(1, Ordering::Relaxed) + 1 == SLOW_CALLS {
            tracing::warn!(
                policy = slot.tag(),
                generation = self.number,
                "a slow policy: it runs on policy threads"
            );
            self.is_slow.store(true, Ordering::Relaxed);
        }
    }

    fn run<R>(
        &self,
        slot: &Arc<Slot>,
        facts: &Facts<'_>,
        begun: Instant,
        call: impl FnOnce(&mut Store<Guest>, &W) -> Result<R>,
    ) -> std::result::Result<R, Bad> {
        let mut instance = match self.take() {
            Some(instance) => instance,
            None => {
                let failed = |error: wasmtime::Error| Bad {
                    kind: FaultKind::Trap,
                    detail: format!("no instance: {}", root_cause(&error)),
                };
                Box::new(self.build(slot).map_err(failed)?)
            }
        };
        let store = &mut instance.store;
        store
            .data_mut()
            .begin(facts.now, facts.seed, self.timeout, begun);
        let _watched = self.engine.watch(store);
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
        let (kind, detail) = if guest.exceeded_memory() {
            (
                FaultKind::Memory,
                format!("memory limit of {} bytes exceeded", self.memory),
            )
        } else if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            (
                FaultKind::Deadline,
                format!("deadline exceeded after {} ms", self.timeout.as_millis()),
            )
        } else {
            (
                FaultKind::Trap,
                format!("trap: {}{}", root_cause(error), last_words(guest)),
            )
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
        // A cold instance touches its memory for the first time: it has the time that loading has.
        let mut store = new_store(&self.engine, slot, self.memory);
        let _watched = self.engine.watch(&mut store);
        let world = W::instantiate(&self.pre, &mut store)?;
        if let Err(diagnostics) = world.configure(&mut store, &self.config)? {
            bail!(
                "configuration refused: {}",
                diagnostics.first().map_or("", |first| &first.message)
            );
        }
        world.prepare(&mut store)?;
        let memory_when_new = store.data().memory();
        Ok(Instance {
            store,
            world,
            calls: 0,
            memory_when_new,
        })
    }
}

impl<W> Instance<W> {
    /// Whether it is time for a new one.
    fn is_worn(&self, memory_max: usize) -> bool {
        let grown = self.store.data().memory() - self.memory_when_new;
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
