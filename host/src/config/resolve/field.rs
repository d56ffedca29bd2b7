//! Reads single values: addresses, URLs, tokens, durations. An empty text counts as not set.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Uri;

use crate::config::duration;
use crate::config::model::ServiceConfig;
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawDuration;

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

/// Reports an address that one of `services` listens on already. `owner` is the object with the
/// field `listen_port`.
pub(super) fn check_listen_address(
    listen: SocketAddr,
    owner: &ConfigPath,
    services: &[ServiceConfig],
    report: &mut ProblemReport,
) {
    let other = services.iter().find(|service| service.listen == listen);
    if let Some(other) = other.filter(|_| listen.port() != 0) {
        let message = format!("{listen} is already used by service {:?}", other.tag);
        report.problem(owner.key("listen_port"), message);
    }
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

/// Returns whether `token` can be sent as `Authorization: Bearer`.
pub(super) fn is_sendable_token(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reports a token that cannot be sent as `Authorization: Bearer`.
pub(super) fn check_token(token: &str, field: ConfigPath, report: &mut ProblemReport) {
    if !is_sendable_token(token) {
        let message = "expected visible ASCII characters without spaces, found others";
        report.problem(field, message);
    }
}

/// Reads a duration that must be more than zero.
pub(super) fn positive_duration(
    raw: &RawDuration,
    field: ConfigPath,
    report: &mut ProblemReport,
) -> Option<Duration> {
    let parsed = duration::parse(&raw.0);
    match parsed {
        None => {
            let message = format!("expected a duration up to 100 years, found {:?}", raw.0);
            report.problem(field, message);
        }
        Some(duration) if duration.is_zero() => {
            report.problem(field, "expected more than 0, found 0");
        }
        Some(_) => {}
    }
    parsed
}
