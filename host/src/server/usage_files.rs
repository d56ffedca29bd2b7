//! Usage files as views of the ledger: every minute the new rows are added and the file is
//! replaced.
//!
//! Owns which rows a file holds. Does not know its format. Invariant: the ledger knows what a file
//! holds before the file is replaced, so that a kill in between neither loses nor doubles a row.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::StartError;
use crate::config::ServiceConfig;
use crate::files::io_reason;
use crate::ledger::{Ledger, LedgerError, LedgerReader, UsageFileRow, UsageFileState};
use crate::usage_file::{self, ResponseUsage, UsageFileContent, UsageSums};
use crate::values::clock::Timestamp;

/// How often the files are written.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Rows that are read from the ledger at a time.
const ROWS: u32 = 10_000;

/// A usage file, and the credential whose rows it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UsageFileTarget {
    path: PathBuf,
    service: String,
    credential: String,
}

/// Returns the usage files that `services` name.
fn targets<'a>(services: impl IntoIterator<Item = &'a ServiceConfig>) -> Vec<UsageFileTarget> {
    let mut targets = Vec::new();
    for service in services {
        for credential in &service.credentials {
            targets.extend(credential.usages_path.clone().map(|path| UsageFileTarget {
                path,
                service: service.tag.clone(),
                credential: credential.tag.clone(),
            }));
        }
    }
    targets
}

/// Why a usage file is not read or written.
#[derive(Debug, thiserror::Error)]
enum UsageFileError {
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    #[error("the ledger cannot be written")]
    LedgerFailing,
    #[error("{}", io_reason(.0))]
    File(#[from] io::Error),
}

/// The usage files of all services.
pub(super) struct UsageFiles {
    ledger: Arc<Ledger>,
    reader: Option<LedgerReader>,
    files: Vec<UsageFile>,
}

struct UsageFile {
    target: UsageFileTarget,
    sums: UsageSums,
    /// The last row in `sums`.
    added: u64,
    /// What the file on disk holds.
    state: UsageFileState,
}

/// Tells the writing thread which files to write. The thread writes them once more and ends when
/// the last clone is dropped.
#[derive(Clone)]
pub(super) struct UsageFilesWriter(Sender<UsageFilesCommand>);

enum UsageFilesCommand {
    Follow {
        targets: Vec<UsageFileTarget>,
        /// Dropped when the files are open: rows count from then on.
        opened: oneshot::Sender<()>,
    },
    Close {
        /// Dropped when the files were written for the last time.
        closed: oneshot::Sender<()>,
    },
}

/// Usage files that are being opened.
pub(super) struct UsageFilesOpening(oneshot::Receiver<()>);

impl UsageFilesOpening {
    /// Waits until the files are open: rows count from then on.
    pub(super) async fn done(self) {
        // The sender is dropped, never used.
        let _ = self.0.await;
    }
}

impl UsageFilesWriter {
    /// Writes the files that `services` name from now on, and the others for the last time.
    pub(super) fn follow<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceConfig>,
    ) -> UsageFilesOpening {
        let (opened, is_open) = oneshot::channel();
        let targets = targets(services);
        // If the files were closed, nothing is opened.
        let _ = self.0.send(UsageFilesCommand::Follow { targets, opened });
        UsageFilesOpening(is_open)
    }

    /// Writes the files for the last time and waits for that. From then on they belong to another
    /// process.
    pub(super) async fn close(&self) {
        let (closed, is_closed) = oneshot::channel();
        let _ = self.0.send(UsageFilesCommand::Close { closed });
        // The sender is dropped, never used.
        let _ = is_closed.await;
    }
}

impl UsageFiles {
    /// Reads the files that `services` name; what they hold is the opening balance.
    ///
    /// # Errors
    /// A file or the ledger cannot be read.
    pub(super) fn open(
        ledger: &Arc<Ledger>,
        services: &[ServiceConfig],
    ) -> Result<Self, StartError> {
        let mut files = Self {
            ledger: Arc::clone(ledger),
            reader: None,
            files: Vec::new(),
        };
        for target in targets(services) {
            let path = target.path.display().to_string();
            files.add(target).map_err(|error| StartError::UsageFile {
                path,
                reason: error.to_string(),
            })?;
        }
        Ok(files)
    }

