//! Another gateway as a credential.

use std::net::Ipv6Addr;

use http::Uri;
use http::uri::Authority;

/// Which side makes a reverse connection with another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReverseRole {
    /// The other gateway may connect to this one.
    Receiver,
    /// This gateway connects to the other one, and serves its requests.
    Connector,
}

/// A host as URIs name it: an IPv6 address has brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialHost(String);

impl DialHost {
    /// Returns the host with this name or IP address, or `None` if no URI can name it.
    pub fn new(host: &str) -> Option<Self> {
        let host = if host.parse::<Ipv6Addr>().is_ok() {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let authority: Authority = host.parse().ok()?;
        (authority.host() == host).then_some(Self(host))
    }
}

/// Where to connect in place of a URL's host and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DialTarget {
    /// The host, if it is another one.
    pub server: Option<DialHost>,
    /// The port, if it is another one.
    pub port: Option<u16>,
}

impl DialTarget {
    /// Returns the URI to connect to in place of `uri`, or `None` if it is the same.
    pub fn of(&self, uri: &Uri) -> Option<Uri> {
        if self.server.is_none() && self.port.is_none() {
            return None;
        }
        let host = match &self.server {
            Some(server) => server.0.as_str(),
            None => uri.host()?,
        };
        let authority = match self.port.or(uri.port_u16()) {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let target = Uri::builder()
            .scheme(uri.scheme()?.clone())
            .authority(authority)
            .path_and_query("/")
            .build();
        match target {
            Ok(target) => Some(target),
            Err(error) => unreachable!("a host of URIs and a port make an authority: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(server: Option<&str>, port: Option<u16>, url: &'static str, expected: &str) {
        let target = DialTarget {
            server: server.map(|server| DialHost::new(server).expect("a host")),
            port,
        };
        let found = target.of(&Uri::from_static(url)).expect("another target");
        assert_eq!(found.to_string(), expected);
    }

    #[test]
    fn what_is_no_host_is_not_one() {
        for text in [
            "",
            "bad host",
            "http://10.9.9.9",
            "192.0.2.1:99",
            "a@b",
            "fe80::1%eth0",
        ] {
            assert_eq!(DialHost::new(text), None, "{text:?}");
        }
    }

    #[test]
    fn host_and_port_are_replaced_on_their_own() {
        check(
            Some("a.example"),
            None,
            "https://b:8443",
            "https://a.example:8443/",
        );
        check(Some("a.example"), None, "https://b", "https://a.example/");
        check(None, Some(1), "http://b:2/c", "http://b:1/");
        check(Some("::1"), Some(1), "http://b", "http://[::1]:1/");
        let same = DialTarget::default().of(&Uri::from_static("http://b"));
        assert_eq!(same, None);
    }
}
