//! Another gateway as a credential.

use http::Uri;

/// Which side makes a reverse connection with another gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReverseRole {
    /// The other gateway may connect to this one.
    Receiver,
    /// This gateway connects to the other one, and serves its requests.
    Connector,
}

/// Where to connect in place of a URL's host and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DialTarget {
    /// The host, if it is another one.
    pub server: Option<String>,
    /// The port, if it is another one.
    pub port: Option<u16>,
}

impl DialTarget {
    /// Returns the URI to connect to in place of `uri`, or `None` if it is the same.
    pub fn of(&self, uri: &Uri) -> Option<Uri> {
        if self.server.is_none() && self.port.is_none() {
            return None;
        }
        let server = self.server.as_deref().or(uri.host())?;
        // An IPv6 address has brackets in a URI.
        let is_bare_ipv6 = server.contains(':') && !server.starts_with('[');
        let host = if is_bare_ipv6 {
            format!("[{server}]")
        } else {
            server.to_owned()
        };
        let authority = match self.port.or(uri.port_u16()) {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        Uri::builder()
            .scheme(uri.scheme()?.clone())
            .authority(authority)
            .path_and_query("/")
            .build()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(server: Option<&str>, port: Option<u16>, url: &'static str, expected: &str) {
        let target = DialTarget {
            server: server.map(str::to_owned),
            port,
        };
        let found = target.of(&Uri::from_static(url)).expect("another target");
        assert_eq!(found.to_string(), expected);
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
