//! An address that refuses every connection.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port that is taken, and on which nothing listens, until this is dropped.
#[derive(Debug)]
pub struct Nowhere {
    address: SocketAddr,
    _taken: TcpSocket,
}

impl Nowhere {
    /// Takes a free port of 127.0.0.1.
    ///
    /// # Panics
    /// Panics if there is none.
    pub fn new() -> Self {
        let taken = TcpSocket::new_v4().expect("a socket");
        taken
            .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .expect("a free port");
        Self {
            address: taken.local_addr().expect("an address"),
            _taken: taken,
        }
    }

    /// Returns the port that refuses connections.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns a URL that refuses connections: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Default for Nowhere {
    fn default() -> Self {
        Self::new()
    }
}
