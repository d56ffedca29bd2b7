//! Stand-ins for Unix sockets and descriptors: types without values.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockAddr, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A Unix socket that listens.
#[derive(Debug)]
pub(crate) enum UnixListener {}

/// A connection over a Unix socket.
#[derive(Debug)]
pub(crate) enum UnixStream {}

/// A connection over a Unix socket that blocks.
#[derive(Debug)]
pub(crate) enum BlockingUnixStream {}

/// An open file or socket of another process.
#[derive(Debug)]
pub(crate) enum Descriptor {}

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl UnixListener {
    /// # Errors
    /// There are no Unix sockets.
    pub(crate) fn bind(_: &Path) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) async fn accept(&self) -> io::Result<(UnixStream, ())> {
        match *self {}
    }
}

impl UnixStream {
    /// # Errors
    /// There are no Unix sockets.
    pub(crate) async fn connect(_: &Path) -> io::Result<Self> {
        unsupported()
    }

    /// # Errors
    /// There are no Unix sockets.
    pub(crate) fn from_std(stream: BlockingUnixStream) -> io::Result<Self> {
        match stream {}
    }
}

impl AsyncRead for UnixStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match *self {}
    }
}

impl AsyncWrite for UnixStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}

impl BlockingUnixStream {
    /// # Errors
    /// There are no Unix sockets.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        unsupported()
    }

    pub(crate) fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        match *self {}
    }
}

impl Read for &BlockingUnixStream {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match **self {}
    }
}

impl Write for &BlockingUnixStream {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match **self {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match **self {}
    }
}

impl Descriptor {
    /// # Errors
    /// There are no descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match *self {}
    }
}

impl From<Descriptor> for Socket {
    fn from(descriptor: Descriptor) -> Self {
        match descriptor {}
    }
}

impl From<Descriptor> for File {
    fn from(descriptor: Descriptor) -> Self {
        match descriptor {}
    }
}

/// # Errors
/// Nothing can be handed over.
pub(crate) fn duplicate<T>(_: &T) -> io::Result<Descriptor> {
    unsupported()
}

/// # Errors
/// Only one socket can listen on a port.
pub(crate) fn share_port(_: &Socket) -> io::Result<()> {
    unsupported()
}

/// Never: there are no Unix sockets.
pub(crate) fn socket_path(_: &SockAddr) -> Option<PathBuf> {
    None
}

/// # Errors
/// There are no Unix sockets.
pub(crate) fn unix_listener(_: Socket) -> io::Result<UnixListener> {
    unsupported()
}

pub(crate) fn is_of_this_user(stream: &UnixStream) -> bool {
    match *stream {}
}

pub(crate) async fn peek(stream: &UnixStream, _: &mut [u8]) -> io::Result<usize> {
    match *stream {}
}

pub(crate) fn into_stdin(channel: BlockingUnixStream) -> Stdio {
    match channel {}
}

/// # Errors
/// No process succeeds another.
pub(crate) fn channel_of_stdin() -> io::Result<BlockingUnixStream> {
    unsupported()
}

pub(crate) fn send_descriptors(
    channel: &BlockingUnixStream,
    _: &[u8],
    _: &[&Descriptor],
) -> io::Result<()> {
    match *channel {}
}

pub(crate) fn receive_descriptors(
    channel: &BlockingUnixStream,
    _: &mut [u8],
    _: usize,
) -> io::Result<(usize, Vec<Descriptor>)> {
    match *channel {}
}
