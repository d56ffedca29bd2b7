//! What keeps credentials alive in the background: their files are looked at, their tokens refreshed, their use asked
//! for. Three small tasks a credential, and no thread.

mod poll;
pub(super) mod refresh;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};

use self::poll::poll;
use self::refresh::{RefreshIn, Refresher};
use crate::credentials::{Credential, Job, Look, Outcome};
use crate::pipeline::Service;
use crate::upstream::{Trust, Upstream};
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::Watch;

/// A file is looked at so often even where nothing is told: some file systems tell nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Looks at a time, over all files: each takes a thread for as long as its disk does.
pub(super) const LOOKS: usize = 4;

/// One that takes longer hangs: it holds up nobody but its own credential from then on.
const LOOK_HANGS: Duration = Duration::from_secs(2);

/// A file that is there and broken is given so long, in so many looks, to become whole.
const SETTLE: Duration = Duration::from_millis(150);
const SETTLE_LOOKS: u32 = 5;

/// The clock may be put forward: when something is due is looked at so often.
const CLOCK_AGAIN: Duration = Duration::from_secs(30);

/// What goes on in the background. Whoever waits for its end knows that all of it is over.
#[derive(Clone)]
pub(super) struct Tasks(mpsc::Sender<()>);

impl Tasks {
    /// None yet, and what tells when all are over.
    pub(super) fn new() -> (Self, mpsc::Receiver<()>) {
        let (held, over) = mpsc::channel(1);
        (Self(held), over)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let held = self.0.clone();
        tokio::spawn(async move {
            task.await;
            drop(held);
        });
    }
}

/// A credential that is kept. Where this is dropped it is let go: what was begun goes to its end, and nothing more begins.
pub(super) struct Kept {
    pub(super) credential: Arc<Credential>,
    _let_go: watch::Sender<()>,
}

/// Whether a credential's tasks are to end: with the gateway, or because nobody keeps it any more.
#[derive(Clone)]
struct Until {
    phases: watch::Receiver<Phase>,
    kept: watch::Receiver<()>,
}

impl Until {
    async fn ended(&mut self) {
        let kept = async { while self.kept.changed().await.is_ok() {} };
        tokio::select! {
            // A gateway that is gone has ended, too.
            _ = self.phases.wait_for(|phase| *phase != Phase::Serving) => {}
            () = kept => {}
        }
    }
}

/// What the tasks need.
#[derive(Clone)]
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
    pub(super) tasks: Tasks,
}

impl Keeping {
    /// Keeps the credentials of `service`, until the gateway ends or they are let go. Those that are in `kept` already are
    /// kept on, where nothing changed for them; all others in it are let go.
    pub(super) fn keep(&self, service: &Service, kept: Vec<Kept>, anew: bool) -> Vec<Kept> {
        let endpoints = service.endpoints();
        let place = self.refresh_in.clone();
        let refresher = Arc::new(Refresher::new(
            place,
            endpoints.token.clone(),
            &self.limits,
            &self.trust,
        ));
        let chatgpt: Arc<str> = endpoints.chatgpt.to_string().into();
        let mut kept: Vec<Kept> = if anew { Vec::new() } else { kept };
        let credentials = service.credentials().iter().zip(service.upstreams());
        let keep = |(credential, upstream): (&Arc<Credential>, &Upstream)| {
            if let Some(place) = kept
                .iter()
                .position(|kept| Arc::ptr_eq(&kept.credential, credential))
            {
                return kept.swap_remove(place);
            }
            let (let_go, is_kept) = watch::channel(());
            let until = Until {
                phases: self.phases.clone(),
                kept: is_kept,
            };
            if credential.path().is_some() {
                self.watch(credential, until.clone());
                self.refresh(credential, &refresher, until.clone());
            }
            self.poll(credential, upstream, &chatgpt, until);
            Kept {
                credential: Arc::clone(credential),
                _let_go: let_go,
            }
        };
        credentials.map(keep).collect()
    }