    /// Starts a thread that writes the files.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(mut self) -> io::Result<(UsageFilesWriter, JoinHandle<()>)> {
        let (changes, received) = mpsc::channel();
        let run = move || {
            loop {
                match received.recv_timeout(WRITE_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => self.write_all(),
                    Ok(UsageFilesCommand::Follow { targets, opened }) => {
                        self.follow(targets);
                        drop(opened);
                    }
                    Ok(UsageFilesCommand::Close { closed }) => {
                        self.write_all();
                        return drop(closed);
                    }
                    Err(RecvTimeoutError::Disconnected) => return self.write_all(),
                }
            }
        };
        let thread = thread::Builder::new()
            .name("usage-files".to_owned())
            .spawn(run)?;
        Ok((UsageFilesWriter(changes), thread))
    }

    fn add(&mut self, target: UsageFileTarget) -> Result<(), UsageFileError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.ledger.reader()?,
        };
        let file = UsageFile::open(&reader, target);
        self.reader = Some(reader);
        let file = file?;
        self.ledger
            .save_usage_file(&file.key(), file.state.clone())
            .wait();
        self.files.push(file);
        Ok(())
    }

    fn write_all(&mut self) {
        let Some(reader) = &self.reader else { return };
        for file in &mut self.files {
            if let Err(error) = file.write(reader, &self.ledger) {
                let path = file.target.path.display();
                tracing::error!(%path, reason = %error, "usage file not written");
            }
        }
    }

    fn follow(&mut self, targets: Vec<UsageFileTarget>) {
        self.write_all();
        self.files.retain(|file| targets.contains(&file.target));
        for target in targets {
            if self.files.iter().any(|file| file.target == target) {
                continue;
            }
            let path = target.path.clone();
            if let Err(error) = self.add(target) {
                tracing::error!(path = %path.display(), reason = %error, "usage file cannot be used");
            }
        }
    }
}

impl UsageFile {
    fn open(reader: &LedgerReader, target: UsageFileTarget) -> Result<Self, UsageFileError> {
        let path = &target.path;
        let noted = reader.usage_file(&path.to_string_lossy())?;
        let last_row = reader.last_row()?;
        let found = usage_file::read(path, Timestamp::now())?;
        let (sums, through, digest) = match (found, noted) {
            (UsageFileContent::Missing, None) => (UsageSums::default(), last_row, None),
            // The gateway was killed between the note and the first write.
            (UsageFileContent::Missing, Some(noted)) if noted.digest_before.is_none() => {
                (UsageSums::default(), noted.through_before, None)
            }
            // An operator removed it to start from zero.
            (UsageFileContent::Missing, Some(noted)) => (UsageSums::default(), noted.through, None),
            (UsageFileContent::Sums(sums, digest), Some(noted))
                if noted.digest_before.as_ref() == Some(&digest) =>
            {
                (*sums, noted.through_before, Some(digest))
            }
            // As it was written, or continued by another program.
            (UsageFileContent::Sums(sums, digest), Some(noted)) => {
                (*sums, noted.through, Some(digest))
            }
            (UsageFileContent::Sums(sums, digest), None) => (*sums, last_row, Some(digest)),
            (UsageFileContent::Broken { kept, reason }, noted) => {
                tracing::warn!(kept = %kept.display(), %reason, "broken usage file renamed");
                // The rows of the ledger are summed again.
                (UsageSums::default(), noted.map_or(last_row, |_| 0), None)
            }
        };
        let state = UsageFileState {
            through,
            digest: digest.clone(),
            through_before: through,
            digest_before: digest,
        };
        Ok(Self {
            target,
            sums,
            added: through,
            state,
        })
    }

    /// The file's name in the ledger.
    fn key(&self) -> String {
        self.target.path.to_string_lossy().into_owned()
    }

    fn write(&mut self, reader: &LedgerReader, ledger: &Ledger) -> Result<(), UsageFileError> {
        self.add_new_rows(reader)?;
        if self.added == self.state.through {
            return Ok(());
        }
        let text = self.sums.to_json(Timestamp::now());
        let state = UsageFileState {
            through: self.added,
            digest: Some(usage_file::digest(text.as_bytes())),
            through_before: self.state.through,
            digest_before: self.state.digest.clone(),
        };
        // Noted before it is written: a kill in between leaves the old file, whose digest is in the
        // note, too.
        if !ledger.save_usage_file(&self.key(), state.clone()).wait() {
            return Err(UsageFileError::LedgerFailing);
        }
        usage_file::write(&self.target.path, &text)?;
        self.state = state;
        Ok(())
    }

    fn add_new_rows(&mut self, reader: &LedgerReader) -> Result<(), UsageFileError> {
        let (service, credential) = (&self.target.service, &self.target.credential);
        loop {
            let rows = reader.rows_after(self.added, service, credential, ROWS)?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            self.added = last.id;
            rows.iter().for_each(|row| self.sums.add(&usage(row)));
        }
    }
}

fn usage(row: &UsageFileRow) -> ResponseUsage<'_> {
    ResponseUsage {
        model: &row.model,
        service_tier: &row.service_tier,
        context_window: row.context_window,
        week_start_unix: row.week_start_unix,
        user: row.user.as_deref(),
        input: row.input,
        cached: row.cached,
        output: row.output,
        cost: row.cost,
    }
}
