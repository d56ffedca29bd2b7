//! What every connection of an upstream shares, and the options that it starts with.
//!
//! Knows nothing of connections. Invariant: scripts and records have their own locks, which
//! nothing holds across a wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::sync::watch;

use crate::accounts::account::Account;
use crate::accounts::script::Script;
use crate::logins::login::Logins;
use crate::requests::seen::{Record, Remember};
use crate::responses::answer::Prepared;
use crate::sockets::seen_socket::Sockets;
use crate::sockets::socket_reply::SocketReply;

pub(super) const TOKEN_PATH: &str = "/oauth/token";

/// How an upstream starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Whether requests are recorded.
    pub remember: Remember,
    /// Serves TLS. Without it, HTTP in clear.
    pub tls: Option<TlsOptions>,
}

/// How an upstream serves TLS, and HTTP/2 over it.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Certificate, key and the protocols of ALPN. A connection that does not agree on `h2` speaks
    /// HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// SETTINGS_MAX_CONCURRENT_STREAMS; hyper's default if none.
    pub streams_max: Option<u32>,
    /// How much of a request's body the client may send before it is read, for a stream and for all
    /// streams of a connection together; hyper's default if none.
    pub window_bytes: Option<u32>,
}

impl TlsOptions {
    /// Creates options with the defaults of hyper.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        TlsOptions {
            config,
            streams_max: None,
            window_bytes: None,
        }
    }
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Stage {
    /// By access token. Accounts of logins are in `logins`.
    pub(super) accounts: Mutex<HashMap<String, Account>>,
    pub(super) logins: Logins,
    pub(super) record: Arc<Record>,
    /// The upstream-wide replies, for accounts without a script.
    pub(super) script: Script<Prepared>,
    pub(super) well: Arc<Prepared>,
    pub(super) sockets: Arc<Sockets>,
    /// As `script`, for turns on sockets.
    pub(super) socket_script: Arc<Script<SocketReply>>,
    pub(super) tls: Option<TlsOptions>,
    /// How often every HTTP/2 connection was ended gracefully.
    pub(super) go_away: watch::Sender<u64>,
}