    fn watch(&self, credential: &Arc<Credential>, mut until: Until) {
        let changed = Arc::new(Notify::new());
        if let Some(path) = credential.path() {
            self.watch.file(path, &changed);
        }
        let (credential, looks) = (Arc::clone(credential), Arc::clone(&self.looks));
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = timeout(LOOK_AGAIN, changed.notified()) => {}
                    () = until.ended() => return,
                }
                tokio::select! {
                    () = look(&credential, &looks) => {}
                    () = until.ended() => return,
                }
            }
        });
    }

    fn refresh(&self, credential: &Arc<Credential>, refresher: &Arc<Refresher>, mut until: Until) {
        let credential = Arc::clone(credential);
        let (refresher, turn) = (Arc::clone(refresher), Arc::clone(&self.turn));
        let (lock_timeout, looks) = (self.limits.lock_timeout, Arc::clone(&self.looks));
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = credential.refresh_may_be_due(CLOCK_AGAIN) => {}
                    () = until.ended() => return,
                }
                let _turn = if credential.is_refresh_urgent(Timestamp::now()) {
                    None
                } else {
                    tokio::select! {
                        turn = turn.acquire() => turn.ok(),
                        // Somebody waits for it now.
                        () = credential.refresh_is_wanted() => None,
                        () = until.ended() => return,
                    }
                };
                // Once begun, it goes to its end.
                refresh_once(&credential, &refresher, lock_timeout, &looks).await;
            }
        });
    }

    fn poll(
        &self,
        credential: &Arc<Credential>,
        upstream: &Upstream,
        chatgpt: &Arc<str>,
        mut until: Until,
    ) {
        let (credential, upstream, chatgpt) = (
            Arc::clone(credential),
            upstream.clone(),
            Arc::clone(chatgpt),
        );
        let limit = self.limits.poll_timeout;
        self.tasks.spawn(async move {
            let polling = async {
                loop {
                    let (identity, begun) = credential.poll_is_due().await;
                    poll(&credential, &identity, begun, &upstream, &chatgpt, limit).await;
                }
            };
            tokio::select! {
                () = polling => {}
                () = until.ended() => {}
            }
        });
    }
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
            Err(error) => {
                return tracing::error!(credential = tag, %error, "its file was not looked at");
            }
        }
    }
}

async fn look_once(
    credential: &Arc<Credential>,
    stays: bool,
    looks: &Semaphore,
) -> Result<Look, JoinError> {
    let turn = looks.acquire().await;
    let looking = Arc::clone(credential);
    let mut look = spawn_blocking(move || looking.look(stays, Timestamp::now()));
    if let Ok(looked) = timeout(LOOK_HANGS, &mut look).await {
        return looked;
    }
    drop(turn);
    look.await
}

async fn refresh_once(
    credential: &Arc<Credential>,
    refresher: &Refresher,
    lock_timeout: Duration,
    looks: &Semaphore,
) {
    let (Some(due), Some(path)) = (
        credential.refresh_begins(Timestamp::now()),
        credential.path(),
    ) else {
        return;
    };
    let job = Job {
        path: path.to_owned(),
        due: due.clone(),
        lock_timeout,
    };
    let outcome = refresher.refresh(job).await;
    if matches!(outcome, Outcome::Refreshed { .. } | Outcome::Newer) {
        // Before anybody is told: who waits finds the new tokens.
        if let Ok(Look::New(Err(reason))) = look_once(credential, true, looks).await {
            tracing::warn!(credential = credential.tag(), %reason, "credential unavailable");
        }
    }
    log(credential.tag(), &outcome);
    credential.refresh_ended(&due, &outcome, Timestamp::now());
}

fn log(credential: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Refreshed { .. } => tracing::info!(credential, "tokens refreshed"),
        Outcome::Newer => tracing::info!(credential, "another process refreshed the tokens"),
        Outcome::LoginNeeded { reason } => {
            tracing::error!(
                credential,
                reason,
                "log in again: tokens cannot be refreshed"
            )
        }
        Outcome::Failed { reason, .. } => {
            tracing::warn!(credential, reason, "tokens were not refreshed")
        }
        Outcome::NotWritable { reason } => {
            tracing::error!(
                credential,
                reason,
                "tokens are not refreshed: the new ones could not be kept"
            );
        }
        Outcome::Busy => tracing::debug!(credential, "another process holds the lock"),
    }
}
