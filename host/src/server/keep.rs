//! What keeps credentials alive in the background: their files are looked at, their tokens refreshed, their use asked
//! for. Three small tasks a credential, and no thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::poll::poll;
use super::refresh::{RefreshIn, Refresher};
use crate::credentials::{Credential, Job, Look, Outcome};
use crate::pipeline::Service;
use crate::upstream::{Trust, Upstream};
use crate::values::clock::Millis;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::Watch;

/// A file is looked at so often even where nothing is told: some file systems tell nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Looks at a time, over all files: each takes a thread for as long as its disk does. One that hangs holds up the look at
/// its own file alone, until so many do.
pub(super) const LOOKS: usize = 64;

/// A file that is there and broken is given so long, in so many looks, to become whole.
const SETTLE: Duration = Duration::from_millis(150);
const SETTLE_LOOKS: u32 = 5;

/// The clock may be put forward: when something is due is looked at so often.
const CLOCK_AGAIN: Duration = Duration::from_secs(30);

/// What the tasks need.
pub(super) struct Keeping {
    pub(super) limits: Arc<Limits>,
    pub(super) trust: Trust,
    pub(super) refresh_in: RefreshIn,
    pub(super) watch: Watch,
    pub(super) phases: watch::Receiver<Phase>,
    /// Whose turn it is to refresh what nobody waits for: one at a time, over all services.
    pub(super) turn: Arc<Semaphore>,
    /// Who looks at a file.
    pub(super) looks: Arc<Semaphore>,
}

impl Keeping {
    /// Keeps the credentials of `service`, until the gateway ends. Who awaits the tasks knows that no refresh is cut.
    pub(super) fn keep(&self, service: &Service, tasks: &mut JoinSet<()>) {
        let endpoints = service.endpoints();
        let place = self.refresh_in.clone();
        let refresher = Arc::new(Refresher::new(place, endpoints.token.clone(), &self.limits, &self.trust));
        let chatgpt: Arc<str> = endpoints.chatgpt.to_string().into();
        for (credential, upstream) in service.credentials().iter().zip(service.upstreams()) {
            if credential.path().is_some() {
                self.watch(credential, tasks);
                self.refresh(credential, &refresher, tasks);
            }
            self.poll(credential, upstream, &chatgpt, tasks);
        }
    }

    fn watch(&self, credential: &Arc<Credential>, tasks: &mut JoinSet<()>) {
        let changed = Arc::new(Notify::new());
        if let Some(path) = credential.path() {
            self.watch.file(path, &changed);
        }
        let (credential, mut phases) = (Arc::clone(credential), self.phases.clone());
        let looks = Arc::clone(&self.looks);
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = timeout(LOOK_AGAIN, changed.notified()) => {}
                    () = ended(&mut phases) => return,
                }
                tokio::select! {
                    () = look(&credential, &looks) => {}
                    () = ended(&mut phases) => return,
                }
            }
        });
    }

    fn refresh(&self, credential: &Arc<Credential>, refresher: &Arc<Refresher>, tasks: &mut JoinSet<()>) {
        let (credential, mut phases) = (Arc::clone(credential), self.phases.clone());
        let (refresher, turn) = (Arc::clone(refresher), Arc::clone(&self.turn));
        let (lock_timeout, looks) = (self.limits.lock_timeout, Arc::clone(&self.looks));
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = credential.refresh_may_be_due(CLOCK_AGAIN) => {}
                    () = ended(&mut phases) => return,
                }
                let _turn = if credential.is_refresh_urgent(Millis::now()) {
                    None
                } else {
                    tokio::select! {
                        turn = turn.acquire() => turn.ok(),
                        // Somebody waits for it now.
                        () = credential.refresh_is_wanted() => None,
                        () = ended(&mut phases) => return,
                    }
                };
                // Once begun, it goes to its end.
                refresh_once(&credential, &refresher, lock_timeout, &looks).await;
            }
        });
    }

    fn poll(&self, credential: &Arc<Credential>, upstream: &Upstream, chatgpt: &Arc<str>, tasks: &mut JoinSet<()>) {
        let (credential, upstream, chatgpt) = (Arc::clone(credential), upstream.clone(), Arc::clone(chatgpt));
        let (mut phases, limit) = (self.phases.clone(), self.limits.poll_timeout);
        tasks.spawn(async move {
            let polling = async {
                loop {
                    let (identity, begun) = credential.poll_is_due().await;
                    poll(&credential, &identity, begun, &upstream, &chatgpt, limit).await;
                }
            };
            tokio::select! {
                () = polling => {}
                () = ended(&mut phases) => {}
            }
        });
    }
}

/// Waits until the gateway stops.
async fn ended(phases: &mut watch::Receiver<Phase>) {
    // A gateway that is gone has ended, too.
    let _ = phases.wait_for(|phase| *phase != Phase::Serving).await;
}

/// Looks at a credential's file, which may be on its way to be written.
async fn look(credential: &Arc<Credential>, looks: &Semaphore) {
    for nth in 1..=SETTLE_LOOKS {
        let before = credential.unavailable();
        let refreshing = credential.is_refreshing();
        let look = look_once(credential, nth == SETTLE_LOOKS, looks).await;
        let tag = credential.tag();
        match look {
            Ok(Look::Same) => return,
            // What a refresh writes is told as that.
            Ok(Look::New(Ok(()))) if refreshing => return,
            Ok(Look::New(Ok(()))) if before.is_some() => {
                return tracing::info!(credential = tag, "credential available");
            }
            Ok(Look::New(Ok(()))) => return tracing::info!(credential = tag, "credential changed"),
            Ok(Look::New(Err(reason))) => {
                return tracing::warn!(credential = tag, %reason, "credential unavailable");
            }
            Ok(Look::Unfinished) => sleep(SETTLE).await,
            Err(error) => return tracing::error!(credential = tag, %error, "its file was not looked at"),
        }
    }
}

async fn look_once(credential: &Arc<Credential>, stays: bool, looks: &Semaphore) -> Result<Look, JoinError> {
    let _looks = looks.acquire().await;
    let looking = Arc::clone(credential);
    spawn_blocking(move || looking.look(stays, Millis::now())).await
}

async fn refresh_once(credential: &Arc<Credential>, refresher: &Refresher, lock_timeout: Duration, looks: &Semaphore) {
    let (Some(due), Some(path)) = (credential.refresh_begins(Millis::now()), credential.path()) else { return };
    let job = Job { path: path.to_owned(), due: due.clone(), lock_timeout };
    let outcome = refresher.refresh(job).await;
    if matches!(outcome, Outcome::Refreshed { .. } | Outcome::Newer) {
        // Before anybody is told: who waits finds the new tokens.
        if let Ok(Look::New(Err(reason))) = look_once(credential, true, looks).await {
            tracing::warn!(credential = credential.tag(), %reason, "credential unavailable");
        }
    }
    log(credential.tag(), &outcome);
    credential.refresh_ended(&due, &outcome, Millis::now());
}

fn log(credential: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Refreshed { .. } => tracing::info!(credential, "tokens refreshed"),
        Outcome::Newer => tracing::info!(credential, "another process refreshed the tokens"),
        Outcome::LoginNeeded { reason } => {
            tracing::error!(credential, reason, "log in again: tokens cannot be refreshed")
        }
        Outcome::Failed { reason, .. } => tracing::warn!(credential, reason, "tokens were not refreshed"),
        Outcome::NotWritable { reason } => {
            tracing::error!(credential, reason, "tokens are not refreshed: the new ones could not be kept");
        }
        Outcome::Busy => tracing::debug!(credential, "another process holds the lock"),
    }
}
