//! The service that requests find when they begin, and how it is replaced.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use super::Service;

/// The current service, and a notification of each change.
#[derive(Debug, Clone)]
pub(crate) struct LiveService(watch::Receiver<Arc<Service>>);

impl LiveService {
    /// Follows the services that `sender` publishes.
    pub(crate) fn subscribe(sender: &watch::Sender<Arc<Service>>) -> Self {
        Self(sender.subscribe())
    }

    /// Returns the service that a request that begins now keeps to its end.
    pub(crate) fn now(&self) -> Arc<Service> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until the service is replaced.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The sender is gone: no further change can come.
            pending::<()>().await;
        }
    }
}
