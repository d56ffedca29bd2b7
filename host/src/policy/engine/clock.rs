//! The clock that bounds calls: it advances the engine's epoch while a call runs, and at each
//! advance the call checks its deadline.
//!
//! Most calls end before the clock looks for the first time: a thread that wakes a thousand times
//! per second for them would cost more than relaying a thousand messages. When there has been no
//! call for a while, the clock parks, and the next call wakes it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

/// The interval between epochs while a call runs.
const TICK: Duration = Duration::from_millis(1);

/// The interval at which the clock looks for a running call.
const IDLE_TICK: Duration = Duration::from_millis(4);

/// The clock parks after this many looks without a call.
const IDLE_TICKS_MAX: u32 = 25;

/// The interval at which a parked clock checks that its engine still exists.
const PARKED_CHECK: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct EpochClock {
    running_calls: AtomicUsize,
    /// There was a call since the clock last looked.
    was_used: AtomicBool,
    is_parked: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A running call. The clock advances until this is dropped.
pub(crate) struct RunningCall<'a>(&'a EpochClock);

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        self.0.running_calls.fetch_sub(1, Ordering::Release);
    }
}

impl EpochClock {
    /// Starts the clock of `engine`. Its thread ends with the engine.
    pub(super) fn start(engine: &wasmtime::Engine) -> io::Result<Arc<Self>> {
        let clock = Arc::new(Self::default());
        let (running, engine) = (Arc::clone(&clock), engine.weak());
        let handle = thread::Builder::new()
            .name("policy-clock".to_owned())
            .spawn(move || running.run(&engine))?;
        // The cell is empty: it is set here only.
        let _ = clock.thread.set(handle.thread().clone());
        Ok(clock)
    }

    /// Notes that a call starts.
    pub(super) fn call_started(&self) -> RunningCall<'_> {
        self.running_calls.fetch_add(1, Ordering::Relaxed);
        // Either this thread sees that the clock is parked, or the clock sees that it was used.
        self.was_used.store(true, Ordering::SeqCst);
        if self.is_parked.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        RunningCall(self)
    }

    fn run(&self, engine: &wasmtime::EngineWeak) {
        let mut idle_ticks = 0;
        while let Some(engine) = engine.upgrade() {
            let is_call_running = self.running_calls.load(Ordering::Acquire) > 0;
            if is_call_running {
                engine.increment_epoch();
            }
            drop(engine);
            idle_ticks = if self.was_used.swap(false, Ordering::SeqCst) || is_call_running {
                0
            } else {
                idle_ticks + 1
            };
            if idle_ticks >= IDLE_TICKS_MAX {
                self.park();
                idle_ticks = 0;
            }
            thread::sleep(if is_call_running { TICK } else { IDLE_TICK });
        }
    }

    fn park(&self) {
        self.is_parked.store(true, Ordering::SeqCst);
        if !self.was_used.load(Ordering::SeqCst) {
            thread::park_timeout(PARKED_CHECK);
        }
        self.is_parked.store(false, Ordering::SeqCst);
    }
}
