//! A listening Unix socket, and its file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::{BACKLOG, ListenError};
use crate::files::io_reason;
use crate::platform::{UnixListener, file_identity, is_socket, set_mode, unix_listener};

/// Who may connect: the gateway's user and the group of the file.
const MODE: u32 = 0o660;

/// The file of a listening socket, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    /// Its device and its number there: another gateway may have replaced it.
    identity: Option<(u64, u64)>,
    ownership: SocketFileOwnership,
}

/// Whether a gateway removes the files of its Unix sockets. Those that the process before it handed
/// over belong to that process until it has given up its duties.
#[derive(Debug, Clone)]
pub(crate) struct SocketFileOwnership(Arc<AtomicBool>);

impl SocketFileOwnership {
    /// The files belong to this process.
    pub(crate) fn own() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// The files belong to another process until [`SocketFileOwnership::take`].
    pub(crate) fn of_another() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// The files belong to this process from now on.
    pub(crate) fn take(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl UnixSocketFile {
    /// The file at `path`, which is there.
    pub(crate) fn of(path: &Path, ownership: SocketFileOwnership) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
            ownership,
        }
    }

    /// Leaves the file to the process that succeeds this one.
    pub(crate) fn leave_to_successor(mut self) {
        self.identity = None;
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        let is_own = self.ownership.0.load(Ordering::Relaxed);
        if !is_own || self.identity.is_none() || identity(&self.path) != self.identity {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            let (path, error) = (self.path.display(), io_reason(&error));
            tracing::debug!(%path, error, "socket not removed");
        }
    }
}

/// Listens on a Unix socket at `path`. Replaces a socket that no process listens on.
///
/// # Errors
/// The socket cannot be created, or another process listens on it.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, UnixSocketFile), ListenError> {
    if !cfg!(unix) {
        return Err(ListenError::NoUnixSockets);
    }
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = UnixSocketFile::of(path, SocketFileOwnership::own());
    // Before it listens: nothing can connect under another mode.
    set_mode(path, MODE)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((unix_listener(socket)?, file))
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if is_socket(meta.file_type()) => {}
        Ok(_) => return Err(ListenError::NotASocket),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A process whose queue is full must not block the start.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Err(io::Error::from(io::ErrorKind::AddrInUse).into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::from(io::ErrorKind::AddrInUse).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some(file_identity(&meta))
}
