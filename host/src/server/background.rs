//! Tasks that run beside requests.
//!
//! Owns the knowledge of when all of them have ended. Does not know what they do. Invariant: the
//! receiver of [`BackgroundTasks::new`] ends once the last task and the last handle are gone.

use tokio::sync::mpsc;

/// Spawns tasks whose common end can be awaited.
#[derive(Clone)]
pub(super) struct BackgroundTasks(mpsc::Sender<()>);

impl BackgroundTasks {
    /// Returns a handle without tasks, and a receiver that ends with the last task.
    pub(super) fn new() -> (Self, mpsc::Receiver<()>) {
        let (alive, ended) = mpsc::channel(1);
        (Self(alive), ended)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let alive = self.0.clone();
        tokio::spawn(async move {
            task.await;
            drop(alive);
        });
    }
}
