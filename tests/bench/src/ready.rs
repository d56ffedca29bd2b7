//! The file in which a child that bound a free port announces its address, written atomically.

use std::{fs, io, net::SocketAddr, path::Path};

/// Writes `address` to `file` atomically.
///
/// # Errors
/// The file cannot be written.
pub fn announce(file: &Path, address: SocketAddr) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, address.to_string())?;
    fs::rename(&unfinished, file)
}

/// Reads the address from `file`; `None` if the file does not exist yet.
pub fn announced(file: &Path) -> Option<SocketAddr> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
