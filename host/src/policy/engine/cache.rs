//! Compiled code on disk, so that a component is not compiled again at every start.
//!
//! Compiled code runs with the gateway's own rights. Invariant: only what this gateway wrote is
//! read back. The folder and its files can be written by the gateway's user only, each file begins
//! with the digest of its code, and a file that differs in any way is removed and its component
//! compiled again.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use crate::files::{io_reason, replace_private};
use crate::platform::{AccessOptions, create_private_folder, is_writable_by_us_only};
use crate::values::hex::hex;

/// The first bytes of a file: what it is, and the version of its format.
const MAGIC: &[u8; 8] = b"TOLLCWA1";
const DIGEST_BYTES: usize = 32;

/// The ending of a file's name.
const SUFFIX: &str = ".compiled";

/// The most bytes of a file that is read back.
const FILE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// The folder of compiled code.
#[derive(Debug, Clone)]
pub(super) struct CompiledCodeCache {
    folder: PathBuf,
    bytes_max: u64,
}

/// A folder that cannot hold compiled code.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error("{}: {}", .folder.display(), io_reason(.source))]
    Io { folder: PathBuf, source: io::Error },
    #[error("{}: expected a folder that only this user can write", .folder.display())]
    WritableByOthers { folder: PathBuf },
}

/// A file of compiled code that must not be used.
#[derive(Debug, thiserror::Error)]
enum UnusableFile {
    #[error("{}", io_reason(.0))]
    Io(#[from] io::Error),
    #[error("expected a regular file that only this user can write")]
    WritableByOthers,
    #[error("expected at most {FILE_BYTES_MAX} bytes, found {0}")]
    TooLarge(u64),
    #[error("truncated")]
    Truncated,
    #[error("unknown format")]
    UnknownFormat,
    #[error("the digest does not match the code")]
    DigestMismatch,
    #[error("{0}")]
    Rejected(wasmtime::Error),
}

impl CompiledCodeCache {
    /// Opens the cache in `folder`, which is created if it is missing, and removes the files that
    /// have not been used for longest until the rest has at most `bytes_max`.
    ///
    /// # Errors
    /// The folder cannot be used, or another user can write to it.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Io {
            folder: folder.to_owned(),
            source,
        };
        create_private_folder(folder).map_err(failed)?;
        let meta = fs::symlink_metadata(folder).map_err(failed)?;
        if !meta.is_dir() || !is_writable_by_us_only(&meta) {
            return Err(CacheError::WritableByOthers {
                folder: folder.to_owned(),
            });
        }
        let cache = Self {
            folder: folder.to_owned(),
            bytes_max,
        };
        cache.evict(None);
        Ok(cache)
    }

    /// Returns the compiled code of the component with `digest`, if there is some that `engine` can
    /// use.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> Option<Component> {
        let path = self.path(engine, digest);
        match load(engine, &path) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "compiled code not used");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Stores compiled code, and evicts old files if there is too much.
    pub(super) fn store(
        &self,
        engine: &wasmtime::Engine,
        digest: &[u8; 32],
        component: &Component,
    ) {
        let path = self.path(engine, digest);
        let written = match component.serialize() {
            Ok(code) => {
                replace_private(&path, &with_header(&code)).map_err(|error| io_reason(&error))
            }
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(()) => self.evict(Some(&path)),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "compiled code not stored");
            }
        }
    }

    /// Returns the path for a component, this engine's version and settings, and this processor:
    /// code can be used only if all of them are the same.
    fn path(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        std::env::consts::ARCH.hash(&mut hasher);
        let component = hex(digest);
        self.folder
            .join(format!("{component}-{:016x}{SUFFIX}", hasher.finish()))
    }

    /// Removes the files that have not been used for longest, except `newest`, until the rest fits.
    fn evict(&self, newest: Option<&Path>) {
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
        for (_, length, path) in files {
            if bytes <= self.bytes_max {
                return;
            }
            if Some(path.as_path()) != newest && fs::remove_file(&path).is_ok() {
                bytes -= length;
            }
        }
    }
}

/// Loads the compiled code in the file at `path`. `None` if there is no file.
fn load(engine: &wasmtime::Engine, path: &Path) -> Result<Option<Component>, UnusableFile> {
    let Some((file, code)) = read(path)? else {
        return Ok(None);
    };
    // SAFETY: `deserialize` trusts its bytes to be what `serialize` returned. They are in a folder
    // and a file that only this user can write, and their digest is what this gateway wrote.
    let component =
        unsafe { Component::deserialize(engine, code) }.map_err(UnusableFile::Rejected)?;
    // Eviction goes by the time of modification.
    let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
    Ok(Some(component))
}

fn read(path: &Path) -> Result<Option<(File, Vec<u8>)>, UnusableFile> {
    let opened = OpenOptions::new()
        .read(true)
        .without_waiting_or_links()
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || !is_writable_by_us_only(&meta) {
        return Err(UnusableFile::WritableByOthers);
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(UnusableFile::TooLarge(meta.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    let code = without_header(&bytes)?.to_vec();
    Ok(Some((file, code)))
}

fn with_header(code: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + DIGEST_BYTES + code.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&Sha256::digest(code));
    bytes.extend_from_slice(code);
    bytes
}

/// Returns the code in a file's `bytes` if header and digest are right.
fn without_header(bytes: &[u8]) -> Result<&[u8], UnusableFile> {
    let Some((header, code)) = bytes.split_at_checked(MAGIC.len() + DIGEST_BYTES) else {
        return Err(UnusableFile::Truncated);
    };
    if !header.starts_with(MAGIC) {
        return Err(UnusableFile::UnknownFormat);
    }
    if header[MAGIC.len()..] != *Sha256::digest(code) {
        return Err(UnusableFile::DigestMismatch);
    }
    Ok(code)
}
