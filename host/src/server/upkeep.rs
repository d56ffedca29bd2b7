//! The upkeep of credentials beside requests: their files are watched, their tokens refreshed,
//! their usage polled. The files of certificates are watched, too.
//!
//! Owns three tasks for each credential. Does not know how a refresh or a poll changes a
//! credential. Invariant: a refresh that has begun runs to its end, because its refresh token is
//! spent.

pub(super) mod certificates;
mod issuing;
mod poll;
pub(super) mod refresh;
mod stop;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};

use self::certificates::{CertificateFiles, CertificateState, follow_files};
use self::issuing::{AcmePeer, CertificateToIssue, OrderHistories, keep_issued};
use self::poll::poll;
use self::refresh::{RefreshProcess, TokenRefresher};
use self::stop::{REREAD_INTERVAL, StopSignal, wait_for_start};

pub use self::stop::UpkeepStart;

use super::background::BackgroundTasks;
use crate::config::{AcmeConfig, UpstreamRoute};
use crate::credentials::{BrokenFile, Credential, FileCheck, RefreshJob, RefreshOutcome};
use crate::files::FileSettling;
use crate::pipeline::Service;
use crate::upstream::dial::Dialer;
use crate::upstream::{TrustRoots, UpstreamClient};
use crate::values::clock::Timestamp;
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;
use crate::watch::FileWatcher;

/// Files that are read at once. Each read takes a thread for as long as the disk needs.
const CONCURRENT_READS: usize = 4;

/// After this, a read no longer counts as one of [`CONCURRENT_READS`]: a disk that hangs delays one
/// credential alone.
const READ_HANGS: Duration = Duration::from_secs(2);

/// How often it is checked whether a refresh is due. The clock may have been set forward.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// The upkeep of one credential. Dropping it ends the tasks, after a refresh in progress.
pub(super) struct CredentialUpkeep {
    credential: Arc<Credential>,
    _stop: watch::Sender<()>,
}

/// The task that has a certificate issued. Dropping it ends the task.
pub(super) struct CertificateIssuing {
    config: AcmeConfig,
    listen: IpAddr,
    limits: Arc<Limits>,
    _stop: watch::Sender<()>,
}

/// Which tasks a changed configuration restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunningTasks {
    /// Only those of new credentials are started.
    Keep,
    /// All of them, because they hold outdated settings.
    Restart,
}

/// Starts and stops the tasks of credentials.
#[derive(Clone)]
pub(super) struct Upkeep {
    limits: Arc<Limits>,
    trust: TrustRoots,
    refresh_process: RefreshProcess,
    watcher: FileWatcher,
    phases: watch::Receiver<GatewayPhase>,
    start: watch::Receiver<UpkeepStart>,
    /// Refreshes that no request waits for run one at a time, over all services.
    refresh_turn: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    orders: OrderHistories,
    tasks: BackgroundTasks,
}

impl Upkeep {
    pub(super) fn new(
        limits: &Arc<Limits>,
        trust: &TrustRoots,
        refresh_process: RefreshProcess,
        watcher: &FileWatcher,
        phases: &watch::Receiver<GatewayPhase>,
        start: &watch::Receiver<UpkeepStart>,
        tasks: &BackgroundTasks,
    ) -> Self {
        Self {
            limits: Arc::clone(limits),
            trust: trust.clone(),
            refresh_process,
            watcher: watcher.clone(),
            phases: phases.clone(),
            start: start.clone(),
            refresh_turn: Arc::new(Semaphore::new(1)),
            reads: Arc::new(Semaphore::new(CONCURRENT_READS)),
            orders: OrderHistories::default(),
            tasks: tasks.clone(),
        }
    }

    /// Waits until what belongs to one process only begins in this one. Returns `None` if the
    /// gateway ends before.
    pub(super) fn started(&self) -> impl Future<Output = Option<()>> + Send + use<> {
        let (mut start, mut phases) = (self.start.clone(), self.phases.clone());
        async move {
            tokio::select! {
                begun = start.wait_for(|start| *start == UpkeepStart::AtOnce) => {
                    begun.ok().map(drop)
                }
                _ = phases.wait_for(|phase| *phase != GatewayPhase::Running) => None,
            }
        }
    }

    /// Sets the limits of tasks that are started from now on.
    pub(super) fn set_limits(&mut self, limits: &Arc<Limits>) {
        self.limits = Arc::clone(limits);
    }

