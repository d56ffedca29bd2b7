//! How the sockets of an outbound are made.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::config::model::{KeepAliveTimes, SocketOptions};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawDuration, RawSupportedOutbound};
use crate::config::resolve::field;

/// The longest name of a network interface (IFNAMSIZ without its end).
const INTERFACE_BYTES: usize = 15;

/// Where named network namespaces are (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";

/// Returns the options of the outbound at `path`, or `None` if one of them cannot be used.
pub(super) fn options(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<SocketOptions> {
    let problems_before = report.problems.len();
    check_system(path, raw, report);
    let defaults = SocketOptions::default();
    let inet4 = raw.inet4_bind_address.as_deref();
    let inet6 = raw.inet6_bind_address.as_deref();
    let options = SocketOptions {
        bind_interface: bind_interface(path, raw, report),
        inet4_bind_address: address(path, "inet4_bind_address", "an IPv4 address", inet4, report),
        inet6_bind_address: address(path, "inet6_bind_address", "an IPv6 address", inet6, report),
        bind_address_no_port: raw.bind_address_no_port,
        routing_mark: routing_mark(path, raw, report),
        reuse_addr: raw.reuse_addr,
        netns: field::non_empty(raw.netns.as_deref()).map(namespace),
        connect_timeout: span(
            path,
            "connect_timeout",
            raw.connect_timeout.as_ref(),
            report,
        ),
        tcp_fast_open: raw.tcp_fast_open,
        tcp_multi_path: raw.tcp_multi_path,
        keep_alive: keep_alive(path, raw, report),
        fallback_delay: span(path, "fallback_delay", raw.fallback_delay.as_ref(), report)
            .unwrap_or(defaults.fallback_delay),
    };
    (report.problems.len() == problems_before).then_some(options)
}

/// Reports options that this system does not have.
fn check_system(path: &ConfigPath, raw: &RawSupportedOutbound, report: &mut ProblemReport) {
    const LINUX_ONLY: [&str; 6] = [
        "bind_interface",
        "bind_address_no_port",
        "routing_mark",
        "netns",
        "tcp_fast_open",
        "tcp_multi_path",
    ];
    if cfg!(target_os = "linux") {
        return;
    }
    for name in raw.socket_fields() {
        if LINUX_ONLY.contains(&name) {
            report.problem(path.key(name), "supported only on Linux");
        }
    }
}

fn bind_interface(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<String> {
    let name = field::non_empty(raw.bind_interface.as_deref())?;
    if name.len() > INTERFACE_BYTES || name.contains('\0') {
        let message = format!("expected a name of at most {INTERFACE_BYTES} bytes, found {name:?}");
        report.problem(path.key("bind_interface"), message);
    }
    Some(name.to_owned())
}

fn address<A: FromStr>(
    path: &ConfigPath,
    name: &str,
    expected: &str,
    text: Option<&str>,
    report: &mut ProblemReport,
) -> Option<A> {
    let text = field::non_empty(text)?;
    let address = text.parse().ok();
    if address.is_none() {
        let message = format!("expected {expected}, found {text:?}");
        report.problem(path.key(name), message);
    }
    address
}

fn routing_mark(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<u32> {
    let mark = raw.routing_mark.as_ref()?;
    field::routing_mark(mark, path.key("routing_mark"), report).filter(|mark| *mark != 0)
}

fn namespace(name: &str) -> PathBuf {
    if name.contains('/') {
        PathBuf::from(name)
    } else {
        Path::new(NAMESPACES).join(name)
    }
}

fn keep_alive(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<KeepAliveTimes> {
    let idle = span(path, "tcp_keep_alive", raw.tcp_keep_alive.as_ref(), report);
    let field = "tcp_keep_alive_interval";
    let interval = span(path, field, raw.tcp_keep_alive_interval.as_ref(), report);
    let defaults = SocketOptions::default().keep_alive;
    let times = defaults.filter(|_| !raw.disable_tcp_keep_alive)?;
    Some(KeepAliveTimes {
        idle: idle.unwrap_or(times.idle),
        interval: interval.unwrap_or(times.interval),
    })
}

fn span(
    path: &ConfigPath,
    name: &str,
    raw: Option<&RawDuration>,
    report: &mut ProblemReport,
) -> Option<Duration> {
    field::duration_or_default(raw?, path.key(name), report)
}
