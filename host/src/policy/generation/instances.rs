//! The warm instances of a generation: each thread takes one for a call and puts it back
//! afterwards.
//!
//! Invariant: an instance that trapped is never entered again, and all instances are dropped
//! together with their generation.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use wasmtime::{Result, Store, Trap, bail};

use super::shared::SharedPolicyState;
use crate::policy::contract::facts::RequestFacts;
use crate::policy::engine::PolicyEngine;
use crate::policy::engine::fault::{CallFailure, FaultKind};
use crate::policy::engine::guest::GuestState;
use crate::policy::engine::world::PolicyWorld;

/// The warm instances of one generation. If there are more threads, they share them.
const WARM_INSTANCES_MAX: usize = 32;

/// An instance is replaced after this many calls, so that what it leaks has a bound.
const CALLS_MAX: u64 = 1_000_000;

/// An instance is replaced when its memory has grown by this fraction of its limit.
const GROWTH_DIVISOR: usize = 2;

/// Creates and keeps the instances of one generation.
pub(super) struct InstancePool<W: PolicyWorld> {
    engine: PolicyEngine,
    linked: W::Linked,
    /// The policy's configuration as JSON.
    config: String,
    timeout: Duration,
    memory_bytes_max: usize,
    warm: Box<[WarmInstanceCell<W>]>,
}

/// Room for one warm instance, on its own cache line.
#[repr(align(128))]
struct WarmInstanceCell<W>(Mutex<Option<Box<WarmInstance<W>>>>);

struct WarmInstance<W> {
    store: Store<GuestState>,
    world: W,
    calls: u64,
    memory_bytes_when_new: usize,
}

thread_local! {
    /// The number of this thread. It decides which warm instance the thread uses.
    static THREAD_NUMBER: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

impl<W: PolicyWorld> InstancePool<W> {
    pub(super) fn new(
        engine: &PolicyEngine,
        linked: W::Linked,
        config: String,
        timeout: Duration,
        memory_bytes_max: usize,
    ) -> Self {
        Self {
            engine: engine.clone(),
            linked,
            config,
            timeout,
            memory_bytes_max,
            warm: (0..WARM_INSTANCES_MAX)
                .map(|_| WarmInstanceCell(Mutex::new(None)))
                .collect(),
        }
    }

    /// Runs `call` in a warm instance, or in a new one if there is none. `started` is when the call
    /// began.
    pub(super) fn run<R>(
        &self,
        shared: &SharedPolicyState,
        facts: &RequestFacts<'_>,
        started: Instant,
        call: impl FnOnce(&mut Store<GuestState>, &W) -> Result<R>,
    ) -> std::result::Result<R, CallFailure> {
        let mut instance = match self.acquire_warm() {
            Some(instance) => instance,
            None => self.create(shared).map_err(|error| {
                let detail = format!("no instance: {}", error.root_cause());
                CallFailure::new(FaultKind::Trap, detail)
            })?,
        };
        let store = &mut instance.store;
        store
            .data_mut()
            .start_call(facts.now, facts.seed, self.timeout, started);
        let _running = self.engine.start_call(store);
        let result = call(store, &instance.world);
        match result {
            Ok(result) => {
                instance.calls += 1;
                if !instance.should_be_replaced(self.memory_bytes_max) {
                    self.release_warm(instance);
                }
                Ok(result)
            }
            Err(error) => Err(self.trapped(&error, instance.store.data())),
        }
    }

    fn trapped(&self, error: &wasmtime::Error, guest: &GuestState) -> CallFailure {
        if guest.has_exceeded_memory() {
            let detail = format!("memory limit of {} bytes exceeded", self.memory_bytes_max);
            CallFailure::new(FaultKind::Memory, detail)
        } else if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            let detail = format!("deadline exceeded after {} ms", self.timeout.as_millis());
            CallFailure::new(FaultKind::Deadline, detail)
        } else {
            CallFailure::new(
                FaultKind::Trap,
                format!("trap: {}", guest.describe_error(error)),
            )
        }
    }

    fn acquire_warm(&self) -> Option<Box<WarmInstance<W>>> {
        try_lock(self.cell())?.take()
    }

    /// Stores `instance` for the next call. If another thread that shares the cell was faster, one
    /// of the two instances is enough.
    fn release_warm(&self, instance: Box<WarmInstance<W>>) {
        if let Some(mut cell) = try_lock(self.cell()) {
            *cell = Some(instance);
        }
    }

    /// Returns the cell that this thread uses.
    fn cell(&self) -> &WarmInstanceCell<W> {
        &self.warm[THREAD_NUMBER.with(|number| number % WARM_INSTANCES_MAX)]
    }

    /// Creates a configured instance, under the timeout of loading: a new instance touches its
    /// memory for the first time.
    fn create(&self, shared: &SharedPolicyState) -> Result<Box<WarmInstance<W>>> {
        let mut store = GuestState::new_store(
            self.engine.wasmtime(),
            shared.stats(),
            shared.log(),
            self.memory_bytes_max,
        );
        let _running = self.engine.start_call(&mut store);
        let world = W::instantiate(&self.linked, &mut store)?;
        if let Err(diagnostics) = world.configure(&mut store, &self.config)? {
            bail!(
                "configuration rejected: {}",
                diagnostics.first().map_or("", |first| &first.message)
            );
        }
        world.prepare(&mut store)?;
        let memory_bytes_when_new = store.data().memory_bytes();
        Ok(Box::new(WarmInstance {
            store,
            world,
            calls: 0,
            memory_bytes_when_new,
        }))
    }
}

impl<W> WarmInstance<W> {
    fn should_be_replaced(&self, memory_bytes_max: usize) -> bool {
        let growth = self.store.data().memory_bytes() - self.memory_bytes_when_new;
        self.calls >= CALLS_MAX || growth > memory_bytes_max / GROWTH_DIVISOR
    }
}

/// Locks a cell without waiting. `None` if another thread uses it at this moment.
fn try_lock<W>(cell: &WarmInstanceCell<W>) -> Option<MutexGuard<'_, Option<Box<WarmInstance<W>>>>> {
    match cell.0.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
