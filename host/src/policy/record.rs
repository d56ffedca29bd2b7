//! Records of calls: JSON lines in a file that begins anew when it is full. Written by a thread of their own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::repeat::Call;
use crate::files::{io_reason, path_with_suffix};
use crate::values::limits::Limits;

/// Calls that wait to be written. Past it a call is left out, and counted.
const QUEUE: usize = 4096;

/// Writes calls to a file.
pub(super) struct Recorder {
    calls: Option<SyncSender<Arc<Call>>>,
    left_out: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// # Errors
    /// The file cannot be written; the text names it.
    pub(super) fn start(path: &Path, limits: &Limits) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("cannot record to {}: {}", path.display(), io_reason(&error))
        };
        let left_out = Arc::new(AtomicU64::new(0));
        let writing = Writing::open(path, limits, &left_out).map_err(failed)?;
        let (calls, received) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("policy-record".to_owned())
            .spawn(move || writing.run(&received));
        Ok(Self {
            calls: Some(calls),
            left_out,
            thread: Some(thread.map_err(failed)?),
        })
    }

    pub(super) fn take(&self, call: &Arc<Call>) {
        let sent = self
            .calls
            .as_ref()
            .is_some_and(|calls| calls.try_send(Arc::clone(call)).is_ok());
        if !sent {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

impl Drop for Recorder {
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

struct Writing {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    bytes_max: u64,
    files_max: u64,
    failing: bool,
    left_out: Arc<AtomicU64>,
}

impl Writing {
    fn open(path: &Path, limits: &Limits, left_out: &Arc<AtomicU64>) -> io::Result<Self> {
        let (file, bytes) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max: limits.policy_record_bytes,
            files_max: limits.policy_record_files,
            failing: false,
            left_out: Arc::clone(left_out),
        })
    }

    fn run(mut self, calls: &Receiver<Arc<Call>>) {
        while let Ok(first) = calls.recv() {
            if self.is_gone() {
                let opened = self.open_again();
                self.note(opened);
            }
            self.take(&first);
            while let Ok(next) = calls.try_recv() {
                self.take(&next);
            }
            let flushed = self.file.flush();
            self.note(flushed);
        }
    }

    fn take(&mut self, call: &Call) {
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

    /// Whether somebody removed the file, or put another in its place.
    fn is_gone(&self) -> bool {
        let own = self
            .file
            .get_ref()
            .metadata()
            .map(|meta| (meta.dev(), meta.ino()));
        let there = fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        own.ok() != there.ok()
    }

    fn open_again(&mut self) -> io::Result<()> {
        (self.file, self.bytes) = open(&self.path)?;
        Ok(())
    }

    /// Told once, until it is over.
    fn note(&mut self, done: io::Result<()>) {
        match done {
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(path = %self.path.display(), error = io_reason(&error), "policy calls are not recorded");
            }
            Err(_) => {}
            Ok(()) => self.failing = false,
        }
    }

    /// `record` becomes `record.1`, that `record.2`, and so on; the oldest goes.
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
        self.open_again()
    }
}

fn open(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    // Nobody waits for the other end of a FIFO.
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("expected a file, found something else"));
    }
    Ok((BufWriter::new(file), meta.len()))
}
