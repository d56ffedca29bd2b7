//! Usage files as views of the ledger: every minute what is new is added, and the file replaced.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::StartError;
use crate::files::plain;
use crate::ledger::{Ledger, Reader, UsageRow, ViewState};
use crate::pipeline::Service;
use crate::usage_file::{self, Found, Sums, Usage};
use crate::values::clock::Millis;

/// How often the files are written.
const INTERVAL: Duration = Duration::from_secs(60);

/// Rows that are read at a time.
const ROWS: u32 = 10_000;

/// The usage files of all services.
pub(super) struct Views {
    ledger: Arc<Ledger>,
    reader: Option<Reader>,
    views: Vec<View>,
}

struct View {
    path: PathBuf,
    service: String,
    credential: String,
    sums: Sums,
    /// The last row in `sums`.
    added: u64,
    /// What the file has.
    state: ViewState,
}

impl View {
    fn key(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

impl Views {
    /// Takes in the files that are there, as opening balances.
    pub(super) fn open<'a>(
        ledger: &Arc<Ledger>,
        services: impl Iterator<Item = &'a Service>,
    ) -> Result<Self, StartError> {
        let mut views = Self { ledger: Arc::clone(ledger), reader: None, views: Vec::new() };
        for service in services {
            for credential in service.credentials() {
                let Some(path) = credential.usages_path() else { continue };
                let reader = match views.reader.take() {
                    Some(reader) => reader,
                    None => ledger.reader()?,
                };
                let view = open(&reader, path.to_owned(), service.tag(), credential.tag())
                    .map_err(|reason| StartError::UsageFile { path: path.display().to_string(), reason })?;
                views.reader = Some(reader);
                ledger.save_view(&view.key(), view.state.clone()).wait();
                views.views.push(view);
            }
        }
        Ok(views)
    }

    /// Writes the files from now on, in a thread of its own. Dropping the sender writes them once more and ends it.
    pub(super) fn start(mut self) -> std::io::Result<Option<(Sender<()>, JoinHandle<()>)>> {
        let Some(reader) = self.reader.take() else { return Ok(None) };
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                self.update(&reader);
            }
            self.update(&reader);
        };
        let thread = thread::Builder::new().name("usage-files".to_owned()).spawn(run)?;
        Ok(Some((stop, thread)))
    }

    fn update(&mut self, reader: &Reader) {
        for view in &mut self.views {
            if let Err(reason) = update(view, reader, &self.ledger) {
                tracing::error!(path = %view.path.display(), reason, "the usage file was not written");
            }
        }
    }
}

fn open(reader: &Reader, path: PathBuf, service: &str, credential: &str) -> Result<View, String> {
    let failed = |error: rusqlite::Error| error.to_string();
    let noted = reader.view(&path.to_string_lossy()).map_err(failed)?;
    let last_row = reader.last_row().map_err(failed)?;
    let found = usage_file::read(&path, Millis::now()).map_err(|error| plain(&error))?;
    let (sums, through, digest) = match (found, noted) {
        (Found::Missing, None) => (Sums::default(), last_row, None),
        // Noted, and then killed before the first writing.
        (Found::Missing, Some(noted)) if noted.digest_before.is_none() => (Sums::default(), noted.through_before, None),
        // Somebody removed it, to begin anew.
        (Found::Missing, Some(noted)) => (Sums::default(), noted.through, None),
        (Found::Sums(sums, digest), Some(noted)) if noted.digest_before.as_ref() == Some(&digest) => {
            (*sums, noted.through_before, Some(digest))
        }
        // Ours; or another program's, which added its own to what we had written.
        (Found::Sums(sums, digest), Some(noted)) => (*sums, noted.through, Some(digest)),
        (Found::Sums(sums, digest), None) => (*sums, last_row, Some(digest)),
        (Found::Broken { kept, reason }, noted) => {
            tracing::warn!(kept = %kept.display(), reason, "a broken usage file was kept aside");
            // What the ledger has can be told again.
            (Sums::default(), noted.map_or(last_row, |_| 0), None)
        }
    };
    let state = ViewState { through, digest: digest.clone(), through_before: through, digest_before: digest };
    let (service, credential) = (service.to_owned(), credential.to_owned());
    Ok(View { path, service, credential, sums, added: through, state })
}

fn update(view: &mut View, reader: &Reader, ledger: &Ledger) -> Result<(), String> {
    loop {
        let rows = reader.rows_after(view.added, &view.service, &view.credential, ROWS);
        let rows = rows.map_err(|error| error.to_string())?;
        let Some(last) = rows.last() else { break };
        view.added = last.id;
        rows.iter().for_each(|row| view.sums.add(&usage(row)));
    }
    if view.added == view.state.through {
        return Ok(());
    }
    let text = view.sums.to_json(Millis::now());
    let state = ViewState {
        through: view.added,
        digest: Some(usage_file::digest(text.as_bytes())),
        through_before: view.state.through,
        digest_before: view.state.digest.clone(),
    };
    // Noted before it is written: a kill in between leaves the file of before, which is noted, too.
    if !ledger.save_view(&view.key(), state.clone()).wait() {
        return Err("the ledger cannot be written".to_owned());
    }
    usage_file::write(&view.path, &text).map_err(|error| plain(&error))?;
    view.state = state;
    Ok(())
}

fn usage(row: &UsageRow) -> Usage<'_> {
    Usage {
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
