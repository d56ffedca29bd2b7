//! The state that the host keeps for one instance: its limits, its log, and the clock and random
//! numbers of the current call.
//!
//! Invariant: what a guest can observe of time and chance comes from the call's arguments, and
//! everything that it can use up has a limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, Result, Store, UpdateDeadline, bail};

use super::guest_log::GuestLog;
use super::stats::PolicyStats;
use crate::platform::thread_cpu_time;
use crate::policy::contract::bindings::host;
use crate::values::clock::Timestamp;

/// The most bytes that a guest's standard streams keep per call.
const OUTPUT_BYTES_MAX: usize = 4096;

/// The most lines that a guest may log per call.
const LOG_LINES_PER_CALL: u32 = 16;

/// The most elements of a table.
pub(super) const TABLE_ELEMENTS_MAX: usize = 20_000;

/// A call that gets little processor time ends after this many timeouts of wall-clock time.
const STARVED_TIMEOUTS: u32 = 200;

/// The timeout of calls while a policy is loaded: instances are cold and schemas are written.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// The host's state beside one instance.
pub(crate) struct GuestState {
    stats: Arc<PolicyStats>,
    log: Arc<GuestLog>,
    memory_bytes_max: usize,
    memory_bytes: usize,
    memory_limit_exceeded: bool,
    now: Timestamp,
    random_state: u64,
    /// What the guest wrote to its standard streams in this call.
    output: Vec<u8>,
    log_lines: u32,
    deadline: CallDeadline,
    known_members: Option<MembersVersion>,
}

/// Identifies the members of a pool as a balancer was last given them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MembersVersion {
    /// Identifies the pool in this process.
    pub(crate) pool: u64,
    /// Counts the changes of its members.
    pub(crate) version: u64,
}

/// The deadline of a call, in processor time: wall-clock time also passes while the thread waits
/// for a processor.
struct CallDeadline {
    timeout: Duration,
    started: Instant,
    /// The thread's processor time when the deadline was first checked. The time used before is not
    /// known.
    cpu_at_first_check: Option<Duration>,
}

impl CallDeadline {
    fn new(timeout: Duration, started: Instant) -> Self {
        Self {
            timeout,
            started,
            cpu_at_first_check: None,
        }
    }

    /// Decides whether the call may continue. Runs each time the epoch advances.
    fn check(&mut self) -> UpdateDeadline {
        let elapsed = self.started.elapsed();
        let cpu = thread_cpu_time();
        let cpu = cpu.saturating_sub(*self.cpu_at_first_check.get_or_insert(cpu));
        let has_timed_out = elapsed >= self.timeout && cpu >= self.timeout / 2;
        if has_timed_out || elapsed >= self.timeout * STARVED_TIMEOUTS {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

impl GuestState {
    /// Creates a store with every limit set. The first calls into it load the component, so it
    /// starts with the timeout of loading.
    pub(crate) fn new_store(
        engine: &wasmtime::Engine,
        stats: &Arc<PolicyStats>,
        log: &Arc<GuestLog>,
        memory_bytes_max: usize,
    ) -> Store<Self> {
        stats.instance_created();
        let state = Self {
            stats: Arc::clone(stats),
            log: Arc::clone(log),
            memory_bytes_max,
            memory_bytes: 0,
            memory_limit_exceeded: false,
            now: Timestamp(0),
            random_state: 0,
            output: Vec::new(),
            log_lines: 0,
            deadline: CallDeadline::new(LOAD_TIMEOUT, Instant::now()),
            known_members: None,
        };
        let mut store = Store::new(engine, state);
        store.limiter(|state| state);
        // A guest may return the same string many times: what the host copies out of it has the
        // limit of the guest's memory.
        store.set_hostcall_fuel(memory_bytes_max);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().deadline.check()));
        store
    }

    /// Starts a call for a request.
    pub(crate) fn start_call(
        &mut self,
        now: Timestamp,
        seed: u64,
        timeout: Duration,
        started: Instant,
    ) {
        self.now = now;
        self.random_state = seed;
        self.output.clear();
        self.log_lines = 0;
        self.deadline = CallDeadline::new(timeout, started);
    }

    /// Returns the size of the linear memories, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Returns whether the guest tried to exceed its memory limit.
    pub(crate) fn has_exceeded_memory(&self) -> bool {
        self.memory_limit_exceeded
    }

    /// Returns the members that a balancer was last given.
    pub(crate) fn known_members(&self) -> Option<MembersVersion> {
        self.known_members
    }

    pub(crate) fn set_known_members(&mut self, members: MembersVersion) {
        self.known_members = Some(members);
    }

    /// Returns the time of the current call.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns the next random number of the current call: splitmix64 from its seed.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random_state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Keeps what the guest writes to a standard stream, up to the limit.
    pub(super) fn write_output(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.output.len();
        self.output
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Describes `error` together with what the guest wrote before it trapped, such as a panic
    /// message.
    pub(crate) fn describe_error(&self, error: &wasmtime::Error) -> String {
        let cause = error.root_cause();
        let output = String::from_utf8_lossy(&self.output);
        let lines: Vec<&str> = output
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if lines.is_empty() {
            cause.to_string()
        } else {
            format!("{cause} ({})", lines.join(" "))
        }
    }
}

impl Drop for GuestState {
    fn drop(&mut self) {
        self.stats.instance_dropped(self.memory_bytes);
    }
}

impl host::Host for GuestState {
    fn log(&mut self, level: u32, message: String) {
        self.log_lines += 1;
        if self.log_lines > LOG_LINES_PER_CALL {
            self.log.drop_line();
        } else {
            self.log.write(level, &message);
        }
    }
}

impl ResourceLimiter for GuestState {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let total = self
            .memory_bytes
            .saturating_sub(current)
            .saturating_add(desired);
        if total > self.memory_bytes_max {
            self.memory_limit_exceeded = true;
            bail!("memory limit of {} bytes exceeded", self.memory_bytes_max);
        }
        self.stats.memory_grew(total - self.memory_bytes);
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}
