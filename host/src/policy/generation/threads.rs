//! Policy threads: slow guests run here, so that they do not delay the threads that serve requests.
//!
//! Owns a fixed number of threads and the queue before them. Invariant: queueing a job never waits;
//! if the queue is full, it fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::values::limits::Limits;

type PolicyJob = Box<dyn FnOnce() + Send>;

/// The policy threads of a gateway. Clones are cheap and share the threads, which start with the
/// first job.
#[derive(Clone)]
pub(crate) struct PolicyThreads {
    shared: Arc<ThreadPoolState>,
}

struct ThreadPoolState {
    threads: usize,
    queue_length: usize,
    jobs: OnceLock<SyncSender<PolicyJob>>,
}

impl std::fmt::Debug for PolicyThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyThreads")
            .field("threads", &self.shared.threads)
            .finish_non_exhaustive()
    }
}

/// The queue of the policy threads is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;

impl PolicyThreads {
    /// Creates `limits.policy_threads` threads with a queue of `limits.policy_queue` jobs.
    pub(crate) fn new(limits: &Limits) -> Self {
        let at_least_one = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).max(1);
        Self {
            shared: Arc::new(ThreadPoolState {
                threads: at_least_one(limits.policy_threads),
                queue_length: at_least_one(limits.policy_queue),
                jobs: OnceLock::new(),
            }),
        }
    }

    /// Runs `job` when a thread is free.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result<(), QueueFull> {
        let jobs = self
            .shared
            .jobs
            .get_or_init(|| start(self.shared.threads, self.shared.queue_length));
        jobs.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => QueueFull,
        })
    }

    /// Runs `job` when a thread is free, and returns its result.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, QueueFull> {
        let (done, waiting) = oneshot::channel();
        // The send fails if the caller was dropped meanwhile: then nothing waits for the result.
        self.spawn(move || drop(done.send(job())))?;
        waiting.await.map_err(|_| QueueFull)
    }
}

fn start(threads: usize, queue_length: usize) -> SyncSender<PolicyJob> {
    let (jobs, received) = sync_channel(queue_length);
    let received = Arc::new(Mutex::new(received));
    for number in 0..threads {
        let received = Arc::clone(&received);
        let started = thread::Builder::new()
            .name(format!("policy-{number}"))
            .spawn(move || work(&received));
        if let Err(error) = started {
            tracing::error!(%error, "policy thread not started");
        }
    }
    jobs
}

/// Runs jobs until all senders are dropped.
fn work(jobs: &Mutex<Receiver<PolicyJob>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A panic is a bug of the gateway. It must not end the thread.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("job on a policy thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_queue_rejects_jobs_and_a_panic_ends_no_thread() {
        let threads = PolicyThreads::new(&Limits {
            policy_threads: 1,
            policy_queue: 1,
            ..Limits::default()
        });
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let blocked = move || {
            let _ = started.send(());
            let _ = gate.recv();
            panic!("on purpose");
        };
        threads.spawn(blocked).expect("the queue has room");
        has_started.await.expect("the job runs");
        threads.spawn(|| ()).expect("one job may wait");
        assert_eq!(threads.run(|| 1).await, Err(QueueFull));
        drop(open);
        // The thread continues after the panic.
        while threads.run(|| 2).await != Ok(2) {
            tokio::task::yield_now().await;
        }
    }
}
