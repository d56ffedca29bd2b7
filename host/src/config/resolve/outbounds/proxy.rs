//! Proxies: where they are, and what is sent to them. No message quotes a login or a header value.

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::proxy_tls;
use crate::config::model::{
    HttpProxy, ProxyAddress, ProxyHeader, ProxyLogin, SocksProxy, SocksVersion,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawSupportedOutbound;
use crate::config::resolve::field;
use crate::values::secret::SecretString;

/// The longest name or password of SOCKS 5 (RFC 1929).
const LOGIN_BYTES: usize = 255;

/// The longest user id of SOCKS 4: the request is built in a buffer that holds this and a host.
const USER_ID_BYTES: usize = 128;

/// Fields of a CONNECT request that describe the connection or a body.
const UNSENDABLE: [&str; 5] = [
    "connection",
    "content-length",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Resolves the SOCKS proxy at `path`. Returns `None` only if there is a problem.
pub(super) fn socks(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<SocksProxy> {
    let address = address(path, raw, report);
    let version = match field::non_empty(raw.version.as_deref()) {
        None | Some("5") => Some(SocksVersion::V5),
        Some("4") => Some(SocksVersion::V4),
        Some("4a") => Some(SocksVersion::V4a),
        Some(other) => {
            let message = format!("expected \"4\", \"4a\" or \"5\", found {other:?}");
            report.problem(path.key("version"), message);
            None
        }
    };
    let login = socks_login(path, raw, version?, report);
    Some(SocksProxy {
        address: address?,
        version: version?,
        login: login?,
    })
}

/// Resolves the HTTP proxy at `path`. Returns `None` only if there is a problem.
pub(super) fn http(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<HttpProxy> {
    let address = address(path, raw, report);
    let headers = headers(path, raw, report);
    let target = request_path(path, raw, report);
    let server = raw.server.as_deref().unwrap_or_default();
    let tls = proxy_tls::tls(&path.key("tls"), &raw.tls, server, report);
    Some(HttpProxy {
        address: address?,
        login: login(path, raw, report),
        path: target?,
        headers: headers?,
        tls: tls?,
    })
}

fn address(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<ProxyAddress> {
    let host = host(path, raw, report);
    let port = raw.server_port.filter(|port| *port != 0);
    if port.is_none() {
        report.problem(path.key("server_port"), "missing");
    }
    Some(ProxyAddress {
        host: host?,
        port: port?,
    })
}

fn host(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<String> {
    let Some(host) = field::non_empty(raw.server.as_deref()) else {
        report.problem(path.key("server"), "missing");
        return None;
    };
    field::host(host, path.key("server"), report)
}

/// Returns the login, if there is one.
fn login(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<ProxyLogin> {
    let password = raw.password.clone().unwrap_or_default();
    let Some(username) = field::non_empty(raw.username.as_deref()) else {
        if !password.is_empty() {
            report.warning(path.key("password"), "ignored without \"username\"");
        }
        return None;
    };
    Some(ProxyLogin {
        username: SecretString::new(username.to_owned()),
        password: SecretString::new(password),
    })
}

/// Returns the login, if there is one; the outer `None` means a problem.
fn socks_login(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    version: SocksVersion,
    report: &mut ProblemReport,
) -> Option<Option<ProxyLogin>> {
    let Some(login) = login(path, raw, report) else {
        return Some(None);
    };
    let (username, password) = (login.username.expose(), login.password.expose());
    let username_max = match version {
        SocksVersion::V4 | SocksVersion::V4a => USER_ID_BYTES,
        SocksVersion::V5 => LOGIN_BYTES,
    };
    if username.len() > username_max || username.contains('\0') {
        let message = format!("expected at most {username_max} bytes, none of them 0");
        report.problem(path.key("username"), message);
        return None;
    }
    match version {
        SocksVersion::V4 | SocksVersion::V4a => {
            if !password.is_empty() {
                let message = "ignored: SOCKS 4 has no passwords";
                report.warning(path.key("password"), message);
            }
        }
        SocksVersion::V5 if password.is_empty() => {
            let message = "ignored without \"password\": SOCKS 5 has no empty passwords";
            report.warning(path.key("username"), message);
            return Some(None);
        }
        SocksVersion::V5 if password.len() > LOGIN_BYTES => {
            let message = format!("expected at most {LOGIN_BYTES} bytes");
            report.problem(path.key("password"), message);
            return None;
        }
        SocksVersion::V5 => {}
    }
    Some(Some(login))
}

fn headers(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<Vec<ProxyHeader>> {
    let problems_before = report.problems.len();
    let mut headers = Vec::new();
    for (name, values) in &raw.headers {
        let field = path.key("headers").key(name);
        let Ok(name) = name.parse::<HeaderName>() else {
            report.problem(field, "expected the name of a header field");
            continue;
        };
        if UNSENDABLE.contains(&name.as_str()) {
            let message = "ignored: the gateway sets this header field itself";
            report.warning(field, message);
            continue;
        }
        if !values.as_slice().iter().all(|value| is_sendable(value)) {
            report.problem(field, "expected visible ASCII characters, found others");
            continue;
        }
        for value in values.as_slice() {
            headers.push(ProxyHeader {
                name: name.as_str().to_owned(),
                value: SecretString::new(value.clone()),
            });
        }
    }
    (report.problems.len() == problems_before).then_some(headers)
}

fn is_sendable(value: &str) -> bool {
    HeaderValue::from_str(value).is_ok_and(|value| value.to_str().is_ok())
}

/// Returns the path of CONNECT requests, if one is set; the outer `None` means a problem.
fn request_path(
    path: &ConfigPath,
    raw: &RawSupportedOutbound,
    report: &mut ProblemReport,
) -> Option<Option<String>> {
    let Some(text) = field::non_empty(raw.path.as_deref()) else {
        return Some(None);
    };
    let names_host = |name: &String| name.eq_ignore_ascii_case("host");
    if raw.headers.keys().any(names_host) {
        let message = "not allowed together with the header field \"host\"";
        report.problem(path.key("path"), message);
        return None;
    }
    let text = if text.starts_with('/') {
        text.to_owned()
    } else {
        format!("/{text}")
    };
    if text.parse::<PathAndQuery>().is_err() {
        report.problem(path.key("path"), "expected a path such as \"/tunnel\"");
        return None;
    }
    Some(Some(text))
}
