//! Where a service listens, and which proxies it believes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

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

/// The length of the prefix `::ffff:0:0/96`.
const MAPPED_PREFIX: u8 = 96;

/// The longest time that the system accepts for the probes of TCP (tcp(7)).
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(32_767);

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
        match address.or_else(|| text.parse().ok()).map(canonical) {
            Some(network) => {
                if network.prefix_len() == 0 {
                    let message =
                        "all addresses are trusted: a client can state any address as its own";
                    report.warning(list.index(index), message);
                }
                trusted.networks.push(network);
            }
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

/// Returns a network of IPv4 in the form of IPv6 (`::ffff:10.0.0.0/104`) in its own form.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else {
        return network;
    };
    let prefix = mapped.prefix_len().checked_sub(MAPPED_PREFIX);
    let v4 = mapped.addr().to_ipv4_mapped().zip(prefix);
    v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok())
        .map_or(network, IpNet::V4)
}

fn address(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) -> Option<ListenAddress> {
    let text = field::non_empty(raw.listen.as_deref());
    if let Some(socket) = text.and_then(|text| text.strip_prefix(UNIX_PREFIX)) {
        return unix_address(path, raw, socket, report);
    }
    let port = raw.listen_port.unwrap_or(DEFAULT_PORT);
    let address = match text.and_then(with_zone) {
        Some((address, zone)) => {
            // An interface with a name is in the options of the socket.
            let scope = zone.parse().unwrap_or(0);
            SocketAddrV6::new(address, port, 0, scope).into()
        }
        None => SocketAddr::new(field::ip_address(text, path.key("listen"), report)?, port),
    };
    Some(ListenAddress::Ip(address))
}

/// Returns an IPv6 address and its zone (RFC 4007, section 11): the name or the number of the network
/// interface.
fn with_zone(text: &str) -> Option<(Ipv6Addr, &str)> {
    let (address, zone) = text.split_once('%')?;
    let address = address.parse().ok()?;
    (!zone.is_empty()).then_some((address, zone))
}

/// Returns the network interface to listen on: that of the field, or the zone of the address. A
/// socket that is bound to the interface needs no zone.
fn interface(path: &ConfigPath, raw: &RawOcm, report: &mut ProblemReport) -> Option<String> {
    let named = field::non_empty(raw.bind_interface.as_deref());
    let zone = raw.listen.as_deref().and_then(with_zone);
    let zone = zone
        .map(|(_, zone)| zone)
        .filter(|zone| zone.parse::<u32>().is_err());
    if let (Some(named), Some(zone)) = (named, zone)
        && named != zone
    {
        let message = format!("the zone {zone:?} is ignored: bind_interface is {named:?}");
        report.warning(path.key("listen"), message);
    }
    named.or(zone).map(str::to_owned)
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
    for name in raw.socket_options() {
        report.warning(path.key(name), "ignored: it has no effect on a Unix socket");
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
        interface: interface(path, raw, report),
        routing_mark: mark.filter(|mark| *mark != 0),
        reuse_port: raw.reuse_addr == Some(true),
        network_namespace: field::non_empty(raw.netns.as_deref()).map(namespace_file),
        fast_open: raw.tcp_fast_open == Some(true),
        multi_path: raw.tcp_multi_path == Some(true),
        keep_alive: (raw.disable_tcp_keep_alive != Some(true)).then_some(keep_alive),
    })
}

/// Reads a time that is not set, or 0 for the default, in whole seconds as the system has them. The
/// outer `None` means a problem.
fn time(
    text: &Option<String>,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Option<Duration>> {
    let Some(text) = field::non_empty(text.as_deref()) else {
        return Some(None);
    };
    let raw = RawDuration(text.to_owned());
    if field::is_below_zero(&raw, &field, report) {
        return Some(None);
    }
    let time = field::duration(&raw, field.clone(), report)?;
    if time.is_zero() {
        return Some(None);
    }
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let usable = Duration::from_secs(seconds).min(KEEP_ALIVE_MAX);
    if usable != time {
        let message = format!("{text:?} is replaced by {}s", usable.as_secs());
        report.warning(field, message);
    }
    Some(Some(usable))
}

/// Returns the file of the network namespace that is named by its name or its path.
fn namespace_file(name: &str) -> PathBuf {
    if name.contains('/') {
        PathBuf::from(name)
    } else {
        PathBuf::from(NAMESPACES).join(name)
    }
}
