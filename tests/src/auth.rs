//! auth.json, read and written as programs other than the gateway do.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Replaces a file in one step, as Codex does.
///
/// # Panics
/// Panics if the folder cannot be written.
pub fn replace_file(path: &Path, content: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("the folder can be written");
    fs::rename(new, path).expect("a file can be renamed");
}

/// Reads the JSON file at `path`.
///
/// # Panics
/// Panics if there is no such file, or it is not JSON.
pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
