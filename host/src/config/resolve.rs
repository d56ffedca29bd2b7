//! From the configuration as it is written to one whose every field can be used. Collects every problem.

mod credentials;
mod policies;
mod service;

use std::collections::HashSet;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::raw::{RawAdmin, RawConfig, RawDuration, RawLedgerFull, RawLimits, RawLog, RawService};
use super::shape::{ConfigProblem, join};
use super::{AdminConfig, Config, LogConfig, LogLevel, LogOutput, duration};
use crate::values::limits::{LedgerFull, Limits};
use crate::values::secret::SecretString;

pub use policies::shipped_policy;

use policies::Policies;

/// Where operators are listened to by default.
const ADMIN_PORT: u16 = 9090;

/// What resolving has found so far.
struct Findings<'a> {
    problems: &'a mut Vec<ConfigProblem>,
    warnings: &'a mut Vec<ConfigProblem>,
}

impl Findings<'_> {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(ConfigProblem::new(path, message));
    }

    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(ConfigProblem::new(path, message));
    }
}

/// Resolves `raw`. None only where there is a problem.
pub(super) fn resolve(
    raw: &RawConfig,
    problems: &mut Vec<ConfigProblem>,
    warnings: &mut Vec<ConfigProblem>,
) -> Option<Config> {
    let mut findings = Findings { problems, warnings };
    let mut policies = Policies::configured(&raw.policies, &mut findings);
    let services = services(raw, &mut policies, &mut findings);
    let admin = raw
        .admin
        .as_ref()
        .and_then(|raw| admin(raw, &services, &mut findings));
    let limits = limits(&raw.limits, &mut findings);
    if limits.ledger_full == LedgerFull::Serve && raw.log.disabled {
        findings.warning(
            "limits.ledger_full",
            "rows beyond limits.settle_queue go to the log while the ledger cannot be written, and the log is disabled",
        );
    }
    let data_dir = match raw.data_dir.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => Some(PathBuf::from(path)),
        None => default_data_dir(&mut findings),
    };
    Some(Config {
        log: log(&raw.log),
        services,
        policies: policies.resolved(),
        data_dir: data_dir?,
        admin,
        limits,
    })
}

fn services(
    raw: &RawConfig,
    policies: &mut Policies,
    findings: &mut Findings<'_>,
) -> Vec<super::ServiceConfig> {
    let entries = raw.services.as_slice();
    let served = entries
        .iter()
        .filter(|entry| matches!(entry, RawService::Ocm(_)))
        .count();
    if served == 0 {
        findings.problem(
            "services",
            "expected at least one of type \"ocm\", found none",
        );
    }
    let mut services = Vec::new();
    let mut tags = HashSet::new();
    let mut addresses = HashSet::new();
    let mut files = credentials::Files::default();
    for (index, entry) in entries.iter().enumerate() {
        let path = format!("services[{index}]");
        match entry {
            RawService::Ocm(raw_service) => {
                let tag = raw_service
                    .tag
                    .clone()
                    .unwrap_or_else(|| default_service_tag(index, served));
                if !tags.insert(tag.clone()) {
                    findings.problem(
                        join(&path, "tag"),
                        format!("expected a name of its own, found {tag:?} again"),
                    );
                }
                let context = service::Context {
                    path,
                    tag,
                    raw_config: raw,
                };
                let service =
                    service::resolve(context, raw_service, policies, &mut files, findings);
                if let Some(service) = &service
                    && service.listen.port() != 0
                    && !addresses.insert(service.listen)
                {
                    let message = format!(
                        "expected an address of its own, found {} again",
                        service.listen
                    );
                    findings.problem(format!("services[{index}].listen_port"), message);
                }
                services.extend(service);
            }
            RawService::Other(other) => {
                findings.warning(
                    path,
                    format!("skipped: a service of type {:?}", other.kind.name()),
                );
            }
        }
    }
    services
}

fn admin(
    raw: &RawAdmin,
    services: &[super::ServiceConfig],
    findings: &mut Findings<'_>,
) -> Option<AdminConfig> {
    let address = service::address("admin", raw.listen.as_deref(), findings)?;
    let listen = SocketAddr::new(address, raw.listen_port.unwrap_or(ADMIN_PORT));
    if listen.port() != 0 && services.iter().any(|service| service.listen == listen) {
        let message = format!("expected an address of its own, found {listen} again");
        findings.problem("admin.listen_port", message);
    }
    let token = raw.token.as_deref().filter(|token| !token.is_empty());
    if token.is_none() && !address.is_loopback() {
        findings.problem("admin.token", format!("missing: {address} is not loopback"));
    }
    if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
        findings.problem(
            "admin.token",
            "expected visible ASCII characters without spaces, found others",
        );
    }
    Some(AdminConfig {
        listen,
        token: token.map(|token| SecretString::new(token.to_owned())),
    })
}

