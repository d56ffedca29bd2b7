//! Listeners: connections from clients, as many as there is room for.
//!
//! Owns accepting; refuses to know what is spoken. Invariant: whatever a client or the kernel does, the loop goes on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// The wait after an accept that failed for want of something (file descriptors, memory); it doubles to the last.
const BACK_OFF_FIRST: Duration = Duration::from_millis(5);
const BACK_OFF_LAST: Duration = Duration::from_secs(1);

/// A listener of a service.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    room: Arc<Semaphore>,
    stall_limit: Duration,
}

/// A connection from a client.
#[derive(Debug)]
pub struct Connection {
    /// The connection.
    pub stream: TcpStream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Its place among `limits.connections`, for as long as it is kept.
    pub place: OwnedSemaphorePermit,
}

impl Listener {
    /// Listens on `address`, with `room` shared by all listeners. A client that takes nothing for `stall_limit` of what
    /// is sent to it loses its connection.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(
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

    /// The address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. Waits for room first: further clients wait in the kernel's queue.
    pub async fn accept(&self) -> Connection {
        let mut back_off = BACK_OFF_FIRST;
        loop {
            let Ok(place) = Arc::clone(&self.room).acquire_owned().await else {
                unreachable!("nobody closes the semaphore");
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // A response's parts are written when they are whole; holding them back only adds latency.
                    let _ = stream.set_nodelay(true);
                    // RFC 5482: unacknowledged data and a window that stays closed end the connection after so long.
                    let limit_ms = u32::try_from(self.stall_limit.as_millis()).unwrap_or(u32::MAX);
                    let _ = set_tcp_user_timeout(&stream, limit_ms);
                    return Connection {
                        stream,
                        peer,
                        place,
                    };
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "cannot accept; trying again");
                    sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF_LAST);
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
