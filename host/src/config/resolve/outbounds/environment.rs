//! The proxies that the environment names, in upper case or, if that is not set, in lower case. No
//! message quotes a value: it may contain a password.

use std::env;
use std::sync::Arc;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::config::model::{
    EnvironmentProxies, HttpProxy, NameIndication, OutboundCarrier, OutboundConfig,
    OutboundProtocol, ProxyAddress, ProxyHeader, ProxyLogin, ProxyTls, ProxyVerification,
    SocketOptions, SocksProxy, SocksVersion, TlsVersion, UpstreamRoute,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::values::secret::SecretString;

/// Returns the route through the proxies that the environment names. `field` asks for it.
pub(in crate::config::resolve) fn environment_route(
    field: &ConfigPath,
    report: &mut ProblemReport,
) -> UpstreamRoute {
    let all = proxy("ALL_PROXY", "all_proxy", field, report);
    let https = proxy("HTTPS_PROXY", "https_proxy", field, report);
    let http = proxy("HTTP_PROXY", "http_proxy", field, report);
    UpstreamRoute::Environment(Arc::new(EnvironmentProxies {
        https: https.or_else(|| all.clone()),
        http: http.or(all),
        no_proxy: variable("NO_PROXY", "no_proxy")
            .map(|(_, value)| with_all_addresses(value))
            .unwrap_or_default(),
    }))
}

/// Adds all IP addresses if `*` stands for all hosts: the library takes it for names alone.
fn with_all_addresses(mut no_proxy: String) -> String {
    if no_proxy.split(',').any(|host| host.trim() == "*") {
        no_proxy.push_str(",0.0.0.0/0,::/0");
    }
    no_proxy
}

/// Returns the first of two variables that is set and not empty, with its name.
fn variable(upper: &'static str, lower: &'static str) -> Option<(&'static str, String)> {
    [upper, lower].into_iter().find_map(|name| {
        let value = env::var(name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

fn proxy(
    upper: &'static str,
    lower: &'static str,
    field: &ConfigPath,
    report: &mut ProblemReport,
) -> Option<OutboundConfig> {
    let (name, value) = variable(upper, lower)?;
    // Reads one value with the rules of the library.
    let matcher = Matcher::builder().all(value).build();
    let any = Uri::from_static("https://upstream.invalid");
    let outbound = matcher
        .intercept(&any)
        .and_then(|proxy| outbound(name, &proxy));
    if outbound.is_none() {
        let message = format!(
            "the variable {name}: expected a URL such as \"http://proxy.example:3128\", with http, https, socks4, \
             socks4a, socks5 or socks5h"
        );
        report.problem(field.clone(), message);
    }
    outbound
}

fn outbound(tag: &str, proxy: &Intercept) -> Option<OutboundConfig> {
    let uri = proxy.uri();
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let address = |default_port| ProxyAddress {
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(default_port),
    };
    let socks = |version| {
        let login = proxy.raw_auth().map(|(username, password)| ProxyLogin {
            username: SecretString::new(username.to_owned()),
            password: SecretString::new(password.to_owned()),
        });
        OutboundProtocol::Socks(SocksProxy {
            address: address(1080),
            version,
            login,
        })
    };
    let protocol = match uri.scheme_str()? {
        "http" => http_proxy(address(80), proxy, None),
        "https" => http_proxy(address(443), proxy, Some(tls(host))),
        "socks4" => socks(SocksVersion::V4),
        "socks4a" => socks(SocksVersion::V4a),
        _ => socks(SocksVersion::V5),
    };
    Some(OutboundConfig {
        tag: tag.to_owned(),
        protocol,
        carrier: OutboundCarrier::Sockets(SocketOptions::default()),
    })
}

fn http_proxy(address: ProxyAddress, proxy: &Intercept, tls: Option<ProxyTls>) -> OutboundProtocol {
    let login = proxy.basic_auth().and_then(|value| value.to_str().ok());
    let header = |value: &str| ProxyHeader {
        name: "proxy-authorization".to_owned(),
        value: SecretString::new(value.to_owned()),
    };
    OutboundProtocol::Http(Box::new(HttpProxy {
        address,
        login: None,
        path: None,
        headers: login.map(header).into_iter().collect(),
        tls,
    }))
}

fn tls(host: &str) -> ProxyTls {
    ProxyTls {
        server_name: host.to_owned(),
        name_indication: NameIndication::Sent,
        verification: ProxyVerification::System,
        client_certificate: None,
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
    }
}
