//! Accepts connections from clients, up to `limits.connections` at once.
//!
//! Owns the listening sockets, how they are bound, and the PROXY protocol. Does not know what is
//! spoken on a connection. Invariant: no client and no error of the kernel ends the accept loop.

mod handed_over;
mod proxy_header;
mod socket;
mod stream;
mod unix;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

pub(crate) use handed_over::{HandedOverSocket, HandedOverSockets, SocketOwner, SocketPurpose};
pub(crate) use proxy_header::{ProxyHeaderError, read_proxy_header};
pub(crate) use socket::ListenError;
pub(crate) use stream::ClientStream;
pub(crate) use unix::{SocketFileOwnership, UnixSocketFile};

use crate::config::{ListenAddress, ListenConfig, ListenOptions};
use crate::platform::{UnixListener, duplicate, unix_listener};
use crate::values::exchange::client_address::ClientAddress;
use socket::bind_tcp;

/// The pause after an accept failed for lack of file descriptors or memory. It doubles up to the
/// maximum.
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// A listener of a service.
#[derive(Debug)]
pub(crate) struct ClientListener {
    socket: ListeningSocket,
    address: ListenAddress,
    owner: SocketOwner,
    /// The options that the socket has. Those of the service manager's are not known.
    options: Option<ListenOptions>,
    room: Arc<Semaphore>,
    stall_limit: Duration,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removed with the listener. `None` if the service manager owns it.
        file: Option<UnixSocketFile>,
    },
}

/// A connection from a client.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    pub(crate) stream: ClientStream,
    /// Who is connected: the client, or a proxy in front of it.
    pub(crate) peer: ClientAddress,
    /// Counts the connection among `limits.connections` until it is dropped.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl ClientListener {
    /// Binds the address of `config`. All listeners share the permits of `room`. A client that
    /// stops reading for `stall_limit` while data waits for it loses its connection.
    ///
    /// # Errors
    /// The address cannot be bound, or an option cannot be set.
    pub(crate) fn bind(
        config: &ListenConfig,
        room: Arc<Semaphore>,
        stall_limit: Duration,
    ) -> Result<Self, ListenError> {
        let socket = match &config.address {
            ListenAddress::Ip(address) => {
                let listener = bind_tcp(*address, &config.options)?;
                ListeningSocket::Tcp(TcpListener::from_std(listener)?)
            }
            ListenAddress::Unix(path) => {
                let (listener, file) = unix::bind(path)?;
                ListeningSocket::Unix {
                    listener,
                    file: Some(file),
                }
            }
        };
        let address = match &socket {
            ListeningSocket::Tcp(listener) => ListenAddress::Ip(listener.local_addr()?),
            ListeningSocket::Unix { .. } => config.address.clone(),
        };
        Ok(Self {
            socket,
            address,
            owner: SocketOwner::Gateway,
            options: Some(config.options.clone()),
            room,
            stall_limit,
        })
    }

    /// Listens on a socket that another process opened. Its options stay as they are.
    ///
    /// # Errors
    /// It is not a listening stream socket.
    pub(crate) fn take_over(
        handed_over: HandedOverSocket,
        room: Arc<Semaphore>,
        stall_limit: Duration,
    ) -> Result<Self, ListenError> {
        let owner = handed_over.owner;
        let ownership = handed_over.file_ownership.clone();
        let options = handed_over.options.clone();
        let (socket, address) = handed_over.into_listening()?;
        let socket = match &address {
            ListenAddress::Ip(_) => ListeningSocket::Tcp(TcpListener::from_std(socket.into())?),
            ListenAddress::Unix(path) => ListeningSocket::Unix {
                listener: unix_listener(socket)?,
                file: match owner {
                    SocketOwner::Gateway => Some(UnixSocketFile::of(path, ownership)),
                    SocketOwner::ServiceManager => None,
                },
            },
        };
        Ok(Self {
            socket,
            address,
            owner,
            options,
            room,
            stall_limit,
        })
    }

    /// Returns the socket for the process that succeeds this one. Both accept connections from it.
    ///
    /// # Errors
    /// This process has too many open files.
    pub(crate) fn for_successor(&self, service: &str) -> io::Result<HandedOverSocket> {
        let socket = match &self.socket {
            ListeningSocket::Tcp(listener) => duplicate(listener)?,
            ListeningSocket::Unix { listener, .. } => duplicate(listener)?,
        };
        Ok(HandedOverSocket {
            purpose: SocketPurpose::Service(service.to_owned()),
            owner: self.owner,
            file_ownership: SocketFileOwnership::own(),
            options: self.options.clone(),
            socket,
        })
    }

    /// Ends, and leaves the file of a Unix socket to the process that succeeds this one.
    pub(crate) fn leave_to_successor(self) {
        if let ListeningSocket::Unix {
            file: Some(file), ..
        } = self.socket
        {
            file.leave_to_successor();
        }
    }

    /// Returns the options that the socket has, if they are known.
    pub(crate) fn options(&self) -> Option<&ListenOptions> {
        self.options.as_ref()
    }

    /// Returns the bound address, with the actual port.
    pub(crate) fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Accepts the next connection. Waits for a permit first: until then, clients wait in the
    /// kernel's queue.
    pub(crate) async fn accept(&self) -> AcceptedConnection {
        let mut back_off = BACK_OFF_MIN;
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                unreachable!("the semaphore is never closed");
            };
            match self.socket.accept(self.stall_limit).await {
                Ok((stream, peer)) => {
                    return AcceptedConnection {
                        stream,
                        peer,
                        permit,
                    };
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "accept failed, retrying");
                    sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }
}

impl ListeningSocket {
    async fn accept(&self, stall_limit: Duration) -> io::Result<(ClientStream, ClientAddress)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let stream = ClientStream::tcp(stream, stall_limit);
                Ok((stream, ClientAddress::from(peer.ip())))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let stream = ClientStream::unix(stream, stall_limit);
                Ok((stream, ClientAddress::Unix))
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