    /// Starts the upkeep of the credentials of `service`. Of `running`, credentials that are still
    /// in use keep their tasks if `tasks` says so; all other tasks end.
    pub(super) fn start(
        &self,
        service: &Service,
        running: Vec<CredentialUpkeep>,
        tasks: RunningTasks,
    ) -> Vec<CredentialUpkeep> {
        let endpoints = service.endpoints();
        let refresher = Arc::new(TokenRefresher::new(
            self.refresh_process.clone(),
            endpoints.token.clone(),
            &self.limits,
            &self.trust,
        ));
        let chatgpt: Arc<str> = endpoints.chatgpt.to_string().into();
        let mut running = match tasks {
            RunningTasks::Keep => running,
            RunningTasks::Restart => Vec::new(),
        };
        let mut upkeep = Vec::new();
        for (credential, upstream) in service.credentials().iter().zip(service.upstreams()) {
            let known = running
                .iter()
                .position(|running| Arc::ptr_eq(&running.credential, credential));
            upkeep.push(match known {
                Some(place) => running.swap_remove(place),
                None => self.start_credential(credential, upstream, &refresher, &chatgpt),
            });
        }
        upkeep
    }

    /// Starts to follow the files of a certificate, until the returned sender is dropped.
    pub(super) fn follow_certificate(
        &self,
        state: &Arc<CertificateState>,
        files: CertificateFiles,
    ) -> watch::Sender<()> {
        let (stop, upkeep) = watch::channel(());
        let stop_signal = StopSignal::new(&self.phases, upkeep);
        let changed = Arc::new(Notify::new());
        for path in files.paths() {
            self.watcher.watch(path, &changed);
        }
        // They may have changed since they were read for the configuration.
        changed.notify_one();
        let following = follow_files(Arc::clone(state), files, changed, stop_signal);
        self.tasks.spawn(following);
        stop
    }

    /// Has the certificate of `config` issued and renewed, until what is returned is dropped. Ports
    /// for challenges are bound on `listen`. `running` continues if nothing changed for it.
    pub(super) fn issue_certificate(
        &self,
        state: &Arc<CertificateState>,
        config: &AcmeConfig,
        listen: IpAddr,
        running: Option<CertificateIssuing>,
    ) -> CertificateIssuing {
        if let Some(running) = running.filter(|running| {
            running.config == *config && running.listen == listen && *running.limits == *self.limits
        }) {
            return running;
        }
        let (stop, upkeep) = watch::channel(());
        let client = UpstreamClient::new(&self.trust, &self.limits, &UpstreamRoute::Direct);
        let certificate = CertificateToIssue {
            config: config.clone(),
            listen,
            issuing: state.begin_issuing(),
            orders: self.orders.of(config),
            server: AcmePeer::new(client),
        };
        let stop_signal = StopSignal::new(&self.phases, upkeep);
        let issuing = keep_issued(Arc::clone(state), certificate, stop_signal);
        // The process before this one may have an order open.
        let started = self.started();
        self.tasks.spawn(async move {
            if started.await.is_some() {
                issuing.await;
            }
        });
        CertificateIssuing {
            config: config.clone(),
            listen,
            limits: Arc::clone(&self.limits),
            _stop: stop,
        }
    }

    /// Returns the limits of tasks that are started now.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn start_credential(
        &self,
        credential: &Arc<Credential>,
        upstream: &UpstreamClient,
        refresher: &Arc<TokenRefresher>,
        chatgpt: &Arc<str>,
    ) -> CredentialUpkeep {
        let (stop, upkeep) = watch::channel(());
        let stop_signal = StopSignal::new(&self.phases, upkeep);
        if credential.path().is_some() {
            self.start_watching(credential, stop_signal.clone());
            self.start_refreshing(credential, upstream, refresher, stop_signal.clone());
        }
        // A gateway that this one connects to has no capacity for this one: its token may be unknown
        // there.
        if credential.reverse_target().is_none() {
            self.start_polling(credential, upstream, chatgpt, stop_signal);
        }
        CredentialUpkeep {
            credential: Arc::clone(credential),
            _stop: stop,
        }
    }

    fn start_watching(&self, credential: &Arc<Credential>, mut stop: StopSignal) {
        let changed = Arc::new(Notify::new());
        if let Some(path) = credential.path() {
            self.watcher.watch(path, &changed);
        }
        let (credential, reads) = (Arc::clone(credential), Arc::clone(&self.reads));
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = timeout(REREAD_INTERVAL, changed.notified()) => {}
                    () = stop.received_by_reader() => return,
                }
                tokio::select! {
                    () = read_settled(&credential, &reads) => {}
                    () = stop.received_by_reader() => return,
                }
            }
        });
    }

    fn start_refreshing(
        &self,
        credential: &Arc<Credential>,
        upstream: &UpstreamClient,
        refresher: &Arc<TokenRefresher>,
        mut stop: StopSignal,
    ) {
        let (credential, dialer) = (Arc::clone(credential), upstream.dialer().clone());
        let (refresher, turn) = (Arc::clone(refresher), Arc::clone(&self.refresh_turn));
        let (lock_timeout, reads) = (self.limits.lock_timeout, Arc::clone(&self.reads));
        let mut start = self.start.clone();
        self.tasks.spawn(async move {
            if wait_for_start(&mut start, &mut stop).await.is_none() {
                return;
            }
            loop {
                tokio::select! {
                    () = credential.wait_until_refresh_due(CLOCK_INTERVAL) => {}
                    () = stop.received() => return,
                }
                let _turn = if credential.is_refresh_urgent(Timestamp::now()) {
                    None
                } else {
                    tokio::select! {
                        turn = turn.acquire() => turn.ok(),
                        // A request waits for it now.
                        () = credential.wait_until_refresh_needed() => None,
                        () = stop.received() => return,
                    }
                };
                // Not interrupted by `stop`: the refresh token is spent.
                refresh_once(&credential, &dialer, &refresher, lock_timeout, &reads).await;
            }
        });
    }

    fn start_polling(
        &self,
        credential: &Arc<Credential>,
        upstream: &UpstreamClient,
        chatgpt: &Arc<str>,
        mut stop: StopSignal,
    ) {
        let (credential, upstream) = (Arc::clone(credential), upstream.clone());
        let (chatgpt, limit) = (Arc::clone(chatgpt), self.limits.poll_timeout);
        let mut start = self.start.clone();
        self.tasks.spawn(async move {
            if wait_for_start(&mut start, &mut stop).await.is_none() {
                return;
            }
            let polling = async {
                loop {
                    let started = credential.wait_until_poll_due().await;
                    poll(&credential, &started, &upstream, &chatgpt, limit).await;
                }
            };
            tokio::select! {
                () = polling => {}
                () = stop.received() => {}
            }
        });
    }
}

