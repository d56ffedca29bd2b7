//! Floor 0: how files are read and replaced: never more than is expected, and never half. Knows nothing of what stands in
//! them.

mod settling;

pub use self::settling::Settling;

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::process::geteuid;

/// The mode of a file that nobody but its owner may read.
const PRIVATE: u32 = 0o600;

/// The bit of a folder in which each may replace their own files alone.
const STICKY: u32 = 0o1000;

/// What the name of a new file has more than that of the one whose place it takes.
const TEMPORARY: &str = ".tollgate-new";

/// Reads a file of at most `bytes_max`, which may be a pipe.
///
/// # Errors
/// Why it cannot be read, without its name.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    if fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
        return Err("expected a file, found a folder".to_owned());
    }
    read_all(File::open(path).map_err(|error| plain(&error))?, bytes_max)
}

/// Reads a file of at most `bytes_max`, and nothing that is no file: opening a FIFO could block for ever.
///
/// # Errors
/// Why it cannot be read, without its name.
pub fn read_regular(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    if fs::metadata(path).map_err(|error| plain(&error))?.is_dir() {
        return Err("expected a file, found something else".to_owned());
    }
    // What it is is asked of what was opened: another could take its place in between.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(|error| plain(&error))?;
    if !file.metadata().map_err(|error| plain(&error))?.is_file() {
        return Err("expected a file, found something else".to_owned());
    }
    read_all(file, bytes_max)
}

fn read_all(file: File, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| plain(&error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("expected at most {bytes_max} bytes, found more"));
    }
    Ok(bytes)
}

/// Replaces the file at `path`: at any instant, and after a power cut, there is the old one or the new one. A new file
/// is its owner's alone; one that is replaced keeps owner and mode. Whoever calls this twice at once for one path must
/// hold a lock.
///
/// # Errors
/// It cannot be written, or not with its owner; the old one is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_like(path, bytes, fs::metadata(path).ok().as_ref())
}

/// The same, with a file that is its owner's alone, whatever was there: for one that is the gateway's own.
///
/// # Errors
/// It cannot be written; the old one is as it was.
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_like(path, bytes, None)
}

fn replace_like(path: &Path, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let temporary = beside(path, TEMPORARY);
    // One that a killed process left is nobody's.
    remove(&temporary)?;
    let replaced = write_new(&temporary, bytes, like)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// Whether the file at `path` could be replaced by one of `length` bytes, as far as can be told without doing it: there is
/// room, the owner can be kept, and nothing holds the old one in its place.
///
/// # Errors
/// Why it could not, without its name.
pub fn try_replace(path: &Path, length: usize) -> Result<(), String> {
    let old = fs::metadata(path).map_err(|error| plain(&error))?;
    is_held(path, &old)?;
    let temporary = beside(path, TEMPORARY);
    let tried = remove(&temporary)
        .and_then(|()| write_new(&temporary, &vec![b' '; length], Some(&old)))
        .map_err(|error| format!("{}: {}", temporary.display(), plain(&error)));
    match (tried, fs::remove_file(&temporary)) {
        (Err(error), _) => Err(error),
        (Ok(()), removed) => {
            removed.map_err(|error| format!("{}: {}", temporary.display(), plain(&error)))
        }
    }
}

/// Whether something keeps another file from taking the place of the one at `path`.
fn is_held(path: &Path, old: &Metadata) -> Result<(), String> {
    if let Ok(found) = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS) {
        let has = |attribute: StatxAttributes| {
            (found.stx_attributes & found.stx_attributes_mask).contains(attribute)
        };
        if has(StatxAttributes::MOUNT_ROOT) {
            return Err(
                "it is mounted by itself and cannot be replaced: mount its folder".to_owned(),
            );
        }
        if has(StatxAttributes::IMMUTABLE) || has(StatxAttributes::APPEND) {
            return Err("it is marked as one that may not be replaced (chattr)".to_owned());
        }
    }
    let within = fs::metadata(folder(path)).map_err(|error| plain(&error))?;
    let user = geteuid().as_raw();
    let is_sticky = within.mode() & STICKY != 0;
    if is_sticky && user != 0 && user != within.uid() && user != old.uid() {
        return Err(
            "it is another user's, in a folder in which only they may replace it".to_owned(),
        );
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(path)?;
    if let Some(like) = like {
        let own = file.metadata()?;
        if own.uid() != like.uid() {
            fchown(&file, Some(like.uid()), None)?;
        }
        let same_group = own.gid() == like.gid() || fchown(&file, None, Some(like.gid())).is_ok();
        // What another group must not read, this one must not either.
        let mode = like.mode() & if same_group { 0o777 } else { 0o700 };
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes the file at `path`, where there is one, for good.
///
/// # Errors
/// It is still there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// The folder that `path` lies in.
pub fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The path beside `path` whose name is longer by `suffix`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// An error of the file system in plain words, without the number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}
