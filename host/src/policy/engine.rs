//! The wasmtime engine that all policies share: its settings, its clock, and compiled components.
//!
//! Knows how guests are bounded; does not know kinds of policies and generations. Invariant: every
//! call into a guest runs under a deadline and a memory limit.

mod cache;
mod clock;
pub(crate) mod compile;
pub(crate) mod fault;
pub(crate) mod guest;
pub(crate) mod guest_log;
pub(crate) mod stats;
mod wasi;
pub(crate) mod world;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

use self::cache::CompiledCodeCache;
use self::clock::{EpochClock, RunningCall};
use self::compile::{CompilePriority, ComponentCompiler, ComponentDigest};
use self::guest::{GuestState, TABLE_ELEMENTS_MAX};
use crate::policy::contract::bindings::host;

/// A guest's stack. A guest that needs more recurses without end.
const STACK_BYTES_MAX: usize = 256 * 1024;

/// The most instances at a time, over all policies and threads. Each reserves address space, and
/// uses memory only as the guest does.
const INSTANCES_MAX: u32 = 1000;

/// The most core instances of one component. A Python guest needs over 32.
const CORE_INSTANCES_PER_COMPONENT: u32 = 64;
const MEMORIES_PER_COMPONENT: u32 = 2;
const TABLES_PER_COMPONENT: u32 = 8;

/// The policy engine could not be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("policy engine: {0}")]
pub struct EngineError(String);

/// The policy engine. Clones are cheap and share everything.
#[derive(Clone)]
pub struct PolicyEngine {
    shared: Arc<EngineShared>,
    cache: Option<CompiledCodeCache>,
}

struct EngineShared {
    engine: wasmtime::Engine,
    linker: Linker<GuestState>,
    clock: Arc<EpochClock>,
    compiler: ComponentCompiler,
}

impl std::fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyEngine").finish_non_exhaustive()
    }
}

/// The engines of this process, by the memory limit of their guests. They are kept: what they
/// compiled can be used again.
static ENGINES: Mutex<Vec<(usize, PolicyEngine)>> = Mutex::new(Vec::new());

impl PolicyEngine {
    /// Returns the process's engine whose guests may have up to `memory_max` bytes each.
    ///
    /// # Errors
    /// This machine cannot run the engine.
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
        // If the address space is too small for a pool, instances are allocated one by one: slower,
        // and as safe.
        let engine = wasmtime::Engine::new(&pooled_config(memory_max))
            .or_else(|_| wasmtime::Engine::new(&config()))
            .map_err(failed)?;
        let mut linker = Linker::new(&engine);
        host::add_to_linker::<GuestState, HasSelf<GuestState>>(&mut linker, |guest| guest)
            .map_err(failed)?;
        wasi::add_to_linker(&mut linker).map_err(failed)?;
        let clock = EpochClock::start(&engine)
            .map_err(|error| EngineError(format!("cannot start the clock thread: {error}")))?;
        let compiler = ComponentCompiler::new(&engine);
        Ok(Self {
            shared: Arc::new(EngineShared {
                engine,
                linker,
                clock,
                compiler,
            }),
            cache: None,
        })
    }

    /// Returns the same engine with compiled code stored in `folder`, up to `bytes_max`. If the
    /// folder cannot be used, compiled code is not stored.
    pub(crate) fn with_cache(mut self, folder: &Path, bytes_max: u64) -> Self {
        if bytes_max > 0 {
            self.cache = CompiledCodeCache::open(folder, bytes_max)
                .inspect_err(|error| tracing::warn!(%error, "compiled policies are not stored"))
                .ok();
        }
        self
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.shared.engine
    }

    pub(crate) fn linker(&self) -> &Linker<GuestState> {
        &self.shared.linker
    }

    /// Starts a call into `store`. Its deadline is checked until the returned value is dropped.
    pub(crate) fn start_call(&self, store: &mut Store<GuestState>) -> RunningCall<'_> {
        store.set_epoch_deadline(1);
        self.shared.clock.call_started()
    }

    /// Returns the compiled code of the component `bytes`, whose SHA-256 is `digest`.
    pub(crate) fn compile(
        &self,
        digest: ComponentDigest,
        bytes: &[u8],
        priority: CompilePriority,
    ) -> wasmtime::Result<Component> {
        let cache = self.cache.as_ref();
        self.shared.compiler.compile(digest, bytes, priority, cache)
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX)
        // The same arguments give the same result on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_memory64(false)
        // Collecting a backtrace makes a trap four times as expensive, and addresses in the guest
        // are needed for backtraces only.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false)
        .memory_init_cow(true);
    config
}

fn pooled_config(memory_max: usize) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(INSTANCES_MAX * 8)
        .total_memories(INSTANCES_MAX)
        .total_tables(INSTANCES_MAX * 4)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(MEMORIES_PER_COMPONENT)
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(memory_max);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}
