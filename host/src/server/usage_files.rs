//! Usage files as views of the ledger: every minute what is new is added, and the file replaced.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::StartError;
use crate::config::{CredentialConfig, ServiceConfig};
use crate::files::plain;
use crate::ledger::{Ledger, Reader, UsageRow, ViewState};
use crate::usage_file::{self, Found, Sums, Usage};
use crate::values::clock::Timestamp;

/// How often the files are written.
const INTERVAL: Duration = Duration::from_secs(60);

/// Rows that are read at a time.
const ROWS: u32 = 10_000;

/// A usage file: whose rows it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ViewOf {
    path: PathBuf,
    service: String,
    credential: String,
}

/// The usage files that `services` name.
pub(super) fn wanted<'a>(services: impl IntoIterator<Item = &'a ServiceConfig>) -> Vec<ViewOf> {
    let of = |service: &ServiceConfig| {
        let view = |credential: &CredentialConfig| {
            let (service, credential, path) = (
                service.tag.clone(),
                credential.tag.clone(),
                credential.usages_path.clone()?,
            );
            Some(ViewOf {
                path,
                service,
                credential,
            })
        };
        service
            .credentials
            .iter()
            .filter_map(view)
            .collect::<Vec<ViewOf>>()
    };
    services.into_iter().flat_map(of).collect()
}

/// The usage files of all services.
pub(super) struct Views {
    ledger: Arc<Ledger>,
    reader: Option<Reader>,
    views: Vec<View>,
}

struct View {
    of: ViewOf,
    sums: Sums,
    /// The last row in `sums`.
    added: u64,
    /// What the file has.
    state: ViewState,
}

impl View {
    fn key(&self) -> String {
        self.of.path.to_string_lossy().into_owned()
    }
}

impl Views {
    /// Takes in the files that are there, as opening balances.
    pub(super) fn open(ledger: &Arc<Ledger>, wanted: Vec<ViewOf>) -> Result<Self, StartError> {
        let mut views = Self {
            ledger: Arc::clone(ledger),
            reader: None,
            views: Vec::new(),
        };
        for of in wanted {
            let path = of.path.display().to_string();
            views
                .add(of)
                .map_err(|reason| StartError::UsageFile { path, reason })?;
        }
        Ok(views)
    }

    fn add(&mut self, of: ViewOf) -> Result<(), String> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.ledger.reader().map_err(|error| error.to_string())?,
        };
        let view = open(&reader, of);
        self.reader = Some(reader);
        let view = view?;
        self.ledger
            .save_view(&view.key(), view.state.clone())
            .wait();
        self.views.push(view);
        Ok(())
    }

    /// Writes the files from now on, in a thread of its own. The sender tells which, where others are wanted; dropping it
    /// writes them once more and ends the thread.
    pub(super) fn start(mut self) -> std::io::Result<(Sender<Vec<ViewOf>>, JoinHandle<()>)> {
        let (messages, received) = mpsc::channel();
        let run = move || {
            loop {
                match received.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => self.update(),
                    Ok(wanted) => self.change(wanted),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            self.update();
        };
        let thread = thread::Builder::new()
            .name("usage-files".to_owned())
            .spawn(run)?;
        Ok((messages, thread))
    }

    fn update(&mut self) {
        let Some(reader) = &self.reader else { return };
        for view in &mut self.views {
            if let Err(reason) = update(view, reader, &self.ledger) {
                tracing::error!(path = %view.of.path.display(), reason, "the usage file was not written");
            }
        }
    }

    /// Goes on with those that are wanted still, and writes the others for the last time.
    fn change(&mut self, wanted: Vec<ViewOf>) {
        self.update();
        self.views.retain(|view| wanted.contains(&view.of));
        for of in wanted {
            if self.views.iter().any(|view| view.of == of) {
                continue;
            }
            let path = of.path.clone();
            if let Err(reason) = self.add(of) {
                tracing::error!(path = %path.display(), reason, "the usage file cannot be used");
            }
        }
    }
}

fn open(reader: &Reader, of: ViewOf) -> Result<View, String> {
    let path = &of.path;
    let failed = |error: rusqlite::Error| error.to_string();
    let noted = reader.view(&path.to_string_lossy()).map_err(failed)?;
    let last_row = reader.last_row().map_err(failed)?;
    let found = usage_file::read(path, Timestamp::now()).map_err(|error| plain(&error))?;
    let (sums, through, digest) = match (found, noted) {
        (Found::Missing, None) => (Sums::default(), last_row, None),
        // Noted, and then killed before the first writing.
        (Found::Missing, Some(noted)) if noted.digest_before.is_none() => {
            (Sums::default(), noted.through_before, None)
        }
        // Somebody removed it, to begin anew.
        (Found::Missing, Some(noted)) => (Sums::default(), noted.through, None),
        (Found::Sums(sums, digest), Some(noted))
            if noted.digest_before.as_ref() == Some(&digest) =>
        {
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
    let state = ViewState {
        through,
        digest: digest.clone(),
        through_before: through,
        digest_before: digest,
    };
    Ok(View {
        of,
        sums,
        added: through,
        state,
    })
}

fn update(view: &mut View, reader: &Reader, ledger: &Ledger) -> Result<(), String> {
    loop {
        let rows = reader.rows_after(view.added, &view.of.service, &view.of.credential, ROWS);
        let rows = rows.map_err(|error| error.to_string())?;
        let Some(last) = rows.last() else { break };
        view.added = last.id;
        rows.iter().for_each(|row| view.sums.add(&usage(row)));
    }
    if view.added == view.state.through {
        return Ok(());
    }
    let text = view.sums.to_json(Timestamp::now());
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
    usage_file::write(&view.of.path, &text).map_err(|error| plain(&error))?;
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
