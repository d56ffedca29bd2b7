//! Watches files through their folders, because a file is usually replaced by another one of the
//! same name.
//!
//! Owns one watcher and one thread for all files. Does not know what the files contain. Invariant:
//! each change is reported at least once, after it has happened. A report does not mean that the
//! content differs.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::files::parent_folder;

/// How long changes are collected after the first: replacing a file causes several.
const COLLECT_FOR: Duration = Duration::from_millis(2);

/// Events that may wait. If there are more, every file is reported.
const EVENT_QUEUE: usize = 4096;

/// How many symbolic links are followed.
const LINKS_MAX: usize = 16;

/// Watches files until the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct FileWatcher {
    /// `None` if the system does not support watching.
    thread: Option<Arc<WatchThreadHandle>>,
}

/// Ends the thread when it is dropped. The thread itself keeps its queue open, because the events
/// arrive there, too.
#[derive(Debug)]
struct WatchThreadHandle {
    messages: SyncSender<WatchMessage>,
    stopped: Arc<AtomicBool>,
}

impl Drop for WatchThreadHandle {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // If the queue is full, the thread finds out at its next message.
        let _ = self.messages.try_send(WatchMessage::Stop);
    }
}

#[derive(Debug)]
enum WatchMessage {
    Stop,
    Watch {
        path: PathBuf,
        changed: Weak<Notify>,
    },
    Event(notify::Result<Event>),
}

impl FileWatcher {
    /// Starts the thread. If the system does not support watching, this is logged once and nothing
    /// is ever reported: callers must read their files from time to time, too.
    pub(crate) fn start() -> Self {
        let (messages, received) = mpsc::sync_channel(EVENT_QUEUE);
        let lost = Arc::new(AtomicBool::new(false));
        let (events, was_lost) = (messages.clone(), Arc::clone(&lost));
        let send_event = move |event| {
            if events.try_send(WatchMessage::Event(event)).is_err() {
                was_lost.store(true, Ordering::Release);
            }
        };
        let watcher = notify::recommended_watcher(send_event);
        let stopped = Arc::new(AtomicBool::new(false));
        let started = watcher
            .map_err(|error| error.to_string())
            .and_then(|watcher| {
                let thread = WatchThread {
                    watcher,
                    files: Vec::new(),
                    folders: HashMap::new(),
                    lost,
                    stopped: Arc::clone(&stopped),
                };
                let run = move || thread.run(&received);
                thread::Builder::new()
                    .name("watch".to_owned())
                    .spawn(run)
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(_) => Self {
                thread: Some(Arc::new(WatchThreadHandle { messages, stopped })),
            },
            Err(error) => {
                tracing::warn!(error, "files cannot be watched, polling them instead");
                Self { thread: None }
            }
        }
    }

    /// Watches the file at `path`; neither the file nor its folder need exist. Notifies `changed`
    /// once when watching has started and then of each change, until the caller drops it.
    pub(crate) fn watch(&self, path: &Path, changed: &Arc<Notify>) {
        if let Some(thread) = &self.thread {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            // If the thread panicked, callers find changes by polling.
            let _ = thread.messages.send(WatchMessage::Watch {
                path,
                changed: Arc::downgrade(changed),
            });
        }
    }
}

struct WatchThread {
    watcher: RecommendedWatcher,
    files: Vec<WatchedFile>,
    /// The watched folders, each with the error of the last attempt to watch it.
    folders: HashMap<PathBuf, Option<String>>,
    /// Set when the queue was full: any file may have changed.
    lost: Arc<AtomicBool>,
    /// Set when the last [`FileWatcher`] was dropped.
    stopped: Arc<AtomicBool>,
}

struct WatchedFile {
    path: PathBuf,
    changed: Weak<Notify>,
    /// The names in watched folders on which the file depends: its own, those of links, and those
    /// of folders above it.
    names: BTreeSet<(PathBuf, OsString)>,
}

impl WatchThread {
    fn run(mut self, messages: &Receiver<WatchMessage>) {
        while let Ok(first) = messages.recv() {
            let mut touched = BTreeSet::new();
            self.handle(first, &mut touched);
            // Bounded, because a busy folder would delay reports for ever otherwise.
            let started = Instant::now();
            while let Ok(message) = messages.recv_timeout(COLLECT_FOR) {
                self.handle(message, &mut touched);
                if started.elapsed() > COLLECT_FOR {
                    break;
                }
            }
            if self.lost.swap(false, Ordering::AcqRel) {
                touched.extend(0..self.files.len());
            }
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            self.report(&touched);
        }
    }

