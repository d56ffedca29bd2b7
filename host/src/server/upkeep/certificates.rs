//! The certificates of services: their files are read again when they change.
//!
//! Owns which TLS settings new connections get, and the outcome of reloads. Does not parse
//! certificates. Invariant: settings are replaced by complete ones only; a replacement that cannot
//! be used, or a missing one, leaves the current ones in place. Open connections keep the settings of
//! their handshake.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::stop::{REREAD_INTERVAL, StopSignal};
use crate::config::{ConfigProblem, TlsConfig};
use crate::files::FileSettling;
use crate::tls::{KeptCertificate, MaterialDigest, ReplacedTls, TlsMaterial, TlsServer};
use crate::values::clock::Timestamp;

/// The TLS settings of a service, for new connections, and what is known of its reloads.
pub(in crate::server) struct CertificateState {
    service: String,
    server: watch::Sender<Option<TlsServer>>,
    /// Where the certificate that is in use comes from.
    origin: watch::Sender<CertificateOrigin>,
    progress: Mutex<CertificateProgress>,
}

/// Where the certificate that is in use comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateOrigin {
    /// From its files, as they are or were.
    Files,
    /// From files that the configuration no longer names, or that are gone: its own is still to be
    /// issued.
    Before,
}

/// What is known of a certificate's reloads, for operators. The field names are those of the admin
/// API.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(in crate::server) struct CertificateReport {
    /// When the certificate expires, in Unix milliseconds; `None` while there is none.
    pub(in crate::server) expires_at: Option<u64>,
    /// Replacements that are in use or were.
    pub(in crate::server) replaced: u64,
    /// Replacements that could not be used.
    pub(in crate::server) rejected: u64,
    /// Why the newest replacement is not in use, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::server) problem: Option<String>,
}

#[derive(Default)]
struct CertificateProgress {
    report: CertificateReport,
    /// The number of configurations so far. A reload that began under another one has no effect.
    configuration: u64,
    /// The number of issuing tasks so far. What an earlier one reports has no effect.
    issuing: u64,
    /// Why no certificate was issued the last time.
    issue_problem: Option<String>,
    /// The expiry that was logged last.
    logged_expiry: Option<Timestamp>,
}

impl CertificateState {
    pub(in crate::server) fn new(service: &str) -> Arc<Self> {
        Arc::new(Self {
            service: service.to_owned(),
            server: watch::Sender::new(None),
            origin: watch::Sender::new(CertificateOrigin::Files),
            progress: Mutex::default(),
        })
    }

    /// Returns the settings as connections find them.
    pub(in crate::server) fn server(&self) -> watch::Receiver<Option<TlsServer>> {
        self.server.subscribe()
    }

    pub(in crate::server) fn service(&self) -> &str {
        &self.service
    }

    /// Returns what is known of reloads, or `None` for a service without TLS.
    pub(in crate::server) fn report(&self) -> Option<CertificateReport> {
        let expires_at = self.server.borrow().as_ref()?.expires_at();
        let progress = self.lock();
        let report = progress.report.clone();
        Some(CertificateReport {
            expires_at: expires_at.map(|at| at.0),
            problem: report.problem.or_else(|| progress.issue_problem.clone()),
            ..report
        })
    }

    /// Returns the settings that are in use.
    pub(in crate::server) fn current(&self) -> Option<TlsServer> {
        self.server.borrow().clone()
    }

    /// Returns where the certificate comes from, as it changes.
    pub(super) fn origin(&self) -> watch::Receiver<CertificateOrigin> {
        self.origin.subscribe()
    }

    /// Replaces the settings by those of a changed configuration. Returns the number of that
    /// configuration.
    pub(in crate::server) fn configure(&self, tls: Option<ReplacedTls>) -> u64 {
        let number = {
            let mut progress = self.lock();
            progress.configuration += 1;
            progress.report.problem = None;
            progress.configuration
        };
        let (server, kept) = match tls {
            Some(ReplacedTls { server, kept }) => (Some(server), kept),
            None => (None, None),
        };
        self.log_warnings(server.as_ref());
        self.server.send_replace(server);
        match kept {
            Some(KeptCertificate::Awaited) => self.await_certificate(number),
            Some(KeptCertificate::Rejected(problems)) => {
                self.set_origin(CertificateOrigin::Files);
                self.reject(number, &problems);
            }
            None => {
                self.set_origin(CertificateOrigin::Files);
            }
        }
        number
    }

