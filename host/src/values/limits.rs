//! Every bound of the gateway: its name, its default and its unit, in one place.

use std::time::Duration;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What to do with new requests while the ledger cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFull {
    /// Refuse them with 503: no response goes unrecorded.
    Refuse,
    /// Serve them, keep their rows in memory as far as `settle_queue` goes, and write further ones to the log.
    Serve,
}

/// When a request goes on to the next credential of its pool. Fields are named as in the configuration's
/// `limits.failover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailoverSwitches {
    /// Upstream answers 429.
    pub rate_limited: bool,
    /// Upstream refuses the credential's token (401), and a refresh does not help.
    pub unauthorized: bool,
    /// No connection comes about.
    pub unreachable: bool,
    /// The response's head does not come in time.
    pub timed_out: bool,
    /// Upstream answers 502.
    pub bad_gateway: bool,
    /// Upstream answers 503.
    pub service_unavailable: bool,
    /// Upstream answers 504.
    pub gateway_timeout: bool,
}

impl Default for FailoverSwitches {
    fn default() -> Self {
        Self {
            rate_limited: true,
            unauthorized: true,
            unreachable: true,
            timed_out: true,
            bad_gateway: true,
            service_unavailable: true,
            gateway_timeout: true,
        }
    }
}

/// The bounds. Fields are named as in the configuration's `limits`; sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A request's head: request line and header fields. Past it: 431.
    pub request_head_bytes: u64,
    /// A request's body. Past it: 413.
    pub request_body_bytes: u64,
    /// How much of a request's body is kept so that it can be sent again to another credential.
    pub replay_bytes: u64,
    /// How far a compressed body, of a request or a response, is decoded on the side.
    pub decoded_bytes: u64,
    /// How far the body of a refused request is read on, so that its client sees the answer.
    pub discard_bytes: u64,
    /// Connections from clients at a time, over all services.
    pub connections: u64,
    /// Streams at a time on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Requests whose rows are not yet committed: the ledger's room. Past it: 503.
    pub settle_queue: u64,
    /// The ledger's size on disk; past it the ledger is full. 0: as far as the disk goes.
    pub ledger_bytes: u64,
    /// A message over a WebSocket.
    pub websocket_message_bytes: u64,
    /// WebSockets of one user at a time.
    pub websockets_per_user: u64,
    /// What to do with requests while the ledger cannot be written.
    pub ledger_full: LedgerFull,
    /// Sessions whose home is remembered, and responses whose issuer is.
    pub sessions: u64,
    /// Addresses whose failed authentications are remembered.
    pub auth_addresses: u64,
    /// From connect to the end of the TLS handshake, on either side.
    pub handshake_timeout: Duration,
    /// From a connection's start, or the response before, to the end of a request's head.
    pub head_timeout: Duration,
    /// Between two parts of a request's body.
    pub body_timeout: Duration,
    /// For how long the body of a refused request is read on.
    pub discard_timeout: Duration,
    /// For how long a client may take nothing of what is sent to it.
    pub client_stall_timeout: Duration,
    /// To a connection to upstream, name look-up included.
    pub connect_timeout: Duration,
    /// From a request sent to upstream to the response's head. Past it: 504.
    pub upstream_head_timeout: Duration,
    /// Between two parts of upstream's response body.
    pub upstream_idle_timeout: Duration,
    /// For how long a response's last byte waits for its row.
    pub commit_timeout: Duration,
    /// For how long requests under way may go on after a signal to stop.
    pub drain_timeout: Duration,
    /// From a request's first attempt to the head of its last one's response.
    pub failover_timeout: Duration,
    /// When a request goes on to the next credential.
    pub failover: FailoverSwitches,
    /// For how long the token endpoint may take to answer.
    pub refresh_timeout: Duration,
    /// For how long another process may hold the lock of an auth.json.
    pub lock_timeout: Duration,
    /// For how long upstream may take to tell a credential's use.
    pub poll_timeout: Duration,
    /// A WebSocket without a message is closed after that long.
    pub websocket_idle_timeout: Duration,
    /// A client that is quiet on its WebSocket is sent a ping after that long, and taken for gone after twice that.
    pub websocket_ping_interval: Duration,
    /// An idle connection to upstream is kept for that long.
    pub upstream_keep_alive: Duration,
    /// A session's home is forgotten after that long without a request.
    pub session_lifetime: Duration,
    /// Threads on which guests run that are too slow for the threads that serve requests.
    pub policy_threads: u64,
    /// Calls that wait for one of those. Past it a call fails as unavailable.
    pub policy_queue: u64,
    /// A guest whose warm call takes longer runs on those threads.
    pub policy_slow_after: Duration,
    /// For how long a start waits for a component to be compiled. One that takes longer is compiled in the background.
    pub policy_start_wait: Duration,
    /// Compiled code that is kept on disk, in bytes. 0: none.
    pub policy_cache_bytes: u64,
    /// Faults within [`Limits::policy_fault_window`] that put a component into quarantine.
    pub policy_faults: u64,
    /// The span that faults are counted in.
    pub policy_fault_window: Duration,
    /// The first quarantine; it doubles with each further one.
    pub policy_quarantine: Duration,
    /// The longest quarantine.
    pub policy_quarantine_max: Duration,
    /// Calls in which a new generation must prove itself, or the one before it is back.
    pub policy_probation_calls: u64,
    /// Lines that one policy may write to the log in a second.
    pub policy_log_lines: u64,
    /// The size at which a record of calls begins anew, in bytes.
    pub policy_record_bytes: u64,
    /// Full records that are kept beside it.
    pub policy_record_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_head_bytes: 64 * KIB,
            request_body_bytes: 128 * MIB,
            replay_bytes: 32 * MIB,
            decoded_bytes: 256 * MIB,
            discard_bytes: 16 * MIB,
            connections: 16_384,
            http2_streams: 256,
            settle_queue: 16_384,
            ledger_bytes: 0,
            websocket_message_bytes: 64 * MIB,
            websockets_per_user: 256,
            ledger_full: LedgerFull::Refuse,
            sessions: 65_536,
            auth_addresses: 4096,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            discard_timeout: Duration::from_secs(10),
            client_stall_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            upstream_head_timeout: Duration::from_secs(600),
            upstream_idle_timeout: Duration::from_secs(600),
            commit_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            failover_timeout: Duration::from_secs(15 * 60),
            failover: FailoverSwitches::default(),
            refresh_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(20),
            poll_timeout: Duration::from_secs(5),
            websocket_idle_timeout: Duration::from_secs(60 * 60),
            websocket_ping_interval: Duration::from_secs(30),
            upstream_keep_alive: Duration::from_secs(90),
            session_lifetime: Duration::from_secs(24 * 60 * 60),
            policy_threads: 2,
            policy_queue: 1024,
            policy_slow_after: Duration::from_micros(250),
            policy_start_wait: Duration::from_secs(3),
            policy_cache_bytes: 256 * MIB,
            policy_faults: 5,
            policy_fault_window: Duration::from_secs(60),
            policy_quarantine: Duration::from_secs(10),
            policy_quarantine_max: Duration::from_secs(10 * 60),
            policy_probation_calls: 100,
            policy_log_lines: 100,
            policy_record_bytes: 64 * MIB,
            policy_record_files: 4,
        }
    }
}

