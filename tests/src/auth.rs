//! auth.json as others than the gateway read and write it.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Puts a file in the place of another, in one step, as Codex does.
///
/// # Panics
/// The folder cannot be written.
pub fn replace_file(path: &Path, content: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("the folder can be written");
    fs::rename(new, path).expect("a file can be renamed");
}

/// What is in the file at `path`.
///
/// # Panics
/// It is not there, or no JSON.
pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
