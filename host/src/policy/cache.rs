//! Compiled code on disk, so that a component is compiled once and not at every start.
//!
//! Compiled code runs with the gateway's own rights: only what this gateway wrote may be read back. So the folder is its
//! user's alone, each file says which bytes it must hold, and whatever is odd about either is compiled again.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::files::{io_reason, replace_private};
use crate::values::hex::hex;

/// How a file begins: what it is, and the version of this form.
const MAGIC: &[u8; 8] = b"TOLLCWA1";
const DIGEST_BYTES: usize = 32;

/// What the name of a file ends with.
const SUFFIX: &str = ".compiled";

/// A compiled component is not larger than this, in bytes.
const FILE_BYTES: u64 = 512 * 1024 * 1024;

/// What others may do with a folder or file of ours: nothing that changes it.
const OTHERS_WRITE: u32 = 0o022;

/// The folder of compiled code.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

impl Cache {
    /// The cache in `folder`, which is made where it is missing, of at most `bytes_max`.
    ///
    /// # Errors
    /// It cannot be used, or others could write there.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> Result<Self, String> {
        let failed = |error: io::Error| format!("{}: {}", folder.display(), io_reason(&error));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        let meta = fs::symlink_metadata(folder).map_err(failed)?;
        if !meta.is_dir() || !is_ours(&meta) {
            return Err(format!(
                "{}: expected a folder that only this user can write",
                folder.display()
            ));
        }
        let cache = Self {
            folder: folder.to_owned(),
            bytes_max,
        };
        cache.clean_up(None);
        Ok(cache)
    }

    /// The compiled code of the component with that digest, where there is some that this engine can use.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> Option<Component> {
        let path = self.path(engine, digest);
        let (file, code) = match read(&path) {
            Ok(read) => read?,
            Err(reason) => {
                tracing::debug!(path = %path.display(), reason, "compiled code is not used");
                let _ = fs::remove_file(&path);
                return None;
            }
        };
        // SAFETY: `deserialize` trusts its bytes to be what `serialize` gave. They lie in a folder and a file that only
        // this user can write, and are to the last bit what this gateway wrote there.
        let loaded = unsafe { Component::deserialize(engine, code) };
        match loaded {
            Ok(component) => {
                // What is used last goes last.
                let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
                Some(component)
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "compiled code is not used");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps compiled code, and lets go of the oldest where there is too much.
    pub(super) fn store(
        &self,
        engine: &wasmtime::Engine,
        digest: &[u8; 32],
        component: &Component,
    ) {
        let path = self.path(engine, digest);
        let stored = component
            .serialize()
            .map_err(|error| error.to_string())
            .and_then(|code| {
                let mut bytes = Vec::with_capacity(MAGIC.len() + DIGEST_BYTES + code.len());
                bytes.extend_from_slice(MAGIC);
                bytes.extend_from_slice(&Sha256::digest(&code));
                bytes.extend_from_slice(&code);
                replace_private(&path, &bytes).map_err(|error| io_reason(&error))
            });
        match stored {
            Ok(()) => self.clean_up(Some(&path)),
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "compiled code was not kept")
            }
        }
    }

    /// The component, the engine's version and settings, and the processor: code is of use where all three are the same.
    fn path(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        std::env::consts::ARCH.hash(&mut hasher);
        let component = hex(digest);
        self.folder
            .join(format!("{component}-{:016x}{SUFFIX}", hasher.finish()))
    }

    fn clean_up(&self, newest: Option<&Path>) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let meta = entry.metadata().ok().filter(|meta| meta.is_file())?;
                Some((meta.modified().ok()?, meta.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files
            .iter()
            .filter(|(_, _, path)| Some(path.as_path()) != newest)
        {
            if bytes <= self.bytes_max {
                return;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= length;
            }
        }
    }
}

fn is_ours(meta: &fs::Metadata) -> bool {
    meta.uid() == geteuid().as_raw() && meta.mode() & OTHERS_WRITE == 0
}

/// The code in the file at `path`; none where there is no file.
fn read(path: &Path) -> Result<Option<(File, Vec<u8>)>, &'static str> {
    // No link, and nothing that keeps whoever opens it waiting.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => return Err("it cannot be opened"),
    };
    let meta = file.metadata().map_err(|_| "it cannot be looked at")?;
    if !meta.is_file() || !is_ours(&meta) {
        return Err("it is not a file that only this user can write");
    }
    if meta.len() > FILE_BYTES {
        return Err("it is too large");
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)
        .map_err(|_| "it cannot be read")?;
    let Some((head, code)) = bytes.split_at_checked(MAGIC.len() + DIGEST_BYTES) else {
        return Err("it is cut off");
    };
    if !head.starts_with(MAGIC) {
        return Err("it is of another form");
    }
    if head[MAGIC.len()..] != *Sha256::digest(code) {
        return Err("it is not what was written");
    }
    Ok(Some((file, code.to_vec())))
}
