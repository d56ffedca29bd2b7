//! Listening sockets that another process opened: the service manager, or the gateway before this
//! one.
//!
//! Owns how they are found for what listens. Invariant: each socket is used once, and the rest is
//! closed.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use socket2::{Socket, Type};

use super::unix::SocketFileOwnership;
use crate::config::{ListenAddress, ListenOptions};
use crate::platform::{Descriptor, inherited_sockets, socket_path};

/// The name of the admin listener's socket, as the service manager knows it.
const ADMIN: &str = "admin";

/// What a socket is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketPurpose {
    /// The clients of the service with this tag.
    Service(String),
    /// Operators who connect over TCP.
    Admin,
    /// The commands on this machine.
    AdminSocket,
    /// What the service manager's name for it says: a service's tag, `admin`, or nothing.
    Named(String),
}

/// Who opened a socket. It removes the file of a Unix socket in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketOwner {
    /// The gateway. The process before this one hands over its files, too.
    Gateway,
    /// The service manager, which keeps the socket while the gateway is stopped.
    ServiceManager,
}

/// A listening socket that another process opened.
#[derive(Debug)]
pub(crate) struct HandedOverSocket {
    pub(crate) purpose: SocketPurpose,
    pub(crate) owner: SocketOwner,
    pub(crate) file_ownership: SocketFileOwnership,
    /// The options of a client's listener, if they are known.
    pub(crate) options: Option<ListenOptions>,
    pub(crate) socket: Descriptor,
}

/// Listening sockets that another process opened.
#[derive(Debug, Default)]
pub(crate) struct HandedOverSockets(pub(crate) Vec<HandedOverSocket>);

impl HandedOverSockets {
    /// Takes the sockets that the service manager hands over to this process, if there are any
    /// (`sd_listen_fds(3)`). Must be called once, before this process opens files.
    ///
    /// # Errors
    /// The environment does not describe them in the right way.
    pub(crate) fn from_service_manager() -> io::Result<Self> {
        let sockets = inherited_sockets()?.into_iter();
        let sockets = sockets.map(|(name, socket)| HandedOverSocket {
            purpose: SocketPurpose::Named(name),
            owner: SocketOwner::ServiceManager,
            file_ownership: SocketFileOwnership::own(),
            options: None,
            socket,
        });
        Ok(Self(sockets.collect()))
    }

    /// Takes the sockets that are meant for a service by name. One of the gateway before this one
    /// counts only if the service still has its address.
    pub(crate) fn take_of_service(
        &mut self,
        tag: &str,
        address: &ListenAddress,
    ) -> Vec<HandedOverSocket> {
        self.take(|handed| match (&handed.purpose, handed.owner) {
            (SocketPurpose::Named(name), _) => name == tag,
            (SocketPurpose::Service(name), SocketOwner::ServiceManager) => name == tag,
            (SocketPurpose::Service(name), SocketOwner::Gateway) => {
                name == tag && handed.is_at(address)
            }
            (SocketPurpose::Admin | SocketPurpose::AdminSocket, _) => false,
        })
    }

    /// Takes the sockets of the service manager that listen on `address`, whatever their names.
    pub(crate) fn take_at(&mut self, address: &ListenAddress) -> Vec<HandedOverSocket> {
        self.take(|handed| {
            matches!(handed.purpose, SocketPurpose::Named(_)) && handed.is_at(address)
        })
    }

    /// Takes the socket of the admin listener at `address`.
    pub(crate) fn take_admin(&mut self, address: &ListenAddress) -> Option<HandedOverSocket> {
        let taken = self.take(|handed| match &handed.purpose {
            SocketPurpose::Admin => {
                handed.owner == SocketOwner::ServiceManager || handed.is_at(address)
            }
            SocketPurpose::Named(name) => name == ADMIN || handed.is_at(address),
            SocketPurpose::Service(_) | SocketPurpose::AdminSocket => false,
        });
        taken.into_iter().next()
    }

    /// Takes the socket for the commands at `address`.
    pub(crate) fn take_admin_socket(
        &mut self,
        address: &ListenAddress,
    ) -> Option<HandedOverSocket> {
        let taken = self
            .take(|handed| handed.purpose == SocketPurpose::AdminSocket && handed.is_at(address));
        taken.into_iter().next()
    }

    /// Closes what is left, and logs it.
    pub(crate) fn close_unused(&mut self) {
        for HandedOverSocket {
            purpose, socket, ..
        } in self.0.drain(..)
        {
            let address = address(&Socket::from(socket)).map(|address| address.to_string());
            tracing::warn!(?purpose, address, "no service uses this socket, closing it");
        }
    }

    fn take(&mut self, is_wanted: impl Fn(&HandedOverSocket) -> bool) -> Vec<HandedOverSocket> {
        let (taken, left) = self.0.drain(..).partition(|handed| is_wanted(handed));
        self.0 = left;
        taken
    }
}

impl HandedOverSocket {
    /// Returns another descriptor of the same socket.
    ///
    /// # Errors
    /// This process has too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            purpose: self.purpose.clone(),
            owner: self.owner,
            file_ownership: self.file_ownership.clone(),
            options: self.options.clone(),
            socket: self.socket.try_clone()?,
        })
    }

    /// Returns whether it listens at `address`. Port 0 stands for any port.
    fn is_at(&self, wanted: &ListenAddress) -> bool {
        let Ok(socket) = self.socket.try_clone().map(Socket::from) else {
            return false;
        };
        match (address(&socket), wanted) {
            (Some(ListenAddress::Ip(found)), ListenAddress::Ip(wanted)) => {
                found.ip() == wanted.ip() && (found.port() == wanted.port() || wanted.port() == 0)
            }
            (Some(ListenAddress::Unix(found)), ListenAddress::Unix(wanted)) => {
                let (Ok(found_there), Ok(wanted_there)) =
                    (found.canonicalize(), wanted.canonicalize())
                else {
                    return false;
                };
                found_there == wanted_there
            }
            _ => false,
        }
    }

    /// Returns the socket, ready for asynchronous use, and its address.
    ///
    /// # Errors
    /// It is not a listening stream socket over IP or a Unix path.
    pub(crate) fn into_listening(self) -> io::Result<(Socket, ListenAddress)> {
        let socket = Socket::from(self.socket);
        let is_stream = socket.r#type()? == Type::STREAM;
        let address = address(&socket).filter(|_| is_stream && is_listening(&socket));
        let Some(address) = address else {
            let message = "expected a listening stream socket from the service manager";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    }
}

fn address(socket: &Socket) -> Option<ListenAddress> {
    let address = socket.local_addr().ok()?;
    let ip: Option<SocketAddr> = address.as_socket();
    let unix = || socket_path(&address).map(ListenAddress::Unix);
    ip.map(ListenAddress::Ip).or_else(unix)
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn is_listening(socket: &Socket) -> bool {
    socket.is_listener().unwrap_or(false)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn is_listening(_: &Socket) -> bool {
    true
}