    /// Adds the indices of the files that `message` is about to `touched`.
    fn handle(&mut self, message: WatchMessage, touched: &mut BTreeSet<usize>) {
        match message {
            // `run` looks at `stopped`.
            WatchMessage::Stop => {}
            WatchMessage::Watch { path, changed } => {
                if touched.is_empty() {
                    // No index is in use at this moment.
                    self.files.retain(|file| file.changed.strong_count() > 0);
                }
                self.files.push(WatchedFile {
                    path,
                    changed,
                    names: BTreeSet::new(),
                });
                touched.insert(self.files.len() - 1);
            }
            WatchMessage::Event(Ok(event)) if is_change(event.kind) => {
                let all = event.need_rescan() || event.paths.is_empty();
                for (place, file) in self.files.iter().enumerate() {
                    if all || event.paths.iter().any(|path| file.depends_on(path)) {
                        touched.insert(place);
                    }
                }
            }
            WatchMessage::Event(Ok(_)) => {}
            WatchMessage::Event(Err(error)) => {
                tracing::debug!(%error, "file system event lost");
                touched.extend(0..self.files.len());
            }
        }
    }

    fn report(&mut self, touched: &BTreeSet<usize>) {
        for place in touched {
            // Watched before it is reported, so that a change in between is reported again. The
            // names are read once more after that, because a folder may have been created
            // meanwhile.
            let path = self.files[*place].path.clone();
            let mut known = BTreeSet::new();
            for _ in 0..LINKS_MAX {
                let now = names(&path);
                if now == known {
                    break;
                }
                now.iter().for_each(|(folder, _)| self.watch_folder(folder));
                known = now;
            }
            let file = &mut self.files[*place];
            file.names = known;
            if let Some(changed) = file.changed.upgrade() {
                changed.notify_one();
            }
        }
        if !touched.is_empty() {
            self.forget_unused();
        }
    }

    fn watch_folder(&mut self, folder: &Path) {
        // Even if it is watched already: it may have been replaced, and the old folder is watched
        // then.
        let failure = self
            .watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .err()
            .map(|error| error.to_string());
        let known = self.folders.insert(folder.to_owned(), failure.clone());
        if let Some(error) = failure
            && known != Some(Some(error.clone()))
        {
            tracing::warn!(folder = %folder.display(), error, "folder cannot be watched, polling its files instead");
        }
    }

