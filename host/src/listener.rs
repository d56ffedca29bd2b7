//! Accepts connections from clients, up to `limits.connections` at once.
//!
//! Does not know which protocol a connection speaks. Invariant: no client and no error of the
//! kernel ends the accept loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// The pause after an accept failed for lack of file descriptors or memory. It doubles up to the
/// maximum.
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// The listener of a service.
#[derive(Debug)]
pub(crate) struct ClientListener {
    listener: TcpListener,
    address: SocketAddr,
    room: Arc<Semaphore>,
    stall_limit: Duration,
}

/// A connection from a client.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Counts the connection among `limits.connections` until it is dropped.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl ClientListener {
    /// Binds `address`. All listeners share the permits of `room`. A client that stops reading for
    /// `stall_limit` while data waits for it loses its connection.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) async fn bind(
        address: SocketAddr,
        room: Arc<Semaphore>,
        stall_limit: Duration,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            room,
            stall_limit,
        })
    }

    /// Returns the bound address, with the actual port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts the next connection. Waits for a permit first: until then, clients wait in the
    /// kernel's queue.
    pub(crate) async fn accept(&self) -> AcceptedConnection {
        let mut back_off = BACK_OFF_MIN;
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                unreachable!("the semaphore is never closed");
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // Each part of a response is written as a whole: Nagle's algorithm would only
                    // add latency.
                    let _ = stream.set_nodelay(true);
                    // RFC 5482: ends the connection if data stays unacknowledged or the window
                    // closed for this long.
                    let limit_ms = u32::try_from(self.stall_limit.as_millis()).unwrap_or(u32::MAX);
                    let _ = set_tcp_user_timeout(&stream, limit_ms);
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

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
