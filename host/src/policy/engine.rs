//! The wasmtime engine that all policies share: its settings, its clock and the code compiled so far.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use lru::LruCache;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::process::setpriority_process;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

use super::bindings;
use super::cache::Cache;
use super::inert_wasi;
use super::instance::Guest;

/// How often a call under way is looked at, once it has been seen.
const TICK: Duration = Duration::from_millis(1);

/// A call is seen for the first time after so long, at the latest.
const LOOK: Duration = Duration::from_millis(4);

/// Where there has been no call for so many looks, the clock stands still.
const QUIET_LOOKS: u32 = 25;

/// How often a clock that stands still looks whether it is needed at all.
const STILL: Duration = Duration::from_secs(10);

/// A guest's stack, in bytes. What needs more is recursing without end.
const STACK_BYTES: usize = 256 * 1024;

/// Instances at a time, over all policies and threads. Each reserves address space, and memory only as it uses it.
const INSTANCES: u32 = 1000;

/// Core instances, memories and tables of one component. A Python guest needs over 32 of the first.
const CORE_INSTANCES_EACH: u32 = 64;
const MEMORIES_EACH: u32 = 2;
const TABLES_EACH: u32 = 8;
const TABLE_ELEMENTS: usize = 20_000;

/// Components whose compiled code is kept in memory though nobody may be using them any more.
const COMPILED: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// How far behind other threads those stand that compile while the gateway serves (nice).
const NICE: i32 = 10;

/// How urgent it is that a component is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The gateway starts, and serves nobody yet.
    AtOnce,
    /// The gateway serves: whoever is served goes first.
    BesideService,
}

/// The policy engine could not be set up: a fault of this machine, told by wasmtime.
#[derive(Debug, thiserror::Error)]
#[error("policy engine: {0}")]
pub struct EngineError(String);

/// The engine. Cloning it is cheap; the clones share everything.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    cache: Option<Cache>,
}

struct Shared {
    engine: wasmtime::Engine,
    linker: Linker<Guest>,
    clock: Arc<Clock>,
    /// By SHA-256 of the component.
    compiled: Mutex<LruCache<[u8; 32], Component>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// The engines of this process, by the memory of their guests. They stay: what they compiled is of use again.
static ENGINES: Mutex<Vec<(usize, Engine)>> = Mutex::new(Vec::new());

impl Engine {
    /// The process's engine whose guests may have up to `memory_max` bytes each.
    ///
    /// # Errors
    /// This machine cannot run one.
    pub fn of_the_process(memory_max: usize) -> Result<Self, EngineError> {
        let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, engine)) = engines.iter().find(|(memory, _)| *memory == memory_max) {
            return Ok(engine.clone());
        }
        let engine = Self::new(memory_max)?;
        engines.push((memory_max, engine.clone()));
        Ok(engine)
    }

    fn new(memory_max: usize) -> Result<Self, EngineError> {
        let failed = |error: wasmtime::Error| EngineError(format!("{error:#}"));
        // Where the address space is too small for a pool, instances are made one by one: slower, and as safe.
        let engine = wasmtime::Engine::new(&config(Some(memory_max)))
            .or_else(|_| wasmtime::Engine::new(&config(None)))
            .map_err(failed)?;
        let mut linker = Linker::new(&engine);
        bindings::balancer::tollgate::policy::host::add_to_linker::<Guest, HasSelf<Guest>>(
            &mut linker,
            |guest| guest,
        )
        .map_err(failed)?;
        inert_wasi::add_to_linker(&mut linker).map_err(failed)?;
        let clock = Arc::new(Clock::default());
        clock
            .start(&engine)
            .map_err(|error| EngineError(format!("cannot start its clock: {error}")))?;
        let compiled = Mutex::new(LruCache::new(COMPILED));
        Ok(Self {
            shared: Arc::new(Shared {
                engine,
                linker,
                clock,
                compiled,
            }),
            cache: None,
        })
    }

    /// The same engine, with compiled code kept in `folder`, up to `bytes_max`. Where that cannot be, it is not kept.
    pub fn with_cache(mut self, folder: &Path, bytes_max: u64) -> Self {
        if bytes_max > 0 {
            let cache = Cache::open(folder, bytes_max);
            self.cache = cache
                .map_err(|reason| tracing::warn!(reason, "compiled policies are not kept"))
                .ok();
        }
        self
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.shared.engine
    }

    /// A call into `store` begins: its deadline is looked at now and then for as long as the answer is held.
    pub(super) fn watch(&self, store: &mut Store<Guest>) -> Watched<'_> {
        store.set_epoch_deadline(1);
        self.shared.clock.watch()
    }

    pub(super) fn linker(&self) -> &Linker<Guest> {
        &self.shared.linker
    }

    /// Compiles `bytes`, whose SHA-256 is `digest`, or takes what was compiled before.
    pub(super) fn compile(
        &self,
        digest: [u8; 32],
        bytes: &[u8],
        urgency: Urgency,
    ) -> wasmtime::Result<Component> {
        if let Some(component) = self.compiled().get(&digest) {
            return Ok(component.clone());
        }
        let engine = &self.shared.engine;
        let kept = self
            .cache
            .as_ref()
            .and_then(|cache| cache.load(engine, &digest));
        let component = match kept {
            Some(component) => component,
            None => {
                let compile = || Component::from_binary(engine, bytes);
                let beside = match urgency {
                    Urgency::BesideService => BESIDE_SERVICE.as_ref(),
                    Urgency::AtOnce => None,
                };
                let component = match beside {
                    Some(threads) => threads.install(compile)?,
                    None => compile()?,
                };
                if let Some(cache) = self.cache.clone() {
                    let (engine, component) = (engine.clone(), component.clone());
                    let keep = move || cache.store(&engine, &digest, &component);
                    match beside {
                        // It serves before it is kept.
                        Some(threads) => threads.spawn(keep),
                        None => keep(),
                    }
                }
                component
            }
        };
        self.compiled().put(digest, component.clone());
        Ok(component)
    }

    fn compiled(&self) -> std::sync::MutexGuard<'_, LruCache<[u8; 32], Component>> {
        self.shared
            .compiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads that compile while the gateway serves: one for each processor, so that a new component serves soon, and all