fn default_service_tag(index: usize, served: usize) -> String {
    if served == 1 {
        "ocm".to_owned()
    } else {
        format!("ocm-{index}")
    }
}

fn log(raw: &RawLog) -> LogConfig {
    let output = match raw.output.as_deref() {
        None | Some("" | "stderr") => LogOutput::Stderr,
        Some("stdout") => LogOutput::Stdout,
        Some(path) => LogOutput::File(PathBuf::from(path)),
    };
    LogConfig {
        disabled: raw.disabled,
        level: raw.level.unwrap_or(LogLevel::Info),
        output,
        timestamp: raw.timestamp.unwrap_or(true),
        format: raw.format,
    }
}

fn default_data_dir(findings: &mut Findings<'_>) -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    if folder.is_none() {
        findings.problem(
            "data_dir",
            "missing, and neither XDG_DATA_HOME nor HOME is set to take it from",
        );
    }
    folder.map(|folder| folder.join("tollgate"))
}

/// The default credential file: `$CODEX_HOME/auth.json`, else `~/.codex/auth.json`.
fn default_credential_path(path: &str, findings: &mut Findings<'_>) -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("CODEX_HOME").or_else(|| set("HOME").map(|home| home.join(".codex")));
    if folder.is_none() {
        findings.problem(
            path,
            "missing, and neither CODEX_HOME nor HOME is set to take it from",
        );
    }
    folder.map(|folder| folder.join("auth.json"))
}

fn span(raw: &RawDuration, path: String, findings: &mut Findings<'_>) -> Option<Duration> {
    let parsed = duration::parse(&raw.0);
    if parsed.is_none() {
        findings.problem(
            path,
            format!("expected a duration up to 100 years, found {:?}", raw.0),
        );
    }
    parsed
}

fn limits(raw: &RawLimits, findings: &mut Findings<'_>) -> Limits {
    let mut limits = Limits::default();
    macro_rules! take {
        ($($name:ident),*) => { $( if let Some(value) = raw.$name { limits.$name = value; } )* };
    }
    macro_rules! take_span {
        ($($name:ident),*) => { $(
            if let Some(raw) = &raw.$name
                && let Some(value) = span(raw, format!("limits.{}", stringify!($name)), findings)
            {
                if value.is_zero() {
                    findings.problem(concat!("limits.", stringify!($name)), "expected more than 0, found 0");
                }
                limits.$name = value;
            }
        )* };
    }
    take!(
        request_head_bytes,
        request_body_bytes,
        replay_bytes,
        decoded_bytes,
        discard_bytes,
        connections,
        http2_streams,
        settle_queue,
        ledger_bytes,
        websocket_message_bytes,
        websockets_per_user,
        sessions,
        auth_addresses,
        policy_threads,
        policy_queue,
        policy_cache_bytes,
        policy_faults,
        policy_probation_calls,
        policy_log_lines,
        policy_record_bytes,
        policy_record_files
    );
    take_span!(
        handshake_timeout,
        head_timeout,
        body_timeout,
        discard_timeout,
        client_stall_timeout,
        connect_timeout,
        upstream_head_timeout,
        upstream_idle_timeout,
        commit_timeout,
        drain_timeout,
        failover_timeout,
        refresh_timeout,
        lock_timeout,
        poll_timeout,
        websocket_idle_timeout,
        websocket_ping_interval,
        upstream_keep_alive,
        session_lifetime,
        policy_slow_after,
        policy_start_wait,
        policy_fault_window,
        policy_quarantine,
        policy_quarantine_max
    );
    macro_rules! switch {
        ($($name:ident),*) => { $( if let Some(value) = raw.failover.$name { limits.failover.$name = value; } )* };
    }
    switch!(
        rate_limited,
        unauthorized,
        unreachable,
        timed_out,
        bad_gateway,
        service_unavailable,
        gateway_timeout
    );
    if let Some(choice) = raw.ledger_full {
        limits.ledger_full = match choice {
            RawLedgerFull::Refuse => LedgerFull::Refuse,
            RawLedgerFull::Serve => LedgerFull::Serve,
        };
    }
    limits
}
