//! A status that is watched: a line at once, and one after every change.
//!
//! Owns when a line is sent. Does not know what it contains. Invariant: a client that stops reading
//! holds one line, and the watch ends with its user, its client or the gateway.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::capacity::status_line;
use crate::authenticate::{User, UserId};
use crate::pipeline::service::live::LiveService;
use crate::pipeline::service::{Service, SocketPermit};
use crate::values::clock::Timestamp;
use crate::values::phase::GatewayPhase;

/// The shortest time between two lines: a busy account changes with every response.
const LINE_INTERVAL: Duration = Duration::from_millis(200);

/// How often the figures are computed without a notification: windows reset as time passes.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Starts to watch the status of `user`. The watch ends when the receiver is dropped.
pub(super) fn start(
    live: LiveService,
    user: Option<&Arc<User>>,
    permit: SocketPermit,
) -> mpsc::Receiver<Bytes> {
    let (lines, receiver) = mpsc::channel(1);
    let user = user.map(|user| user.id);
    tokio::spawn(async move {
        let phases = live.now().parts().phases.clone();
        tokio::select! {
            () = send_changes(live, user, &lines) => {}
            () = lines.closed() => {}
            () = until_draining(phases) => {}
        }
        drop(permit);
    });
    receiver
}

/// Sends a line for each change, until the user is removed or its token changed.
async fn send_changes(mut live: LiveService, user: Option<UserId>, lines: &mpsc::Sender<Bytes>) {
    let mut last = Bytes::new();
    loop {
        // Not held while waiting: a replaced service ends with its last request.
        let service = live.now();
        let Some(user) = current_user(&service, user) else {
            return;
        };
        // Before the figures are computed: a change meanwhile is noticed.
        let changes = changes_of(&service, user.as_deref());
        let line = status_line(&service, user.as_deref(), Timestamp::now()).await;
        drop(service);
        if line != last {
            if lines.send(line.clone()).await.is_err() {
                return;
            }
            last = line;
        }
        tokio::select! {
            () = any_changed(changes) => sleep(LINE_INTERVAL).await,
            () = live.changed() => {}
            () = sleep(RECHECK_INTERVAL) => {}
        }
    }
}

/// Returns the user with that token; the outer `None` means that there is none any more.
fn current_user(service: &Service, user: Option<UserId>) -> Option<Option<Arc<User>>> {
    match user {
        None => service.users().is_empty().then_some(None),
        Some(id) => Some(Some(Arc::clone(service.users().with_id(id)?))),
    }
}

fn changes_of(service: &Service, user: Option<&User>) -> Vec<watch::Receiver<u64>> {
    let pool = service.pool_of(user);
    pool.credentials()
        .map(|credential| credential.changes())
        .collect()
}

async fn any_changed(receivers: Vec<watch::Receiver<u64>>) {
    let mut changes: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = receivers
        .into_iter()
        .map(|receiver| Box::pin(changed(receiver)) as Pin<Box<_>>)
        .collect();
    poll_fn(|cx| {
        let is_ready = changes
            .iter_mut()
            .any(|change| change.as_mut().poll(cx).is_ready());
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

async fn changed(mut receiver: watch::Receiver<u64>) {
    if receiver.changed().await.is_err() {
        // The credential is gone: the service was replaced, which is noticed otherwise.
        pending::<()>().await;
    }
}

async fn until_draining(mut phases: watch::Receiver<GatewayPhase>) {
    // An error means that the gateway was dropped.
    let _ = phases
        .wait_for(|phase| *phase != GatewayPhase::Running)
        .await;
}
