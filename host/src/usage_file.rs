//! Usage files: the sums of a credential's responses, in the JSON that sing-box writes and its
//! tools read.
//!
//! Owns the format, its arithmetic and the files; does not know where the rows come from.
//! Invariant: sums are kept in whole nano-dollars, so that reading a file back loses nothing.

mod json;
mod stored;
mod sums;

use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

pub(crate) use stored::InvalidUsageFile;
pub(crate) use sums::{ResponseUsage, UsageSums};

use crate::files::{parent_folder, replace};
use crate::values::clock::Timestamp;
use crate::values::hex::hex;

/// The largest file that is read as a usage file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The content of a usage file's path.
#[derive(Debug)]
pub(crate) enum UsageFileContent {
    /// There is no file.
    Missing,
    /// A usage file and its SHA-256.
    Sums(Box<UsageSums>, String),
    /// A file that was not a usage file, and was moved aside.
    Broken {
        /// Where the file is now.
        kept: PathBuf,
        /// Why it is not a usage file.
        reason: InvalidUsageFile,
    },
}

/// Reads the usage file at `path`. Moves a file that is not a usage file aside, to
/// `<path>.broken-<time>`.
///
/// # Errors
/// The file cannot be read or moved.
pub(crate) fn read(path: &Path, now: Timestamp) -> io::Result<UsageFileContent> {
    let bytes = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > FILE_BYTES_MAX => {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(_) => fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(UsageFileContent::Missing);
        }
        Err(error) => return Err(error),
    };
    let reason = match UsageSums::parse(&bytes) {
        Ok(sums) => return Ok(UsageFileContent::Sums(Box::new(sums), digest(&bytes))),
        Err(reason) => reason,
    };
    let mut kept = path.as_os_str().to_owned();
    kept.push(format!(".broken-{}", now.unix()));
    let kept = PathBuf::from(kept);
    fs::rename(path, &kept)?;
    Ok(UsageFileContent::Broken { kept, reason })
}

/// Returns the SHA-256 of a file's bytes in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Replaces the file at `path` with `text`, atomically.
///
/// # Errors
/// The file cannot be written; the old one is unchanged.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(parent_folder(path))?;
    replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
