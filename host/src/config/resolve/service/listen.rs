//! Where a service listens, and which proxies it believes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::model::{
    KeepAliveTimes, ListenAddress, ListenConfig, ListenOptions, ProxyProtocol, TrustedProxies,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawDuration, RawOcm};
use crate::config::resolve::field;

const DEFAULT_PORT: u16 = 8080;

/// What the text of a Unix socket's address begins with.
const UNIX_PREFIX: &str = "unix:";

/// The longest path of a Unix socket: `sun_path` of unix(7), without the final zero.
const UNIX_PATH_BYTES: usize = 107;

/// The entry of `trusted_proxies` that stands for the clients of a Unix socket.
const TRUSTED_UNIX: &str = "unix";

/// The folder in which `ip netns` names network namespaces.
const NAMESPACES: &str = "/run/netns";

/// The defaults of sing-box.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(5 * 60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);

/// Resolves the listener of the service at `path`. Returns `None` only if there is a problem.
pub(super) fn listen(
    path: &ConfigPath,
    raw: &RawOcm,
    trusted: &TrustedProxies,
    report: &mut ProblemReport,
) -> Option<ListenConfig> {
    for name in raw.ignored_fields() {
        report.warning(path.key(name), "ignored: it has no effect here");
    }
    let options = options(path, raw, report);
    let proxy_protocol = if raw.proxy_protocol == Some(true) {
        if trusted.is_empty() && raw.trusted_proxies.as_slice().is_empty() {
            let message = "missing: required because proxy_protocol is true";
            report.problem(path.key("trusted_proxies"), message);
        }
        ProxyProtocol::Required
    } else {
        ProxyProtocol::Off
    };
    Some(ListenConfig {
        address: address(path, raw, report)?,
        options: options?,
        proxy_protocol,
    })
}

/// Resolves the field `trusted_proxies` of the service at `path`, without its wrong entries.
pub(super) fn trusted_proxies(
    path: &ConfigPath,
    raw: &RawOcm,
    report: &mut ProblemReport,
) -> TrustedProxies {
    let list = path.key("trusted_proxies");
    let mut trusted = TrustedProxies::default();
    for (index, text) in raw.trusted_proxies.as_slice().iter().enumerate() {
        if text == TRUSTED_UNIX {
            trusted.unix = true;
            continue;
        }
        let address = text.parse::<IpAddr>().map(IpNet::from).ok();
        match address.or_else(|| text.parse().ok()) {
            Some(network) => trusted.networks.push(network),
            None => {
                let message = format!(
                    "expected an IP address, a network such as \"10.0.0.0/8\", or \"unix\", found {text:?}"
                );
                report.problem(list.index(index), message);
            }
        }
    }
    trusted
}

fn address(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) -> Option<ListenAddress> {
    let text = field::non_empty(raw.listen.as_deref());
    if let Some(socket) = text.and_then(|text| text.strip_prefix(UNIX_PREFIX)) {
        return unix_address(path, raw, socket, report);
    }
    let address = field::ip_address(text, path.key("listen"), report)?;
    let port = raw.listen_port.unwrap_or(DEFAULT_PORT);
    Some(ListenAddress::Ip(SocketAddr::new(address, port)))
}

fn unix_address(
    path: &ConfigPath,
    raw: &RawOcm,
    socket: &str,
    report: &mut ProblemReport,
) -> Option<ListenAddress> {
    if !(1..=UNIX_PATH_BYTES).contains(&socket.len()) {
        let message = format!(
            "expected a path of 1 to {UNIX_PATH_BYTES} bytes after \"{UNIX_PREFIX}\", found {}",
            socket.len()
        );
        report.problem(path.key("listen"), message);
        return None;
    }
    if raw.listen_port.is_some() {
        let message = "ignored: a Unix socket has no port";
        report.warning(path.key("listen_port"), message);
    }
    Some(ListenAddress::Unix(PathBuf::from(socket)))
}

fn options(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) -> Option<ListenOptions> {
    let mark = match &raw.routing_mark {
        Some(mark) => Some(field::routing_mark(mark, path.key("routing_mark"), report)?),
        None => None,
    };
    let idle = time(&raw.tcp_keep_alive, path.key("tcp_keep_alive"), report);
    let interval = time(
        &raw.tcp_keep_alive_interval,
        path.key("tcp_keep_alive_interval"),
        report,
    );
    let keep_alive = KeepAliveTimes {
        idle: idle?.unwrap_or(KEEP_ALIVE_IDLE),
        interval: interval?.unwrap_or(KEEP_ALIVE_INTERVAL),
    };
    Some(ListenOptions {
        interface: field::non_empty(raw.bind_interface.as_deref()).map(str::to_owned),
        routing_mark: mark.filter(|mark| *mark != 0),
        reuse_port: raw.reuse_addr == Some(true),
        network_namespace: field::non_empty(raw.netns.as_deref()).map(namespace_file),
        fast_open: raw.tcp_fast_open == Some(true),
        multi_path: raw.tcp_multi_path == Some(true),
        keep_alive: (raw.disable_tcp_keep_alive != Some(true)).then_some(keep_alive),
    })
}

/// Reads a time that is not set, or 0 for the default. The outer `None` means a problem.
fn time(
    text: &Option<String>,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Option<Duration>> {
    let Some(text) = field::non_empty(text.as_deref()) else {
        return Some(None);
    };
    let time = field::duration(&RawDuration(text.to_owned()), field, report)?;
    Some(Some(time).filter(|time| !time.is_zero()))
}

/// Returns the file of the network namespace that is named by its name or its path.
fn namespace_file(name: &str) -> PathBuf {
    if name.contains('/') {
        PathBuf::from(name)
    } else {
        PathBuf::from(NAMESPACES).join(name)
    }
}
