//! Unix sockets, and the descriptors that go over them from one process to another.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fs, os};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use rustix::stdio::dup2_stdin;
use socket2::{SockAddr, Socket};
use tokio::io::Interest;

pub(crate) use os::unix::net::UnixStream as BlockingUnixStream;
pub(crate) use tokio::net::{UnixListener, UnixStream};

/// Received descriptors are not inherited by processes that this one starts.
#[cfg(not(target_vendor = "apple"))]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// This system has no such flag: it is set afterwards.
#[cfg(target_vendor = "apple")]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();

/// An open file or socket.
pub(crate) type Descriptor = OwnedFd;

/// Returns another descriptor of the same file or socket.
///
/// # Errors
/// This process has too many open files.
pub(crate) fn duplicate(open: &impl AsFd) -> io::Result<Descriptor> {
    open.as_fd().try_clone_to_owned()
}

/// Lets other sockets listen on the same port. The system distributes connections among them.
///
/// # Errors
/// The system refuses.
pub(crate) fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// Returns the path of a Unix socket that has one.
pub(crate) fn socket_path(address: &SockAddr) -> Option<PathBuf> {
    address.as_pathname().map(Path::to_owned)
}

/// Returns the listener for a Unix socket that listens and does not block.
///
/// # Errors
/// The runtime cannot use it.
pub(crate) fn unix_listener(socket: Socket) -> io::Result<UnixListener> {
    UnixListener::from_std(socket.into())
}

/// Returns whether the peer runs as this user or as root.
pub(crate) fn is_of_this_user(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Reads what has arrived into `buffer` and leaves it in the socket. Waits until something has
/// arrived. Returns 0 at the end of the stream.
///
/// # Errors
/// The connection broke.
pub(crate) async fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut peek = || {
        let (length, _) = recv(stream, &mut *buffer, RecvFlags::PEEK)?;
        Ok(length)
    };
    stream.async_io(Interest::READABLE, &mut peek).await
}

/// Makes `channel` the standard input of a process that is started.
pub(crate) fn into_stdin(channel: BlockingUnixStream) -> Stdio {
    Stdio::from(OwnedFd::from(channel))
}

/// Takes the channel that is this process's standard input, and puts an empty input in its place.
///
/// # Errors
/// This process has too many open files.
pub(crate) fn channel_of_stdin() -> io::Result<BlockingUnixStream> {
    let stdin = duplicate(&io::stdin())?;
    dup2_stdin(fs::File::open("/dev/null")?)?;
    Ok(BlockingUnixStream::from(stdin))
}

/// Sends `bytes`, and `descriptors` beside them.
///
/// # Errors
/// The other process is gone, or did not take all bytes.
pub(crate) fn send_descriptors(
    channel: &BlockingUnixStream,
    bytes: &[u8],
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = ancillary_space(descriptors.len());
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        channel,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    if sent != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Receives bytes into `buffer`, and at most `descriptors_max` descriptors beside them. Returns the
/// number of the bytes.
///
/// # Errors
/// The other process is gone.
pub(crate) fn receive_descriptors(
    channel: &BlockingUnixStream,
    buffer: &mut [u8],
    descriptors_max: usize,
) -> io::Result<(usize, Vec<Descriptor>)> {
    let mut space = ancillary_space(descriptors_max);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        channel,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        CLOSE_ON_EXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if CLOSE_ON_EXEC.is_empty() {
        for descriptor in &descriptors {
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
    }
    Ok((received.bytes, descriptors))
}

fn ancillary_space(descriptors_max: usize) -> Vec<MaybeUninit<u8>> {
    vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors_max))]
}
