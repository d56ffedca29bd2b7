//! Files that are watched: by their folders, since a file is replaced by another one of its name.
//!
//! Owns one watcher and one thread, however many files there are; refuses to know what stands in them. Invariant: a
//! change is told at least once, after it has happened; that one is told means that it is worth looking.

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

use crate::files::folder;

/// How long changes gather after the first: a replaced file makes several.
const GATHERING: Duration = Duration::from_millis(2);

/// Events that wait. Where there are more, every file is looked at.
const EVENTS: usize = 4096;

/// Links that lead to links are followed so far.
const LINKS_MAX: usize = 16;

/// Watches files until it is dropped.
#[derive(Debug, Clone)]
pub struct Watch {
    messages: Option<SyncSender<Message>>,
}

enum Message {
    File {
        path: PathBuf,
        changed: Weak<Notify>,
    },
    Event(notify::Result<Event>),
}

impl Watch {
    /// Starts to watch. Where the system does not let files be watched, nothing is told, and that is logged once.
    pub fn start() -> Self {
        let (messages, received) = mpsc::sync_channel(EVENTS);
        let lost = Arc::new(AtomicBool::new(false));
        let (events, was_lost) = (messages.clone(), Arc::clone(&lost));
        let tell = move |event| {
            if events.try_send(Message::Event(event)).is_err() {
                was_lost.store(true, Ordering::Release);
            }
        };
        let watcher = notify::recommended_watcher(tell);
        let started = watcher
            .map_err(|error| error.to_string())
            .and_then(|watcher| {
                let watching = Watching {
                    watcher,
                    files: Vec::new(),
                    folders: HashMap::new(),
                    lost,
                };
                let run = move || watching.run(&received);
                thread::Builder::new()
                    .name("watch".to_owned())
                    .spawn(run)
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(_) => Self {
                messages: Some(messages),
            },
            Err(error) => {
                tracing::warn!(
                    error,
                    "files cannot be watched: changes are found by looking now and then"
                );
                Self { messages: None }
            }
        }
    }

    /// Watches the file at `path`, which need not be there, nor its folder. `changed` is told of each change, and once
    /// as soon as it is watched, for as long as anybody else holds it.
    pub fn file(&self, path: &Path, changed: &Arc<Notify>) {
        if let Some(messages) = &self.messages {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            // The thread ends only with the process or a panic; who looks now and then finds changes all the same.
            let _ = messages.send(Message::File {
                path,
                changed: Arc::downgrade(changed),
            });
        }
    }
}

struct Watching {
    watcher: RecommendedWatcher,
    files: Vec<File>,
    /// The folders that are watched, and whether the last try to do so failed.
    folders: HashMap<PathBuf, Option<String>>,
    /// There was no room for an event: any file may have changed.
    lost: Arc<AtomicBool>,
}

struct File {
    path: PathBuf,
    changed: Weak<Notify>,
    /// The names in watched folders on which it depends: its own, those of links, and those of folders on its way.
    names: BTreeSet<(PathBuf, OsString)>,
}

impl Watching {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let mut touched = BTreeSet::new();
            self.take(first, &mut touched);
            // A folder in which much goes on must not keep anybody waiting: twice as long at most.
            let begun = Instant::now();
            while let Ok(message) = messages.recv_timeout(GATHERING) {
                self.take(message, &mut touched);
                if begun.elapsed() > GATHERING {
                    break;
                }
            }
            if self.lost.swap(false, Ordering::AcqRel) {
                touched.extend(0..self.files.len());
            }
            self.tell(&touched);
        }
    }

    /// Which files a message touches goes into `touched`, by their places.
    fn take(&mut self, message: Message, touched: &mut BTreeSet<usize>) {
        match message {
            Message::File { path, changed } => {
                if touched.is_empty() {
                    // Places in the list are not known to anybody at the moment.
                    self.files.retain(|file| file.changed.strong_count() > 0);
                }
                self.files.push(File {
                    path,
                    changed,
                    names: BTreeSet::new(),
                });
                touched.insert(self.files.len() - 1);
            }
            Message::Event(Ok(event)) if is_change(event.kind) => {
                let all = event.need_rescan() || event.paths.is_empty();
                for (place, file) in self.files.iter().enumerate() {
                    if all || event.paths.iter().any(|path| file.depends_on(path)) {
                        touched.insert(place);
                    }
                }
            }
            Message::Event(Ok(_)) => {}
            Message::Event(Err(error)) => {
                tracing::debug!(%error, "an event of the file system was lost");
                touched.extend(0..self.files.len());
            }
        }
    }

    fn tell(&mut self, touched: &BTreeSet<usize>) {
        for place in touched {
            // First watched, then told: what changes in between is told once more. And what the file depends on is asked
            // again after that: a folder may have been made meanwhile.
            let path = self.files[*place].path.clone();
            let mut known = BTreeSet::new();
            for _ in 0..LINKS_MAX {
                let now = names(&path);
                if now == known {
                    break;
                }
                now.iter().for_each(|(folder, _)| self.watch(folder));
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

    fn watch(&mut self, folder: &Path) {
        // Again, even where it is watched: it may have been replaced, and then the old one is.
        let failure = self
            .watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .err()
            .map(|error| error.to_string());
        let known = self.folders.insert(folder.to_owned(), failure.clone());
        if let Some(error) = failure
            && known != Some(Some(error.clone()))
        {
            tracing::warn!(folder = %folder.display(), error, "a folder cannot be watched: it is looked at now and then");
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
            // One that is gone is not watched any more: that is an error that means nothing.
            let _ = self.watcher.unwatch(&folder);
            self.folders.remove(&folder);
        }
    }
}

impl File {
    fn depends_on(&self, path: &Path) -> bool {
        let is_name = path.file_name().is_some_and(|name| {
            self.names
                .iter()
                .any(|(within, known)| known == name && within.as_path() == folder(path))
        });
        // A watched folder itself: moved or removed.
        is_name || self.names.iter().any(|(within, _)| within == path)
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        // Written and closed: by then it is whole.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// The names on which the file at `path` depends, each in the folder that is to be watched for it. Where a folder on the
/// way is missing, the deepest one that is there is watched for it.
fn names(path: &Path) -> BTreeSet<(PathBuf, OsString)> {
    let mut names = BTreeSet::new();
    let mut next = Some(path.to_owned());
    for _ in 0..LINKS_MAX {
        let Some(path) = next.take() else { break };
        let mut within = folder(&path).to_owned();
        let mut name = path.file_name().map(OsString::from);
        while !within.is_dir() {
            name = within.file_name().map(OsString::from);
            let Some(parent) = within.parent() else { break };
            within = parent.to_owned();
        }
        // Links among the folders, too: a volume of Kubernetes swaps one of those.
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

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path =
                std::env::temp_dir().join(format!("tollgate-watch-{}", uuid::Uuid::new_v4()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn told(changed: &Notify) -> bool {
        timeout(Duration::from_secs(5), changed.notified())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn whatever_way_a_file_changes_is_told() {
        let folder = Folder::new();
        let path = folder.0.join("not/there/yet/auth.json");
        let changed = Arc::new(Notify::new());
        let watch = Watch::start();
        watch.file(&path, &changed);
        assert!(told(&changed).await, "it is watched");
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        assert!(told(&changed).await, "folders appeared");
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
            // What is left of the step before is told, too: until nothing is.
            while timeout(Duration::from_millis(100), changed.notified())
                .await
                .is_ok()
            {}
            step();
            assert!(told(&changed).await, "{what}");
        }
    }

    #[tokio::test]
    async fn a_link_that_is_swapped_is_told() {
        let folder = Folder::new();
        for version in ["one", "two"] {
            fs::create_dir(folder.0.join(version)).expect("a folder");
            fs::write(folder.0.join(version).join("auth.json"), version).expect("writes");
        }
        symlink("one", folder.0.join("data")).expect("links");
        symlink("data/auth.json", folder.0.join("auth.json")).expect("links");
        let changed = Arc::new(Notify::new());
        let watch = Watch::start();
        watch.file(&folder.0.join("auth.json"), &changed);
        assert!(told(&changed).await, "it is watched");
        while timeout(Duration::from_millis(100), changed.notified())
            .await
            .is_ok()
        {}
        symlink("two", folder.0.join("new")).expect("links");
        fs::rename(folder.0.join("new"), folder.0.join("data")).expect("renames");
        assert!(told(&changed).await, "swapped");
    }
}
