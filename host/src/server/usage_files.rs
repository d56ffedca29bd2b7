//! Usage files as views of the ledger: new rows are added, and the file is replaced, after the first
//! row at once and then at most every minute.
//!
//! Owns which rows a file holds. Does not know its format. Invariant: the ledger knows what a file
//! holds before the file is replaced, so that a kill in between neither loses nor doubles a row.

mod schedule;
mod target;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::schedule::{UsageFilesCommand, Wake, WriteSchedule};
use self::target::{UsageFileTarget, targets};
use super::error::StartError;
use crate::config::ServiceConfig;
use crate::files::io_reason;
use crate::ledger::{Ledger, LedgerError, LedgerReader, UsageFileRow, UsageFileState};
use crate::usage_file::{self, ResponseUsage, UsageFileContent, UsageSums};
use crate::values::clock::Timestamp;

/// How often a file is written at most.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Rows that are read from the ledger at a time.
const ROWS: u32 = 10_000;

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
    /// `sums` contain the rows up to this one.
    added: u64,
    /// Whether `sums` contain rows that the file on disk lacks.
    has_new_rows: bool,
    /// What the file on disk holds.
    state: UsageFileState,
    /// When the file may be written again; `None` if it was not written yet.
    next_write: Option<Instant>,
}

/// Tells the writing thread which files to write. The thread writes them once more and ends when
/// the last clone is dropped.
#[derive(Clone)]
pub(super) struct UsageFilesWriter(Arc<Sender<UsageFilesCommand>>);

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
        let (commands, received) = mpsc::channel();
        let commands = Arc::new(commands);
        // Weak: the thread ends when the last writer is dropped, while the ledger is still open.
        let listener = Arc::downgrade(&commands);
        let schedule = WriteSchedule::new(received);
        let announced = schedule.announced();
        self.ledger.notify_of_rows(move || {
            if let Some(commands) = listener.upgrade()
                && announced.claim()
            {
                let _ = commands.send(UsageFilesCommand::RowsCommitted);
            }
        });
        let thread = thread::Builder::new()
            .name("usage-files".to_owned())
            .spawn(move || self.run(schedule))?;
        Ok((UsageFilesWriter(commands), thread))
    }

    fn run(&mut self, mut schedule: WriteSchedule) {
        loop {
            match schedule.wait() {
                Wake::Write(now) => {
                    let next = self.write_due(now);
                    schedule.written(now, next);
                }
                Wake::Follow(targets, opened) => {
                    self.follow(targets);
                    drop(opened);
                }
                Wake::Close(closed) => {
                    self.write_all();
                    return drop(closed);
                }
                Wake::End => return self.write_all(),
            }
        }
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

    /// Writes the files that may be written at `now`. Returns when the next of the others may be.
    fn write_due(&mut self, now: Instant) -> Option<Instant> {
        let reader = self.reader.as_ref()?;
        let mut next: Option<Instant> = None;
        for file in &mut self.files {
            let waits_until = match file.next_write.filter(|until| *until > now) {
                Some(until) => Some(until),
                None => file.write_logged(reader, &self.ledger, now),
            };
            next = [next, waits_until].into_iter().flatten().min();
        }
        next
    }

    fn write_all(&mut self) {
        let Some(reader) = &self.reader else { return };
        for file in &mut self.files {
            file.write_logged(reader, &self.ledger, Instant::now());
        }
    }

    fn follow(&mut self, targets: Vec<UsageFileTarget>) {
        self.write_all();
        self.files
            .retain(|file| targets.iter().any(|target| target.path == file.target.path));
        for target in targets {
            let known = self
                .files
                .iter_mut()
                .find(|file| file.target.path == target.path);
            match known {
                Some(file) => file.follow(target, &self.ledger),
                None => self.add_logged(target),
            }
        }
    }

    fn add_logged(&mut self, target: UsageFileTarget) {
        let path = target.path.clone();
        if let Err(error) = self.add(target) {
            tracing::error!(path = %path.display(), reason = %error, "usage file cannot be used");
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
            has_new_rows: false,
            state,
            next_write: None,
        })
    }

    /// Continues with the owners of `target`. Rows of new owners count from now on.
    fn follow(&mut self, target: UsageFileTarget, ledger: &Ledger) {
        if self.target == target {
            return;
        }
        self.target = target;
        if !self.has_new_rows {
            self.state.through = self.added;
            self.state.through_before = self.added;
            self.state.digest_before = self.state.digest.clone();
            ledger
                .save_usage_file(&self.key(), self.state.clone())
                .wait();
        }
    }

    /// The file's name in the ledger.
    fn key(&self) -> String {
        self.target.path.to_string_lossy().into_owned()
    }

    /// Writes the file if there are new rows. Returns when the next attempt may be made, if there
    /// was one.
    fn write_logged(
        &mut self,
        reader: &LedgerReader,
        ledger: &Ledger,
        now: Instant,
    ) -> Option<Instant> {
        match self.write(reader, ledger) {
            Ok(WriteOutcome::Unchanged) => return None,
            Ok(WriteOutcome::Written) => {}
            Err(error) => {
                let path = self.target.path.display();
                tracing::error!(%path, reason = %error, "usage file not written");
            }
        }
        self.next_write = Some(now + WRITE_INTERVAL);
        self.next_write
    }

    fn write(
        &mut self,
        reader: &LedgerReader,
        ledger: &Ledger,
    ) -> Result<WriteOutcome, UsageFileError> {
        self.add_new_rows(reader)?;
        if !self.has_new_rows {
            return Ok(WriteOutcome::Unchanged);
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
        self.has_new_rows = false;
        Ok(WriteOutcome::Written)
    }

    /// Adds the rows of all owners up to the last row that there is now. If one cannot be read,
    /// none is added.
    fn add_new_rows(&mut self, reader: &LedgerReader) -> Result<(), UsageFileError> {
        let last = reader.last_row()?;
        let mut sums = self.sums.clone();
        let mut count = 0;
        for owner in &self.target.owners {
            let mut after = self.added;
            while after < last {
                let rows = reader.rows_after(after, &owner.service, &owner.credential, ROWS)?;
                // Later ones wait for the next time: rows of other owners before them may not have
                // been read.
                let found = rows.iter().filter(|row| row.id <= last);
                count += found.clone().count();
                found.for_each(|row| sums.add(&usage(row)));
                after = rows.last().map_or(last, |row| row.id);
            }
        }
        if count > 0 {
            self.sums = sums;
            self.has_new_rows = true;
        }
        self.added = last;
        Ok(())
    }
}

/// What an attempt to write a file did.
enum WriteOutcome {
    /// There were no new rows.
    Unchanged,
    Written,
}

fn usage(row: &UsageFileRow) -> ResponseUsage<'_> {
    ResponseUsage {
        model: &row.model,
        service_tier: &row.service_tier,
        context_window: row.context_window,
        week_start_unix: row.week_start_unix,
        // A user without a name counts in the total alone, as in sing-box.
        user: row.user.as_deref().filter(|user| !user.is_empty()),
        requests: row.requests,
        input: row.input,
        cached: row.cached,
        output: row.output,
        cost: row.cost,
    }
}
