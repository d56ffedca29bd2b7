//! Policy threads: where guests run that are too slow for the threads that serve requests.
//!
//! Owns a few threads and the queue before them. Invariant: handing in a job never waits; where there is no room, it is
//! handed back.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::values::limits::Limits;

type Job = Box<dyn FnOnce() + Send>;

/// The threads of a gateway. Cloning is cheap; the clones share them. They start with the first job.
#[derive(Clone)]
pub struct Threads {
    shared: Arc<Shared>,
}

struct Shared {
    count: usize,
    queue: usize,
    jobs: OnceLock<SyncSender<Job>>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads")
            .field("count", &self.shared.count)
            .finish_non_exhaustive()
    }
}

/// As many jobs wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Threads {
    /// As many as `limits.policy_threads`, with a queue of `limits.policy_queue`.
    pub fn new(limits: &Limits) -> Self {
        let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
        let shared = Shared {
            count: whole(limits.policy_threads),
            queue: whole(limits.policy_queue),
            jobs: OnceLock::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Runs `job` when a thread is free.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let jobs = self
            .shared
            .jobs
            .get_or_init(|| start(self.shared.count, self.shared.queue));
        jobs.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Full,
        })
    }

    /// Runs `job` when a thread is free, and answers what it gave.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Full> {
        let (done, waiting) = oneshot::channel();
        // Whoever waited may be gone by then.
        self.spawn(move || drop(done.send(job())))?;
        waiting.await.map_err(|_| Full)
    }
}

fn start(count: usize, queue: usize) -> SyncSender<Job> {
    let (jobs, received) = sync_channel(queue);
    let received = Arc::new(Mutex::new(received));
    for number in 0..count {
        let received = Arc::clone(&received);
        let started = thread::Builder::new()
            .name(format!("policy-{number}"))
            .spawn(move || work(&received));
        if let Err(error) = started {
            tracing::error!(%error, "a policy thread cannot be started");
        }
    }
    jobs
}

/// Works until nobody can hand in a job any more.
fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A job that panics is a bug of ours; it must not cost a thread.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a policy thread's job panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_hands_back_and_a_panic_costs_no_thread() {
        let threads = Threads::new(&Limits {
            policy_threads: 1,
            policy_queue: 1,
            ..Limits::default()
        });
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let blocked = move || {
            let _ = begun.send(());
            let _ = gate.recv();
            panic!("a bug");
        };
        threads.spawn(blocked).expect("there is room");
        has_begun.await.expect("it has begun");
        threads.spawn(|| ()).expect("one may wait");
        assert_eq!(threads.run(|| 1).await, Err(Full));
        drop(open);
        // The thread is still there.
        while threads.run(|| 2).await != Ok(2) {
            tokio::task::yield_now().await;
        }
    }
}
