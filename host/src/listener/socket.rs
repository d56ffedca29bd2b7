//! A listening TCP socket with the options of its configuration.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::config::{KeepAliveTimes, ListenOptions};
use crate::files::io_reason;
use crate::platform::share_port;

/// Connections that wait in the kernel until they are accepted.
pub(super) const BACKLOG: i32 = 1024;

/// Connections with TCP Fast Open whose handshake is not complete.
#[cfg(target_os = "linux")]
const FAST_OPEN_QUEUE: libc::c_int = 256;

/// Why a socket does not listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// An option cannot be set.
    #[error("{field}: {}", io_reason(.error))]
    Option {
        /// The option's field in the configuration, with its value.
        field: String,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The path of a Unix socket leads to something else.
    #[error("expected a socket or nothing, found another file")]
    NotASocket,
    /// The system has no Unix sockets.
    #[error("expected an IP address: this system has no Unix sockets")]
    NoUnixSockets,
    /// The address cannot be bound.
    #[error("{}", io_reason(.0))]
    Io(#[from] io::Error),
}

/// Listens on `address`.
///
/// # Errors
/// An option cannot be set, or the address cannot be bound.
pub(super) fn bind_tcp(
    address: SocketAddr,
    options: &ListenOptions,
) -> Result<TcpListener, ListenError> {
    let bound = match &options.network_namespace {
        Some(file) => in_namespace(file, || bind(address, options)),
        None => bind(address, options),
    };
    bound.map(TcpListener::from)
}

fn bind(address: SocketAddr, options: &ListenOptions) -> Result<Socket, ListenError> {
    let socket = new_socket(Domain::for_address(address), options)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        set("reuse_addr", share_port(&socket))?;
    }
    if let Some(interface) = &options.interface {
        let field = format!("bind_interface {interface:?}");
        set(&field, bind_to_interface(&socket, address, interface))?;
    }
    if let Some(mark) = options.routing_mark {
        set(&format!("routing_mark {mark}"), set_mark(&socket, mark))?;
    }
    if options.fast_open {
        set("tcp_fast_open", enable_fast_open(&socket))?;
    }
    match &options.keep_alive {
        Some(KeepAliveTimes { idle, interval }) => {
            let times = TcpKeepalive::new()
                .with_time(*idle)
                .with_interval(*interval);
            set("tcp_keep_alive", socket.set_tcp_keepalive(&times))?;
        }
        None => socket.set_keepalive(false)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn set(field: &str, done: io::Result<()>) -> Result<(), ListenError> {
    done.map_err(|error| ListenError::Option {
        field: field.to_owned(),
        error,
    })
}

#[cfg(target_os = "linux")]
fn new_socket(domain: Domain, options: &ListenOptions) -> io::Result<Socket> {
    if options.multi_path {
        match Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)) {
            Ok(socket) => return Ok(socket),
            // Without it, clients use one path.
            Err(error) => {
                let error = io_reason(&error);
                tracing::warn!(error, "no Multipath TCP, listening with TCP");
            }
        }
    }
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

#[cfg(not(target_os = "linux"))]
fn new_socket(domain: Domain, options: &ListenOptions) -> io::Result<Socket> {
    if options.multi_path {
        tracing::warn!("Multipath TCP is supported on Linux only, listening with TCP");
    }
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

#[cfg(target_os = "linux")]
fn bind_to_interface(socket: &Socket, _: SocketAddr, interface: &str) -> io::Result<()> {
    socket.bind_device(Some(interface.as_bytes()))
}

#[cfg(target_os = "macos")]
fn bind_to_interface(socket: &Socket, address: SocketAddr, interface: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: `name` is a string that ends with a zero and outlives the call.
    let index = std::num::NonZeroU32::new(unsafe { libc::if_nametoindex(name.as_ptr()) })
        .ok_or_else(io::Error::last_os_error)?;
    match address {
        SocketAddr::V4(_) => socket.bind_device_by_index_v4(Some(index)),
        SocketAddr::V6(_) => socket.bind_device_by_index_v6(Some(index)),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn bind_to_interface(_: &Socket, _: SocketAddr, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

#[cfg(not(target_os = "linux"))]
fn set_mark(_: &Socket, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn enable_fast_open(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let queue: libc::c_int = FAST_OPEN_QUEUE;
    // SAFETY: the socket is open, and the pointer and the length are those of `queue`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            size_of_val(&queue) as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(target_os = "linux"))]
fn enable_fast_open(_: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Runs `bind` in the network namespace of `file`: in a thread that ends with it, because a thread
/// that serves requests must stay in its own.
#[cfg(target_os = "linux")]
fn in_namespace(
    file: &Path,
    bind: impl FnOnce() -> Result<Socket, ListenError> + Send,
) -> Result<Socket, ListenError> {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    let enter = || {
        let namespace = File::open(file)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    };
    let in_thread = || {
        set(&format!("netns {:?}", file.display().to_string()), enter())?;
        bind()
    };
    std::thread::scope(|scope| match scope.spawn(in_thread).join() {
        Ok(bound) => bound,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(not(target_os = "linux"))]
fn in_namespace(
    _: &Path,
    _: impl FnOnce() -> Result<Socket, ListenError> + Send,
) -> Result<Socket, ListenError> {
    set("netns", Err(io::ErrorKind::Unsupported.into()))?;
    unreachable!("the error was returned")
}
