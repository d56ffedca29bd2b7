//! Sockets, before they connect.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;
use tokio::task::spawn_blocking;

use super::error::DialFailure;
use crate::config::{KeepAliveTimes, SocketOptions};

/// The longest silence that the kernel can wait for.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(32_767);

/// Opens a socket for a connection to `address`.
///
/// # Errors
/// The system rejects an option.
pub(super) async fn open(
    address: SocketAddr,
    options: &SocketOptions,
) -> Result<TcpSocket, DialFailure> {
    if options.netns.is_none() {
        return prepare(address, options);
    }
    // A namespace belongs to a thread: the socket is made on a thread that ends afterwards.
    let options = options.clone();
    let opened = spawn_blocking(move || {
        let opening = std::thread::spawn(move || {
            enter_namespace(&options)?;
            prepare(address, &options)
        });
        opening.join()
    });
    match opened.await {
        Ok(Ok(socket)) => socket,
        Ok(Err(_)) | Err(_) => Err(DialFailure::Other("opening a socket panicked".to_owned())),
    }
}

fn prepare(address: SocketAddr, options: &SocketOptions) -> Result<TcpSocket, DialFailure> {
    let socket = create(Domain::for_address(address), options)
        .map_err(|error| DialFailure::option("socket", &error))?;
    set_options(&socket, options)?;
    bind(&socket, address, options)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

#[cfg(target_os = "linux")]
fn create(domain: Domain, options: &SocketOptions) -> io::Result<Socket> {
    if options.tcp_multi_path
        && let Ok(socket) = new_socket(domain, Protocol::MPTCP)
    {
        return Ok(socket);
    }
    // A kernel without it: plain TCP is what its peers would fall back to.
    new_socket(domain, Protocol::TCP)
}

#[cfg(not(target_os = "linux"))]
fn create(domain: Domain, _: &SocketOptions) -> io::Result<Socket> {
    new_socket(domain, Protocol::TCP)
}

fn new_socket(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set_options(socket: &Socket, options: &SocketOptions) -> Result<(), DialFailure> {
    if options.reuse_addr {
        socket
            .set_reuse_address(true)
            .map_err(|error| DialFailure::option("reuse_addr", &error))?;
    }
    if let Some(KeepAliveTimes { idle, interval }) = options.keep_alive {
        let keep_alive = TcpKeepalive::new()
            .with_time(whole_seconds(idle))
            .with_interval(whole_seconds(interval));
        match socket.set_tcp_keepalive(&keep_alive) {
            // Older kernels have no such options for Multipath TCP.
            Err(error) if options.tcp_multi_path && error.kind() == ErrorKind::Unsupported => {}
            set => set.map_err(|error| DialFailure::option("tcp_keep_alive", &error))?,
        }
    }
    set_system_options(socket, options)
}

/// Returns `span` as the kernel counts it.
fn whole_seconds(span: Duration) -> Duration {
    Duration::from_secs(span.as_secs().max(1)).min(KEEP_ALIVE_MAX)
}

fn bind(socket: &Socket, address: SocketAddr, options: &SocketOptions) -> Result<(), DialFailure> {
    let (field, local) = match address {
        SocketAddr::V4(_) => (
            "inet4_bind_address",
            options.inet4_bind_address.map(IpAddr::V4),
        ),
        SocketAddr::V6(_) => (
            "inet6_bind_address",
            options.inet6_bind_address.map(IpAddr::V6),
        ),
    };
    let Some(local) = local else {
        return Ok(());
    };
    socket
        .bind(&SockAddr::from(SocketAddr::new(local, 0)))
        .map_err(|error| DialFailure::option(field, &error))
}

#[cfg(target_os = "linux")]
fn set_system_options(socket: &Socket, options: &SocketOptions) -> Result<(), DialFailure> {
    if let Some(interface) = &options.bind_interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| DialFailure::option("bind_interface", &error))?;
    }
    if let Some(mark) = options.routing_mark {
        socket
            .set_mark(mark)
            .map_err(|error| DialFailure::option("routing_mark", &error))?;
    }
    if options.bind_address_no_port {
        let (level, name) = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
        switch_on(socket, level, name)
            .map_err(|error| DialFailure::option("bind_address_no_port", &error))?;
    }
    if options.tcp_fast_open {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
        switch_on(socket, level, name)
            .map_err(|error| DialFailure::option("tcp_fast_open", &error))?;
    }
    Ok(())
}

/// Sets an option that is an integer to 1.
#[cfg(target_os = "linux")]
fn switch_on(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes of `on`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&on).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Without effect: the configuration rejects such options on other systems.
#[cfg(not(target_os = "linux"))]
fn set_system_options(_: &Socket, _: &SocketOptions) -> Result<(), DialFailure> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn enter_namespace(options: &SocketOptions) -> Result<(), DialFailure> {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    let Some(path) = &options.netns else {
        return Ok(());
    };
    let entered = File::open(path).and_then(|file| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    });
    entered.map_err(|error| DialFailure::option("netns", &error))
}

#[cfg(not(target_os = "linux"))]
fn enter_namespace(_: &SocketOptions) -> Result<(), DialFailure> {
    Err(DialFailure::Other(
        "netns: supported only on Linux".to_owned(),
    ))
}