/// The longest string that is taken from a request or response for the ledger, a session's key or a policy. A longer
/// one counts as missing.
pub const FIELD_BYTES: usize = 256;

/// auth.json: a file past this size is not read.
pub const AUTH_FILE_BYTES: u64 = MIB;

/// A configuration file past this size is not read.
pub const CONFIG_FILE_BYTES: u64 = 16 * MIB;

/// A policy's component past this size is not read.
pub const COMPONENT_BYTES: u64 = 64 * MIB;

/// What a token endpoint or a usage API answers: more is not read.
pub const ANSWER_BYTES: usize = 256 * KIB as usize;

/// A response body that is kept to read an error from it: 429s and the like.
pub const ERROR_BODY_BYTES: usize = 64 * KIB as usize;

/// How long a response's body is read on after its reader has what it wants, until upstream ends it.
pub const RESPONSE_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How far it is read on. Past it the stream is reset, or the connection closed.
pub const RESPONSE_DRAIN_BYTES: usize = 256 * KIB as usize;

/// Bodies of one credential's responses that are read on at the same time. Past it they are not.
pub const RESPONSE_DRAINS: usize = 1024;

/// HTTP/2 streams that were reset and are remembered, on one connection to upstream: what upstream sent before it
/// learned of the reset is ignored for these, and is an error of the connection's for others.
pub const RESET_STREAMS: usize = 1024;
