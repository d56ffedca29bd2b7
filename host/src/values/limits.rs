//! The limits of the gateway. Those that an operator can set under `limits` are declared once, in
//! the two `declare_limits!` tables below: name, type, default, range, description and when a
//! change applies. The JSON Schema, the parsing and validation of the configuration, and the table
//! in the documentation follow from the declaration. This module does not know who enforces a
//! limit.
//!
//! To add a limit, add an entry to the table of [`Limits`] and use the field. Its doc comment is
//! what operators read, so it is one or two plain sentences. Then regenerate
//! `host/config.schema.json`, add the limit to `examples/configs/full.jsonc`, and copy the row that
//! the documentation test prints into `docs/limits.md`.
//!
//! The constants at the end are limits that cannot be configured.

mod declaration;
mod value;

use std::time::Duration;

pub use declaration::{LimitChange, LimitDeclaration, LimitRange};
pub use value::{LedgerFull, LimitValue};

use declaration::{ANY, at_least, at_most, between};
use value::LimitField;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 60 * 60)
}

/// Declares a struct of limits: its fields, its defaults, what [`Limits::declarations`] tells of
/// them, and how they are set by name. A name in the configuration is `prefix` and the field's
/// name. A limit that is built into something has `#[change(AtRestart)]` or
/// `#[change(NewPolicies)]`; the others are [`LimitChange::Live`].
macro_rules! declare_limits {
    (
        prefix $prefix:literal;
        $(#[$struct_meta:meta])*
        pub struct $struct:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[change($change:ident)])?
                $name:ident: $type:ty = $default:expr $(, $range:expr)?;
            )*
        }
        $( group { $(#[$group_meta:meta])* $group:ident: $group_type:ty } )?
    ) => {
        $(#[$struct_meta])*
        pub struct $struct {
            $( $(#[doc = $doc])+ pub $name: $type, )*
            $( $(#[$group_meta])* pub $group: $group_type, )?
        }

        impl Default for $struct {
            fn default() -> Self {
                Self {
                    $( $name: $default, )*
                    $( $group: <$group_type>::default(), )?
                }
            }
        }

        impl $struct {
            /// Every limit, in the order of the documentation.
            pub fn declarations() -> Vec<LimitDeclaration> {
                let defaults = Self::default();
                let mut declarations = vec![ $( LimitDeclaration {
                    name: concat!($prefix, stringify!($name)),
                    description: [$($doc.trim()),+].join(" "),
                    default: defaults.$name.to_value(),
                    range: [$($range,)? ANY][0],
                    change: [$(LimitChange::$change,)? LimitChange::Live][0],
                }, )* ];
                let groups: &[Vec<LimitDeclaration>] = &[ $( <$group_type>::declarations() )? ];
                declarations.extend(groups.iter().flatten().cloned());
                declarations
            }

            /// Returns the names of the limits that differ in `new` and do not apply to everything
            /// before a restart.
            pub(crate) fn changed_at_restart(&self, new: &Self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(
                    let change = [$(LimitChange::$change,)? LimitChange::Live][0];
                    if change != LimitChange::Live && self.$name != new.$name {
                        names.push(concat!($prefix, stringify!($name)));
                    }
                )*
                $( names.extend(self.$group.changed_at_restart(&new.$group)); )?
                names
            }

            /// Sets the limit that the configuration calls `name`. Returns false if there is no
            /// such limit or if it has another type; the caller checks the range.
            pub fn set(&mut self, name: &str, value: LimitValue) -> bool {
                $(
                    if name == concat!($prefix, stringify!($name)) {
                        return LimitField::from_value(value).map(|value| self.$name = value).is_some();
                    }
                )*
                $( if self.$group.set(name, value) { return true; } )?
                false
            }
        }
    };
}

declare_limits! {
    prefix "failover.";
    /// When a request is retried with the next credential of its pool, before any output was sent
    /// to the client. Fields are named as in `limits.failover`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FailoverSwitches {
        /// Retry with the next credential if upstream responds with 429.
        rate_limited: bool = true;
        /// Retry with the next credential if upstream rejects the token (401) and a refresh does
        /// not help.
        unauthorized: bool = true;
        /// Retry with the next credential if upstream cannot be reached.
        unreachable: bool = true;
        /// Retry with the next credential if the response's head does not arrive within
        /// `upstream_head_timeout`.
        timed_out: bool = true;
        /// Retry with the next credential if upstream responds with 502.
        bad_gateway: bool = true;
        /// Retry with the next credential if upstream responds with 503.
        service_unavailable: bool = true;
        /// Retry with the next credential if upstream responds with 504.
        gateway_timeout: bool = true;
    }
}

declare_limits! {
    prefix "";
    /// The limits that an operator can set. Fields are named as in the configuration's `limits`;
    /// sizes are in bytes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Limits {
        /// Size of a request's head (request line and header fields). A larger one is rejected with
        /// 431.
        request_head_bytes: u64 = 64 * KIB, between(8 * KIB, MIB);
        /// Size of a request's body. A larger one is rejected with 413.
        request_body_bytes: u64 = 128 * MIB;
        /// How much of a request's body is kept so that it can be sent again with another
        /// credential.
        replay_bytes: u64 = 32 * MIB;
        /// How far a compressed body is decoded on the side, for metering.
        decoded_bytes: u64 = 256 * MIB;
        /// How much of a rejected request's body is read and discarded, so that its client sees the
        /// response.
        discard_bytes: u64 = 16 * MIB;
        /// Connections from clients at a time, over all services.
        #[change(AtRestart)]
        connections: u64 = 16_384, at_least(1);
        /// Concurrent streams of one HTTP/2 connection.
        http2_streams: u32 = 256, between(1, u32::MAX as u64);
        /// Requests whose ledger rows are not yet committed. Further requests are rejected with
        /// 503.
        #[change(AtRestart)]
        settle_queue: u64 = 16_384, between(1, 1_048_576);
        /// Size of the ledger on disk. 0: no limit but the disk.
        #[change(AtRestart)]
        ledger_bytes: u64 = 0;
        /// What to do with requests while the ledger cannot be written: reject them with 503
        /// (`refuse`), or forward them and write to the log what does not fit into `settle_queue`
        /// (`serve`).
        #[change(AtRestart)]
        ledger_full: LedgerFull = LedgerFull::Refuse;
        /// Size of a WebSocket message. A larger one closes the socket with code 1009.
        websocket_message_bytes: u64 = 64 * MIB, at_least(1);
        /// WebSockets of one user at a time. Further handshakes are rejected with 503.
        websockets_per_user: u64 = 256, at_least(1);
        /// Streams of `/ocm/v1/status?watch=true` of one user at a time. Further ones are rejected
        /// with 503.
        status_watches_per_user: u64 = 16, at_least(1);
        /// Sessions whose credential is remembered, and responses whose credential is.
        #[change(AtRestart)]
        sessions: u64 = 65_536, at_least(1);
        /// Client addresses whose failed authentications are counted.
        #[change(AtRestart)]
        auth_addresses: u64 = 4096, at_least(1);
        /// Time for a TLS handshake with a client, and for a connection to become a WebSocket or a
        /// reverse connection.
        handshake_timeout: Duration = secs(10);
        /// Time until a request's head is complete, from the start of the connection or the end of
        /// the previous response.
        head_timeout: Duration = secs(60);
        /// Time between two parts of a request's body. After it the request is rejected with 408.
        body_timeout: Duration = secs(60);
        /// Time for reading and discarding a rejected request's body.
        discard_timeout: Duration = secs(10);
        /// Time for which a client may stop reading what is sent to it.
        #[change(AtRestart)]
        client_stall_timeout: Duration = minutes(5);
        /// Time for connecting to upstream: name lookup, proxies and TLS together. A refresh waits
        /// at most 4s of it.
        connect_timeout: Duration = secs(10);
        /// Time from sending a request to upstream until the response's head. After it the response
        /// is 504.
        upstream_head_timeout: Duration = minutes(10);
        /// Time between two parts of upstream's response.
        upstream_idle_timeout: Duration = minutes(10);
        /// Time for which the last byte of a response waits until its ledger row is committed.
        commit_timeout: Duration = secs(10);
        /// Time that in-flight requests have to finish after a signal to stop.
        #[change(AtRestart)]
        drain_timeout: Duration = secs(30);
        /// Time that a new process may take, after SIGUSR2, until it accepts connections. After it
        /// the new process is killed, and the old one continues.
        #[change(AtRestart)]
        upgrade_ready_timeout: Duration = secs(60);
        /// Time that in-flight requests of the old process have to finish after an upgrade. After it
        /// they have `drain_timeout`.
        #[change(AtRestart)]
        upgrade_drain_timeout: Duration = hours(1);
        /// Time from the first attempt of a request until the head of its last attempt's response.
        /// After it no other credential is tried.
        failover_timeout: Duration = minutes(15);
        /// Time for the token endpoint to respond to a refresh.
        refresh_timeout: Duration = secs(30);
        /// Time for which another process may hold the lock of an auth.json.
        lock_timeout: Duration = secs(20);
        /// Time for upstream to respond to a poll of a credential's usage.
        poll_timeout: Duration = secs(5);
        /// Time after which a WebSocket without messages is closed with code 1001.
        websocket_idle_timeout: Duration = hours(1);
        /// Time after which a client that is silent on its WebSocket is pinged. After twice that
        /// time it counts as disconnected.
        websocket_ping_interval: Duration = secs(30);
        /// Time for which an idle connection to upstream is kept open.
        upstream_keep_alive: Duration = secs(90);
        /// Time without requests after which a session's credential is forgotten.
        #[change(AtRestart)]
        session_lifetime: Duration = hours(24);
        /// Streams of one reverse connection at a time. Further requests over it fail as if it were
        /// unreachable.
        reverse_streams: u64 = 256, between(1, 65_536);
        /// Time between two pings over a reverse connection.
        reverse_keep_alive: Duration = secs(15);
        /// Time for which the other gateway of a reverse connection may stop reading, or leave a
        /// ping unanswered.
        reverse_stall_timeout: Duration = secs(10);
        /// Longest pause before a gateway connects again, to which up to half of it is added at
        /// random.
        reverse_pause_max: Duration = secs(30);
        /// Threads for policies that are too slow to run on the threads that forward requests.
        #[change(AtRestart)]
        policy_threads: u64 = 2, between(1, 256);
        /// Calls that wait for one of these threads. Further calls fail as unavailable.
        #[change(AtRestart)]
        policy_queue: u64 = 1024, between(1, 1_048_576);
        /// Duration of a warm call above which a policy runs on these threads.
        #[change(NewPolicies)]
        policy_slow_after: Duration = Duration::from_micros(250);
        /// Time for which a start waits until a policy's component is compiled. After it
        /// compilation continues in the background.
        #[change(AtRestart)]
        policy_start_wait: Duration = secs(3);
        /// Size of the compiled policies that are kept in `data_dir`. 0: none are kept.
        #[change(AtRestart)]
        policy_cache_bytes: u64 = 256 * MIB;
        /// Faults within `policy_fault_window` after which a policy's circuit breaker opens.
        #[change(NewPolicies)]
        policy_faults: u64 = 5, between(1, 1000);
        /// Time within which faults are counted together.
        #[change(NewPolicies)]
        policy_fault_window: Duration = secs(60);
        /// Time for which the circuit breaker is first open. It doubles each time that it opens
        /// again.
        #[change(NewPolicies)]
        policy_quarantine: Duration = secs(10);
        /// Longest time for which the circuit breaker is open.
        #[change(NewPolicies)]
        policy_quarantine_max: Duration = minutes(10);
        /// Calls of a new policy generation during which two faults are enough to roll it back.
        #[change(NewPolicies)]
        policy_probation_calls: u64 = 100;
        /// Lines that one policy may write to the log per second.
        #[change(NewPolicies)]
        policy_log_lines: u64 = 100;
        /// Size of a record of policy calls. A new file is started beyond it.
        #[change(NewPolicies)]
        policy_record_bytes: u64 = 64 * MIB, at_least(4096);
        /// Full records that are kept besides the current one.
        #[change(NewPolicies)]
        policy_record_files: u64 = 4, at_most(1000);
    }
    group {
        /// When a request is retried with the next credential.
        failover: FailoverSwitches
    }
}

/// The longest string that is read from a request or response for the ledger, a session's key or a
/// policy. A longer one counts as missing.
pub const FIELD_BYTES: usize = 256;

/// The largest auth.json that is read.
pub const AUTH_FILE_BYTES: u64 = MIB;

/// The largest configuration file that is read.
pub const CONFIG_FILE_BYTES: u64 = 16 * MIB;

/// The largest PROXY protocol header that is read.
pub const PROXY_HEADER_BYTES: usize = 4 * KIB as usize;

/// How many sockets are handed over to the process that succeeds this one: what Linux passes in one
/// message (`SCM_MAX_FD` of unix(7)).
pub const HANDED_OVER_FILES: usize = 253;

/// How deep objects and lists of the configuration may be nested.
pub const CONFIG_DEPTH: usize = 128;

/// The most outbounds that connect through each other.
pub const OUTBOUND_CHAIN: usize = 16;

/// The largest head of a proxy's response to CONNECT.
pub const PROXY_HEAD_BYTES: usize = 16 * KIB as usize;

/// The largest policy component that is read.
pub const COMPONENT_BYTES: u64 = 64 * MIB;

/// How much is read of a response from a token endpoint or a usage API.
pub const ANSWER_BYTES: usize = 256 * KIB as usize;

/// The largest response body from which an error is read, such as that of a 429.
pub const ERROR_BODY_BYTES: usize = 64 * KIB as usize;

/// How long the rest of a response's body is read after its reader has what it needs, until
/// upstream ends the stream.
pub const RESPONSE_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of that rest is read. Beyond it the stream is reset or the connection closed.
pub const RESPONSE_DRAIN_BYTES: usize = 256 * KIB as usize;

/// How many bodies of one credential's responses are read to their end at the same time. Further
/// ones are not.
pub const RESPONSE_DRAINS: usize = 1024;

/// The most gateways that a request may pass, one after the other.
pub const HOPS_MAX: usize = 16;

/// Time for one request to an ACME server, and for a client's request on the port of a challenge.
pub const ACME_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Size of a response of an ACME server.
pub const ACME_RESPONSE_BYTES: usize = 1024 * KIB as usize;

/// Time for an order at an ACME server, from its first request to the certificate.
pub const ACME_ORDER_TIMEOUT: Duration = Duration::from_secs(120);

/// The pause after an order that failed. It doubles up to [`ACME_RETRY_MAX`].
pub const ACME_RETRY_MIN: Duration = Duration::from_secs(60);

/// The longest pause after an order that failed.
pub const ACME_RETRY_MAX: Duration = Duration::from_secs(60 * 60);

/// The shortest pause after a domain was not validated. Let's Encrypt allows five failures for a
/// name and an hour, and both challenges may fail.
pub const ACME_VALIDATION_RETRY_MIN: Duration = Duration::from_secs(10 * 60);

/// The longest pause that `Retry-After` of an ACME server can ask for.
pub const ACME_RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The pause between certificates that must be renewed within [`ACME_RETRY_MIN`]. It doubles up to
/// [`ACME_RETRY_MAX`].
pub const ACME_RENEWAL_MIN: Duration = Duration::from_secs(5);

/// Connections at a time to a port that is open for a challenge. Further ones are closed.
pub const ACME_CHALLENGE_CONNECTIONS: usize = 64;

/// How many reset HTTP/2 streams of one connection to upstream are remembered. What upstream sends
/// on these before it learns of the reset is ignored; on other streams it is an error of the
/// connection.
pub const RESET_STREAMS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_within_its_range() {
        for limit in Limits::declarations() {
            match limit.default {
                LimitValue::Number(number) => assert!(
                    (limit.range.min..=limit.range.max).contains(&number),
                    "{}",
                    limit.name
                ),
                LimitValue::Duration(duration) => assert!(!duration.is_zero(), "{}", limit.name),
                LimitValue::Switch(_) | LimitValue::LedgerFull(_) => {}
            }
        }
    }

    #[test]
    fn every_limit_can_be_set_to_its_default_by_name() {
        let mut limits = Limits::default();
        for limit in Limits::declarations() {
            assert!(limits.set(limit.name, limit.default), "{}", limit.name);
        }
        assert_eq!(limits, Limits::default());
        assert!(!limits.set("unknown", LimitValue::Number(1)));
        assert!(!limits.set("connections", LimitValue::Switch(true)));
    }

    #[test]
    fn values_are_written_as_in_the_configuration() {
        for (duration, expected) in [
            (Duration::from_micros(250), "250us"),
            (Duration::from_millis(1500), "1500ms"),
            (secs(60), "60s"),
            (secs(90), "90s"),
            (minutes(5), "5m"),
            (hours(24), "24h"),
        ] {
            assert_eq!(LimitValue::Duration(duration).to_string(), expected);
        }
    }
}