    /// Begins to report for an issuing task. Returns its number.
    pub(super) fn begin_issuing(&self) -> u64 {
        let mut progress = self.lock();
        progress.issuing += 1;
        progress.issue_problem = None;
        progress.issuing
    }

    /// Ends the reports of the issuing task, if there is one.
    pub(in crate::server) fn end_issuing(&self) {
        self.begin_issuing();
    }

    /// Returns whether it was another one.
    fn set_origin(&self, origin: CertificateOrigin) -> bool {
        let replace = |current: &mut _| std::mem::replace(current, origin) != origin;
        self.origin.send_if_modified(replace)
    }

    /// Keeps the certificate, although its file is missing, until another one is issued.
    fn await_certificate(&self, configuration: u64) {
        let mut progress = self.lock();
        if progress.configuration != configuration {
            return;
        }
        progress.report.problem = None;
        if self.set_origin(CertificateOrigin::Before) {
            tracing::warn!(
                service = self.service,
                "certificate file missing, keeping the current one until another one is issued"
            );
        }
    }

    fn replace(&self, configuration: u64, server: TlsServer) {
        let mut progress = self.lock();
        if progress.configuration != configuration {
            return;
        }
        progress.report.replaced += 1;
        progress.report.problem = None;
        progress.issue_problem = None;
        let expires_at = server.expires_at().map(|at| at.0);
        tracing::info!(service = self.service, expires_at, "certificate replaced");
        self.log_warnings(Some(&server));
        // First: an issuing task must not take the new certificate for the one from before.
        self.set_origin(CertificateOrigin::Files);
        self.server.send_replace(Some(server));
    }

    fn reject(&self, configuration: u64, problems: &[ConfigProblem]) {
        let lines: Vec<String> = problems.iter().map(ConfigProblem::to_string).collect();
        let reason = lines.join("; ");
        let mut progress = self.lock();
        if progress.configuration != configuration
            || progress.report.problem.as_ref() == Some(&reason)
        {
            return;
        }
        progress.report.rejected += 1;
        tracing::error!(
            service = self.service,
            reason,
            "certificate rejected, keeping the current one"
        );
        progress.report.problem = Some(reason);
    }

    /// Notes that the files have the text that is in use, and logs its expiry once.
    fn confirm(&self, configuration: u64) {
        let mut progress = self.lock();
        if progress.configuration != configuration {
            return;
        }
        if self.set_origin(CertificateOrigin::Files) {
            // The file is there again: it need not be issued.
            progress.issue_problem = None;
        }
        if progress.report.problem.take().is_some() {
            tracing::info!(service = self.service, "certificate restored");
        }
        let expires_at = self
            .server
            .borrow()
            .as_ref()
            .and_then(TlsServer::expires_at);
        let is_over = expires_at.is_some_and(|at| at <= Timestamp::now());
        if is_over && progress.logged_expiry != expires_at {
            progress.logged_expiry = expires_at;
            tracing::error!(service = self.service, "certificate expired");
        }
    }

    /// Notes that a certificate was issued and stored.
    pub(super) fn issued(&self, issuing: u64) {
        let mut progress = self.lock();
        if progress.issuing == issuing {
            tracing::info!(service = self.service, "certificate issued");
            progress.issue_problem = None;
        }
    }

    /// Notes that no certificate was issued. It is tried again after `pause`.
    pub(super) fn issue_failed(&self, issuing: u64, reason: &str, pause: Duration) {
        let mut progress = self.lock();
        if progress.issuing != issuing {
            return;
        }
        progress.report.rejected += 1;
        tracing::error!(
            service = self.service,
            reason,
            retry_s = pause.as_secs(),
            "certificate not issued"
        );
        progress.issue_problem = Some(reason.to_owned());
    }

    /// Returns why the newest replacement is not in use, if it is not.
    pub(super) fn rejection(&self) -> Option<String> {
        self.lock().report.problem.clone()
    }

