//! What stands beside a guest: its deadline, its memory's limit, its log, and the arguments that clock and chance answer
//! from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::InstancePre;
use wasmtime::{ResourceLimiter, Result, Store, UpdateDeadline, bail};

use super::bindings::balancer::tollgate::policy::host;
use super::bindings::balancer::tollgate::policy::types::{Diagnostic, Manifest};
use super::engine::Engine;
use super::slot::Slot;
use crate::config::PolicyKind;
use crate::values::clock::Timestamp;

/// What a guest may write to its streams in one call, in bytes.
const OUTPUT_BYTES: usize = 4096;

/// Lines that a guest may log in one call, and the length of each in bytes.
const LOG_LINES: u32 = 16;
const LOG_LINE_BYTES: usize = 1024;

/// However little of the processor a call got, it ends after so many timeouts.
const STARVED_TIMEOUTS: u32 = 200;

/// A call while a policy is loaded may take so long: instances are cold and schemas are written.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// A world of the contract.
pub(super) trait World: Sized + Send + Sync + 'static {
    const KIND: PolicyKind;
    type Pre: Send + Sync;

    fn pre(pre: InstancePre<Guest>) -> Result<Self::Pre>;
    fn instantiate(pre: &Self::Pre, store: &mut Store<Guest>) -> Result<Self>;
    fn describe(&self, store: &mut Store<Guest>) -> Result<Manifest>;
    fn configure(
        &self,
        store: &mut Store<Guest>,
        config: &str,
    ) -> Result<std::result::Result<(), Vec<Diagnostic>>>;
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
    now: Timestamp,
    chance: u64,
    output: Vec<u8>,
    log_lines: u32,
    deadline: Deadline,
    /// For a balancer: which pool's members it was told last.
    pub(super) announced: Option<(u64, u64)>,
}

/// A call's deadline. Time passes for a thread that is not running, too; a call is stopped for what it used.
struct Deadline {
    timeout: Duration,
    begun: Instant,
    /// The thread's processor time when the call was looked at first. What it used until then is not known.
    used_at_first: Option<Duration>,
}

impl Deadline {
    fn new(timeout: Duration, begun: Instant) -> Self {
        Self {
            timeout,
            begun,
            used_at_first: None,
        }
    }

    /// The epoch has advanced: whether the call may go on.
    fn look(&mut self) -> UpdateDeadline {
        let took = self.begun.elapsed();
        let used = thread_time();
        let used = used.saturating_sub(*self.used_at_first.get_or_insert(used));
        let is_over = took >= self.timeout && used >= self.timeout / 2;
        if is_over || took >= self.timeout * STARVED_TIMEOUTS {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

fn thread_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        used.tv_sec.unsigned_abs(),
        used.tv_nsec.unsigned_abs() as u32,
    )
}

impl Guest {
    /// Its linear memory, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether it wanted more than it may have.
    pub(super) fn exceeded_memory(&self) -> bool {
        self.memory_exceeded
    }

    pub(super) fn now(&self) -> Timestamp {
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
        self.output
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// A call for a request begins.
    pub(super) fn begin(&mut self, now: Timestamp, seed: u64, timeout: Duration, begun: Instant) {
        self.now = now;
        self.chance = seed;
        self.output.clear();
        self.log_lines = 0;
        self.deadline = Deadline::new(timeout, begun);
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
        if self.log_lines > LOG_LINES {
            return self.slot.left_out_of_the_log();
        }
        if !self.slot.may_log() {
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

/// A store with every limit set, and nothing in it: what is called first is what loads it.
pub(super) fn new_store(engine: &Engine, slot: &Arc<Slot>, memory: usize) -> Store<Guest> {
    slot.stats().instance_made();
    let guest = Guest {
        slot: Arc::clone(slot),
        memory_max: memory,
        memory: 0,
        memory_exceeded: false,
        now: Timestamp(0),
        chance: 0,
        output: Vec::new(),
        log_lines: 0,
        deadline: Deadline::new(LOAD_TIMEOUT, Instant::now()),
        announced: None,
    };
    let mut store = Store::new(engine.wasmtime(), guest);
    store.limiter(|guest| guest);
    // The same strings may be handed over many times: what the host makes of an answer has a bound of its own.
    store.set_hostcall_fuel(memory);
    store.epoch_deadline_callback(|mut store| Ok(store.data_mut().deadline.look()));
    store
}

pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

/// What a guest wrote before it trapped: a panic's message.
pub(super) fn last_words(guest: &Guest) -> String {
    let words = String::from_utf8_lossy(&guest.output);
    let words: Vec<&str> = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" ({})", words.join(" "))
    }
}