/// Reads a credential's file, again and again while it may be half written.
async fn read_settled(credential: &Arc<Credential>, reads: &Semaphore) {
    let tag = credential.tag();
    let mut settling = FileSettling::new();
    let mut broken = BrokenFile::Ignore;
    loop {
        let unavailable_before = credential.load_error();
        let is_refreshing = credential.is_refreshing();
        match read_once(credential, broken, reads).await {
            Ok(FileCheck::Unchanged) => return,
            // The refresh logs its own outcome.
            Ok(FileCheck::Loaded(Ok(()))) if is_refreshing => return,
            Ok(FileCheck::Loaded(Ok(()))) if unavailable_before.is_some() => {
                return tracing::info!(credential = tag, "credential available");
            }
            Ok(FileCheck::Loaded(Ok(()))) => {
                return tracing::info!(credential = tag, "credential changed");
            }
            Ok(FileCheck::Loaded(Err(reason))) => {
                return tracing::warn!(credential = tag, %reason, "credential unavailable");
            }
            Ok(FileCheck::Incomplete) => match settling.pause_after(()) {
                Some(pause) => sleep(pause).await,
                None => broken = BrokenFile::Accept,
            },
            Err(error) => {
                return tracing::error!(credential = tag, %error, "reading the credential panicked");
            }
        }
    }
}

async fn read_once(
    credential: &Arc<Credential>,
    broken: BrokenFile,
    reads: &Semaphore,
) -> Result<FileCheck, JoinError> {
    let turn = reads.acquire().await;
    let reading = Arc::clone(credential);
    let mut read = spawn_blocking(move || reading.check_file(broken, Timestamp::now()));
    if let Ok(read) = timeout(READ_HANGS, &mut read).await {
        return read;
    }
    drop(turn);
    read.await
}

async fn refresh_once(
    credential: &Arc<Credential>,
    dialer: &Dialer,
    refresher: &TokenRefresher,
    lock_timeout: Duration,
    reads: &Semaphore,
) {
    let (Some(due), Some(path)) = (
        credential.start_refresh(Timestamp::now()),
        credential.path(),
    ) else {
        return;
    };
    let job = RefreshJob {
        path: path.to_owned(),
        due: due.clone(),
        lock_timeout,
    };
    let outcome = refresher.refresh(job, dialer).await;
    if matches!(
        outcome,
        RefreshOutcome::Refreshed { .. } | RefreshOutcome::Newer
    ) {
        // Before `finish_refresh`: requests that wait for it must find the new tokens.
        if let Ok(FileCheck::Loaded(Err(reason))) =
            read_once(credential, BrokenFile::Accept, reads).await
        {
            tracing::warn!(credential = credential.tag(), %reason, "credential unavailable");
        }
    }
    log_refresh(credential.tag(), &outcome);
    credential.finish_refresh(&due, &outcome, Timestamp::now());
}

fn log_refresh(credential: &str, outcome: &RefreshOutcome) {
    match outcome {
        RefreshOutcome::Refreshed { .. } => tracing::info!(credential, "tokens refreshed"),
        RefreshOutcome::Newer => tracing::info!(credential, "tokens refreshed by another process"),
        RefreshOutcome::LoginNeeded { reason } => {
            tracing::error!(credential, reason, "refresh rejected: log in again");
        }
        RefreshOutcome::Failed { reason, .. } | RefreshOutcome::Unreachable { reason } => {
            tracing::warn!(credential, reason, "refresh failed")
        }
        RefreshOutcome::NotWritable { reason } => {
            tracing::error!(
                credential,
                reason,
                "refresh skipped: file cannot be replaced"
            );
        }
        RefreshOutcome::Busy => tracing::debug!(credential, "refresh skipped: file is locked"),
    }
}