    fn forget_unused(&mut self) {
        let used: BTreeSet<&PathBuf> = self
            .files
            .iter()
            .flat_map(|file| &file.names)
            .map(|(folder, _)| folder)
            .collect();
        let unused: Vec<PathBuf> = self
            .folders
            .keys()
            .filter(|folder| !used.contains(folder))
            .cloned()
            .collect();
        for folder in unused {
            // Fails for a folder that was removed, which is not watched any more.
            let _ = self.watcher.unwatch(&folder);
            self.folders.remove(&folder);
        }
    }
}

impl WatchedFile {
    fn depends_on(&self, path: &Path) -> bool {
        let is_name = path.file_name().is_some_and(|name| {
            self.names
                .iter()
                .any(|(within, known)| known == name && within.as_path() == parent_folder(path))
        });
        // Or a watched folder itself was moved or removed.
        is_name || self.names.iter().any(|(within, _)| within == path)
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        // Closed after writing: the file is complete.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// Returns the names on which the file at `path` depends, each with the folder to watch for it. For
/// a missing folder, that is the deepest existing one above it.
fn names(path: &Path) -> BTreeSet<(PathBuf, OsString)> {
    let mut names = BTreeSet::new();
    let mut next = Some(path.to_owned());
    for _ in 0..LINKS_MAX {
        let Some(path) = next.take() else { break };
        let mut within = parent_folder(&path).to_owned();
        let mut name = path.file_name().map(OsString::from);
        while !within.is_dir() {
            name = within.file_name().map(OsString::from);
            let Some(parent) = within.parent() else { break };
            within = parent.to_owned();
        }
        // Links among the folders, too: a Kubernetes volume swaps one of those.
        for ancestor in within.ancestors().filter(|ancestor| ancestor.is_symlink()) {
            if let (Some(parent), Some(name)) = (ancestor.parent(), ancestor.file_name()) {
                names.insert((parent.to_owned(), name.to_owned()));
            }
        }
        next = std::fs::read_link(&path)
            .ok()
            .map(|target| within.join(target));
        if let Some(name) = name {
            names.insert((within, name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    struct TempFolder(PathBuf);

    impl TempFolder {
        fn new() -> Self {
            let path =
                std::env::temp_dir().join(format!("tollgate-watch-{}", uuid::Uuid::new_v4()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for TempFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn is_reported(changed: &Notify) -> bool {
        timeout(Duration::from_secs(5), changed.notified())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn every_kind_of_change_is_reported() {
        let folder = TempFolder::new();
        let path = folder.0.join("missing/folders/auth.json");
        let changed = Arc::new(Notify::new());
        let watcher = FileWatcher::start();
        watcher.watch(&path, &changed);
        assert!(is_reported(&changed).await, "watching starts");
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        assert!(is_reported(&changed).await, "folders appeared");
        let steps: [(&str, &dyn Fn()); 5] = [
            ("created", &|| fs::write(&path, "1").expect("writes")),
            ("written", &|| fs::write(&path, "2").expect("writes")),
            ("replaced", &|| {
                let other = path.with_extension("new");
                fs::write(&other, "3").expect("writes");
                fs::rename(other, &path).expect("renames");
            }),
            ("removed", &|| fs::remove_file(&path).expect("removes")),
            ("created again", &|| fs::write(&path, "4").expect("writes")),
        ];
        for (what, step) in steps {
            // Waits for the last reports of the step before.
            while timeout(Duration::from_millis(100), changed.notified())
                .await
                .is_ok()
            {}
            step();
            assert!(is_reported(&changed).await, "{what}");
        }
    }

    /// Each watcher has an inotify instance, of which a user has 128 by default.
    #[tokio::test]
    async fn a_dropped_watcher_ends_its_thread() {
        let folder = TempFolder::new();
        let watcher = FileWatcher::start();
        let changed = Arc::new(Notify::new());
        watcher.clone().watch(&folder.0.join("auth.json"), &changed);
        assert!(is_reported(&changed).await, "watching starts");
        drop(watcher);
        let begun = Instant::now();
        while Arc::weak_count(&changed) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "it continues");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_swapped_link_is_reported() {
        let folder = TempFolder::new();
        for version in ["one", "two"] {
            fs::create_dir(folder.0.join(version)).expect("a folder");
            fs::write(folder.0.join(version).join("auth.json"), version).expect("writes");
        }
        symlink("one", folder.0.join("data")).expect("links");
        symlink("data/auth.json", folder.0.join("auth.json")).expect("links");
        let changed = Arc::new(Notify::new());
        let watcher = FileWatcher::start();
        watcher.watch(&folder.0.join("auth.json"), &changed);
        assert!(is_reported(&changed).await, "watching starts");
        while timeout(Duration::from_millis(100), changed.notified())
            .await
            .is_ok()
        {}
        symlink("two", folder.0.join("new")).expect("links");
        fs::rename(folder.0.join("new"), folder.0.join("data")).expect("renames");
        assert!(is_reported(&changed).await, "swapped");
    }
}
