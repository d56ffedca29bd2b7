//! Recorders: a policy's calls as JSON lines in a file that is rotated when it is full.
//!
//! Knows nothing about policies. Invariant: one thread writes a record, and handing it a call never
//! waits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::recorded::RecordedCall;
use crate::files::{io_reason, path_with_suffix};
use crate::platform::{AccessOptions, file_identity};
use crate::values::limits::Limits;

/// The calls that may wait to be written. Further ones are left out and counted.
const QUEUE_LENGTH: usize = 4096;

/// Writes calls to a file.
pub(crate) struct CallRecorder {
    /// `None` while the recorder is dropped.
    calls: Option<SyncSender<Arc<RecordedCall>>>,
    left_out: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A record that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot record to {}: {}", .path.display(), io_reason(.source))]
pub(crate) struct RecordError {
    path: PathBuf,
    source: io::Error,
}

impl CallRecorder {
    /// Starts to record to the file at `path`.
    ///
    /// # Errors
    /// The file cannot be written, or no thread can be started.
    pub(crate) fn start(path: &Path, limits: &Limits) -> Result<Self, RecordError> {
        let failed = |source| RecordError {
            path: path.to_owned(),
            source,
        };
        let left_out = Arc::new(AtomicU64::new(0));
        let writer = RecordWriter::open(path, limits, &left_out).map_err(failed)?;
        let (calls, received) = sync_channel(QUEUE_LENGTH);
        let thread = thread::Builder::new()
            .name("policy-record".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(failed)?;
        Ok(Self {
            calls: Some(calls),
            left_out,
            thread: Some(thread),
        })
    }

    /// Records `call`, or leaves it out if the queue is full.
    pub(super) fn record(&self, call: &Arc<RecordedCall>) {
        let is_queued = self
            .calls
            .as_ref()
            .is_some_and(|calls| calls.try_send(Arc::clone(call)).is_ok());
        if !is_queued {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of calls that were left out.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

impl Drop for CallRecorder {
    fn drop(&mut self) {
        drop(self.calls.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the writer of a policy's record panicked");
        }
    }
}

struct RecordWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// The length of the file.
    bytes: u64,
    bytes_max: u64,
    /// The full files that are kept beside the current one.
    files_max: u64,
    is_failing: bool,
    left_out: Arc<AtomicU64>,
}

impl RecordWriter {
    fn open(path: &Path, limits: &Limits, left_out: &Arc<AtomicU64>) -> io::Result<Self> {
        let (file, bytes) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max: limits.policy_record_bytes,
            files_max: limits.policy_record_files,
            is_failing: false,
            left_out: Arc::clone(left_out),
        })
    }

    /// Writes calls until the recorder is dropped.
    fn run(mut self, calls: &Receiver<Arc<RecordedCall>>) {
        while let Ok(first) = calls.recv() {
            if self.was_replaced() {
                let reopened = self.reopen();
                self.note(reopened);
            }
            self.write(&first);
            while let Ok(next) = calls.try_recv() {
                self.write(&next);
            }
            let flushed = self.file.flush();
            self.note(flushed);
        }
    }

    fn write(&mut self, call: &RecordedCall) {
        let Ok(mut line) = serde_json::to_vec(call) else {
            return;
        };
        line.push(b'\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            let rotated = self.rotate();
            self.note(rotated);
        }
        let written = self.file.write_all(&line);
        self.bytes += line.len() as u64;
        if written.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        self.note(written);
    }

    /// Returns whether the file was removed or another file is in its place.
    fn was_replaced(&self) -> bool {
        let own = self
            .file
            .get_ref()
            .metadata()
            .map(|meta| file_identity(&meta));
        let current = fs::metadata(&self.path).map(|meta| file_identity(&meta));
        own.ok() != current.ok()
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.bytes) = open(&self.path)?;
        Ok(())
    }

    /// Logs the first of a series of failures.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!(path = %self.path.display(), error = io_reason(&error), "policy calls not recorded");
            }
            Err(_) => {}
            Ok(()) => self.is_failing = false,
        }
    }

    /// Renames `record` to `record.1`, that to `record.2`, and so on; the oldest is replaced.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let numbered = |number: u64| path_with_suffix(&self.path, &format!(".{number}"));
        if self.files_max == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for number in (1..self.files_max).rev() {
                let from = numbered(number);
                if from.exists() {
                    fs::rename(from, numbered(number + 1))?;
                }
            }
            fs::rename(&self.path, numbered(1))?;
        }
        self.reopen()
    }
}

/// Opens the file at `path` for appending, and returns its length.
fn open(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .private()
        .without_waiting();
    let file = options.open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("expected a file, found something else"));
    }
    Ok((BufWriter::new(file), meta.len()))
}
