//! Where a service listens, and which proxies it believes.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::values::exchange::client_address::ClientAddress;

/// Where a service listens, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// Where clients connect to.
    pub address: ListenAddress,
    /// The options of the socket, for an IP address.
    pub options: ListenOptions,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
}

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port. With port 0 the system chooses one.
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns the IP address and the port; `None` for a Unix socket.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The options of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenOptions {
    /// The network interface to listen on.
    pub interface: Option<String>,
    /// The netfilter mark of its packets.
    pub routing_mark: Option<u32>,
    /// Whether other processes may listen on the same address.
    pub reuse_port: bool,
    /// The file of the network namespace to listen in.
    pub network_namespace: Option<PathBuf>,
    /// Whether TCP Fast Open is enabled.
    pub fast_open: bool,
    /// Whether Multipath TCP is enabled.
    pub multi_path: bool,
    /// When silent clients are probed, if they are.
    pub keep_alive: Option<KeepAliveTimes>,
}

impl ListenOptions {
    /// Returns whether they ask for something that only the process that opens a socket can do.
    pub fn are_special(&self) -> bool {
        self.place() != (None, None)
            || self.routing_mark.is_some()
            || self.reuse_port
            || self.fast_open
            || self.multi_path
    }

    /// Returns the interface and the namespace: an address can be used once in each.
    pub fn place(&self) -> (Option<&str>, Option<&Path>) {
        (self.interface.as_deref(), self.network_namespace.as_deref())
    }
}

/// When a silent peer is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAliveTimes {
    /// The time without data before the first probe.
    pub idle: Duration,
    /// The time between two probes.
    pub interval: Duration,
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Connections begin with TLS or HTTP.
    Off,
    /// Each does. A connection without the header is closed.
    Required,
}

/// The proxies whose statements about a client's address are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Networks of addresses, often of one.
    pub networks: Vec<IpNet>,
    /// Whether the clients of a Unix socket are among them.
    pub unix: bool,
}

impl TrustedProxies {
    /// Returns whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Returns whether the peer at `address` is one of them.
    pub fn contains(&self, address: ClientAddress) -> bool {
        match address {
            ClientAddress::Unix => self.unix,
            ClientAddress::Reverse | ClientAddress::Unknown => false,
            ClientAddress::Ip(ip) => self.networks.iter().any(|network| network.contains(&ip)),
        }
    }
}
