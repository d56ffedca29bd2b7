//! The address that a request comes from, as limits and the log use it.

use std::fmt;
use std::net::IpAddr;

/// The address of a client or of a proxy in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    /// An IP address. One of IPv4 is never in the form of IPv6 (`::ffff:192.0.2.1`).
    Ip(IpAddr),
    /// A process on this machine that is connected to a Unix socket.
    Unix,
    /// A client of another gateway, over a reverse connection.
    Reverse,
    /// A client of a proxy that does not know the address, or the proxy itself. It is never trusted.
    Unknown,
}

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Reverse => f.write_str("reverse"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
