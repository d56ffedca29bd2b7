//! Reads single values: addresses, URLs, tokens, durations. An empty text counts as not set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Uri;

use crate::config::duration;
use crate::config::model::{ListenAddress, ListenOptions, ServiceConfig};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{RawDuration, RawRoutingMark};

/// The longest host name (RFC 1035, section 2.3.4).
const HOST_BYTES: usize = 253;

pub(super) fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

pub(super) fn file(path: Option<&str>) -> Option<PathBuf> {
    non_empty(path).map(PathBuf::from)
}

/// Reads the IP address in `field`, or loopback if it is not set.
pub(super) fn ip_address(
    text: Option<&str>,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<IpAddr> {
    let Some(text) = non_empty(text) else {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    };
    let address = text.parse().ok();
    if address.is_none() {
        let hint = match text.parse::<SocketAddr>() {
            Ok(_) => "; the port belongs in listen_port",
            Err(_) => "",
        };
        let message =
            format!("expected an IP address such as \"127.0.0.1\" or \"::\", found {text:?}{hint}");
        report.problem(field, message);
    }
    address
}

/// Reads the host name or the IP address in `field`. An IPv6 address is returned without brackets.
pub(super) fn host(text: &str, field: ConfigPath, report: &mut ProblemReport) -> Option<String> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let host = inner.unwrap_or(text);
    if host.len() <= HOST_BYTES && (is_host_name(host) || is_ipv6(host)) {
        return Some(host.to_owned());
    }
    // It may be a URL with a password.
    let message = "expected a host name or an IP address, without scheme, port and login";
    report.problem(field, message);
    None
}

fn is_host_name(host: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !host.is_empty() && host.bytes().all(is_part)
}

/// Whether `host` is an IPv6 address, perhaps with a zone (RFC 4007, section 11).
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
    address.parse::<Ipv6Addr>().is_ok() && is_host_name(zone)
}

/// Reports an address that one of `services` listens on already, on the same interface and in the
/// same namespace as `options` say. `owner` is the object with the
/// field `listen_port`.
pub(super) fn check_listen_address(
    listen: &ListenAddress,
    options: Option<&ListenOptions>,
    owner: &ConfigPath,
    services: &[ServiceConfig],
    report: &mut ProblemReport,
) {
    let field = match listen {
        ListenAddress::Ip(address) if address.port() == 0 => return,
        ListenAddress::Ip(_) => "listen_port",
        ListenAddress::Unix(_) => "listen",
    };
    let place = options.map(ListenOptions::place).unwrap_or_default();
    let is_same = |service: &&ServiceConfig| {
        service.listen.address == *listen && service.listen.options.place() == place
    };
    if let Some(other) = services.iter().find(is_same) {
        let message = format!("{listen} is already used by service {:?}", other.tag);
        report.problem(owner.key(field), message);
    }
}

/// Reads a netfilter mark.
pub(super) fn routing_mark(
    raw: &RawRoutingMark,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<u32> {
    let text = match raw {
        RawRoutingMark::Number(mark) => return Some(*mark),
        RawRoutingMark::Text(text) => text,
    };
    let with_base = |prefix: &str, base: u32| {
        let digits = text.to_ascii_lowercase();
        u32::from_str_radix(digits.strip_prefix(prefix)?, base).ok()
    };
    let mark = text
        .parse()
        .ok()
        .or_else(|| with_base("0x", 16))
        .or_else(|| with_base("0o", 8))
        .or_else(|| with_base("0b", 2));
    if mark.is_none() && !text.is_empty() {
        let message =
            format!("expected a number up to 4294967295, such as \"0x1234\", found {text:?}");
        report.problem(field, message);
        return None;
    }
    Some(mark.unwrap_or(0))
}

/// Reads the URL of another gateway. User, password, query and fragment have no effect, as in
/// sing-box.
pub(super) fn url_of_gateway(
    text: &str,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Uri> {
    let plain = without_login_and_query(text);
    let uri = url(&plain, field.clone(), report);
    if uri.is_some() && plain != text {
        let message = "without effect: the user, password, query and fragment of a URL";
        report.warning(field, message);
    }
    uri
}

/// Returns the scheme, the host, the port and the path of a URL.
fn without_login_and_query(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => host,
        None => authority,
    };
    format!("{scheme}://{host}{path}")
}

/// Reads a base URL. User, password and query are not allowed: they could be secrets, and paths are
/// appended.
pub(super) fn url(text: &str, field: ConfigPath, report: &mut ProblemReport) -> Option<Uri> {
    let uri: Option<Uri> = text.trim_end_matches('/').parse().ok();
    let uri = uri.filter(is_base_url);
    if uri.is_none() {
        let message = "expected a URL such as \"https://example.com/path\", with http or https, without user, password and query";
        report.problem(field, message);
    }
    uri
}

fn is_base_url(uri: &Uri) -> bool {
    let has_plain_authority = uri
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    matches!(uri.scheme_str(), Some("http" | "https"))
        && has_plain_authority
        && uri.query().is_none()
}

/// Returns whether `token` can be sent as `Authorization: Bearer`, and read back as it is.
pub(super) fn is_sendable_token(token: &str) -> bool {
    token.trim() == token && !token.chars().any(char::is_control)
}

/// The shortest token that is hard to guess, in characters.
const TOKEN_CHARS_SAFE: usize = 16;

/// Reports a token that clients present and that is short enough to be guessed.
pub(super) fn warn_if_short(token: &str, field: ConfigPath, report: &mut ProblemReport) {
    if token.chars().count() < TOKEN_CHARS_SAFE {
        let message =
            format!("short: a token of fewer than {TOKEN_CHARS_SAFE} characters may be guessed");
        report.warning(field, message);
    }
}

/// Reports a token that cannot be sent as `Authorization: Bearer`.
pub(super) fn check_token(token: &str, field: ConfigPath, report: &mut ProblemReport) {
    if !is_sendable_token(token) {
        let message =
            "expected text without control characters or spaces at its ends, found others";
        report.problem(field, message);
    }
}

/// Reads a duration, which may be 0.
pub(super) fn duration(
    raw: &RawDuration,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Duration> {
    let parsed = duration::parse(&raw.0);
    if parsed.is_none() {
        let message = format!("expected a duration up to 100 years, found {:?}", raw.0);
        report.problem(field, message);
    }
    parsed
}

/// Reads a duration of which 0 means the default, as does one below 0, with a warning.
pub(super) fn duration_or_default(
    raw: &RawDuration,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Duration> {
    if is_below_zero(raw, &field, report) {
        return None;
    }
    duration(raw, field, report).filter(|duration| !duration.is_zero())
}

/// Returns whether a duration is below 0, and reports that the default is used then.
pub(super) fn is_below_zero(
    raw: &RawDuration,
    field: &ConfigPath,
    report: &mut ProblemReport,
) -> bool {
    let is_below = duration::is_below_zero(&raw.0);
    if is_below {
        report.warning(field.clone(), "below 0: the default is used");
    }
    is_below
}

/// Reads a duration that must be more than zero.
pub(super) fn positive_duration(
    raw: &RawDuration,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Duration> {
    let parsed = duration(raw, field.clone(), report);
    if parsed.is_some_and(|duration| duration.is_zero()) {
        report.problem(field, "expected more than 0, found 0");
    }
    parsed
}