/// of them behind those that serve. Where they cannot be had, whoever asks compiles.
static BESIDE_SERVICE: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let stand_behind = |_| {
        // Where that is not allowed, it stands beside.
        let _ = setpriority_process(None, NICE);
    };
    // Who waits for a job gets its panic. Nobody waits for code that is being kept, and without this the process would end.
    let panicked = |_| tracing::error!("keeping compiled code panicked");
    let named = |_| "policy-compile".to_owned();
    ThreadPoolBuilder::new()
        .thread_name(named)
        .start_handler(stand_behind)
        .panic_handler(panicked)
        .build()
        .ok()
});

fn config(pool_memory_max: Option<usize>) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        // The same arguments give the same result on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_memory64(false)
        // Collecting a backtrace makes a trap four times as dear. Without one, nobody asks where in the guest an address is.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false)
        .memory_init_cow(true);
    if let Some(memory_max) = pool_memory_max {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(INSTANCES)
            .total_core_instances(INSTANCES * 8)
            .total_memories(INSTANCES)
            .total_tables(INSTANCES * 4)
            .max_core_instances_per_component(CORE_INSTANCES_EACH)
            .max_memories_per_component(MEMORIES_EACH)
            .max_tables_per_component(TABLES_EACH)
            .table_elements(TABLE_ELEMENTS)
            .max_memory_size(memory_max);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Advances the epoch while a call is under way, and with each advance the call looks at its own time. Most calls are over
/// before the clock looks up: a thread that wakes a thousand times a second for them costs more than relaying a thousand
/// messages does. Where there has been no call for a while it stands still, and the next call sets it going.
#[derive(Default)]
struct Clock {
    /// Calls under way.
    calls: AtomicUsize,
    /// There was a call since this was looked at.
    busy: AtomicBool,
    /// It stands still.
    still: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call under way.
pub(super) struct Watched<'a>(&'a Clock);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Release);
    }
}

impl Clock {
    fn watch(&self) -> Watched<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        // One of the two sees what the other has written: this that it stands still, or the clock that there is a call.
        self.busy.store(true, Ordering::SeqCst);
        if self.still.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Watched(self)
    }

    /// Runs for as long as the engine lives.
    fn start(self: &Arc<Self>, engine: &wasmtime::Engine) -> std::io::Result<()> {
        let (clock, engine) = (Arc::clone(self), engine.weak());
        let run = move || {
            let mut quiet = 0;
            while let Some(engine) = engine.upgrade() {
                let is_under_way = clock.calls.load(Ordering::Acquire) > 0;
                if is_under_way {
                    engine.increment_epoch();
                }
                drop(engine);
                quiet = if clock.busy.swap(false, Ordering::SeqCst) || is_under_way {
                    0
                } else {
                    quiet + 1
                };
                if quiet >= QUIET_LOOKS {
                    clock.stand_still();
                    quiet = 0;
                }
                thread::sleep(if is_under_way { TICK } else { LOOK });
            }
        };
        let handle = thread::Builder::new()
            .name("policy-clock".to_owned())
            .spawn(run)?;
        // It is set once, here.
        let _ = self.thread.set(handle.thread().clone());
        Ok(())
    }

    fn stand_still(&self) {
        self.still.store(true, Ordering::SeqCst);
        if !self.busy.load(Ordering::SeqCst) {
            // Now and then it looks whether the engine is still there.
            thread::park_timeout(STILL);
        }
        self.still.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_beside_service_that_panics_ends_nothing_else() {
        let threads = BESIDE_SERVICE.as_ref().expect("threads can be had");
        let (started, starts) = std::sync::mpsc::channel();
        threads.spawn(move || {
            started.send(()).expect("somebody waits");
            panic!("its own fault");
        });
        starts.recv().expect("it ran");
        let answers = threads.broadcast(|_| 7);
        assert_eq!(answers, vec![7; threads.current_num_threads()]);
    }
}
