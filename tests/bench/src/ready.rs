//! How a child that took a free port tells the bench its address: a file that appears whole.

use std::{fs, io, net::SocketAddr, path::Path};

/// Writes `address` to `file`; a reader sees all of it or no file.
///
/// # Errors
/// The file system's.
pub fn announce(file: &Path, address: SocketAddr) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, address.to_string())?;
    fs::rename(&unfinished, file)
}

/// The address in `file`; `None` while it is not there.
pub fn announced(file: &Path) -> Option<SocketAddr> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