    fn log_warnings(&self, server: Option<&TlsServer>) {
        for warning in server.into_iter().flat_map(TlsServer::warnings) {
            tracing::warn!(service = self.service, %warning, "certificate");
        }
    }

    fn lock(&self) -> MutexGuard<'_, CertificateProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a certificate, and the settings that are made from them.
#[derive(Clone)]
pub(in crate::server) struct CertificateFiles {
    config: Arc<TlsConfig>,
    handshake_timeout: Duration,
    /// As [`CertificateState::configure`] returned it.
    configuration: u64,
}

/// The outcome of reading the files once.
enum FilesRead {
    Unchanged,
    /// There is a certificate, and no file: another one is still to be issued.
    Awaited,
    Changed(Box<TlsServer>),
    Unusable {
        /// `None` if a file cannot be read.
        digest: Option<MaterialDigest>,
        problems: Vec<ConfigProblem>,
    },
}

impl CertificateFiles {
    pub(in crate::server) fn new(
        config: &TlsConfig,
        handshake_timeout: Duration,
        configuration: u64,
    ) -> Self {
        Self {
            config: Arc::new(config.clone()),
            handshake_timeout,
            configuration,
        }
    }

    pub(super) fn paths(&self) -> Vec<&Path> {
        self.config.files()
    }

    /// Reads all files. `current` is what is in use. Blocks.
    fn read(&self, current: Option<&TlsServer>) -> FilesRead {
        let material = match TlsMaterial::read(&self.config) {
            Ok(material) => material,
            Err(problems) => {
                return FilesRead::Unusable {
                    digest: None,
                    problems,
                };
            }
        };
        let lender =
            current.filter(|current| current.must_lend_certificate(&self.config, &material));
        let material = Arc::new(match lender {
            Some(lender) => material.with_certificate_of(lender.material()),
            None => material,
        });
        let digest = material.digest();
        if current.is_some_and(|current| current.digest() == digest) {
            return match lender {
                Some(_) => FilesRead::Awaited,
                None => FilesRead::Unchanged,
            };
        }
        let server = TlsServer::new(&self.config, &material, self.handshake_timeout);
        let server = server.and_then(|server| {
            let problems = current.map(|current| server.rejections_beside(current));
            match problems {
                Some(problems) if !problems.is_empty() => Err(problems),
                Some(_) | None => Ok(server),
            }
        });
        match server {
            Ok(server) => FilesRead::Changed(Box::new(server)),
            Err(problems) => FilesRead::Unusable {
                digest: Some(digest),
                problems,
            },
        }
    }
}

/// Reads the files when `changed` says so, and from time to time, until `stop`.
pub(super) async fn follow_files(
    state: Arc<CertificateState>,
    files: CertificateFiles,
    changed: Arc<Notify>,
    mut stop: StopSignal,
) {
    loop {
        tokio::select! {
            _ = timeout(REREAD_INTERVAL, changed.notified()) => {}
            () = stop.received() => return,
        }
        tokio::select! {
            () = read_settled(&state, &files) => {}
            () = stop.received() => return,
        }
    }
}

/// Reads the files, again and again while they may be half written, or replaced one by one.
async fn read_settled(state: &CertificateState, files: &CertificateFiles) {
    let mut settling = FileSettling::new();
    loop {
        let (reading, current) = (files.clone(), state.current());
        let read = spawn_blocking(move || reading.read(current.as_ref())).await;
        match read {
            Ok(FilesRead::Unchanged) => return state.confirm(files.configuration),
            Ok(FilesRead::Awaited) => match settling.pause_after(None) {
                Some(pause) => sleep(pause).await,
                None => return state.await_certificate(files.configuration),
            },
            Ok(FilesRead::Changed(server)) => return state.replace(files.configuration, *server),
            Ok(FilesRead::Unusable { digest, problems }) => match settling.pause_after(digest) {
                Some(pause) => sleep(pause).await,
                None => return state.reject(files.configuration, &problems),
            },
            Err(error) => {
                let service = &state.service;
                return tracing::error!(service, %error, "reading the certificate panicked");
            }
        }
    }
}
