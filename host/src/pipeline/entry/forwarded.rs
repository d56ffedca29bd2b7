//! The client's address behind proxies that are trusted.
//!
//! Invariant: the address comes from a trusted proxy, or is that of the connection. What a client
//! itself writes into `X-Forwarded-For` is never believed.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName};

use crate::config::TrustedProxies;
use crate::values::exchange::client_address::ClientAddress;

/// The addresses that a request has passed, each appended by the proxy that it reached.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Returns the address of the client whose request arrived from `peer`: the last address in
/// `X-Forwarded-For` that is not a trusted proxy.
pub(super) fn client_address(
    headers: &HeaderMap,
    peer: ClientAddress,
    trusted: &TrustedProxies,
) -> ClientAddress {
    let mut client = peer;
    let mut hops = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    while trusted.contains(client) {
        match hops.next().and_then(address) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// Reads an address, which some proxies write with a port or in brackets.
fn address(hop: &[u8]) -> Option<ClientAddress> {
    let hop = str::from_utf8(hop).ok()?.trim();
    let in_brackets = || {
        let inner = hop.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse().ok()
    };
    let with_port = || Some(hop.parse::<SocketAddr>().ok()?.ip());
    let address: Option<IpAddr> = hop.parse().ok().or_else(in_brackets).or_else(with_port);
    address.map(ClientAddress::from)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(peer: &str, fields: &[&str], expected: &str) {
        let trusted = TrustedProxies {
            networks: ["10.0.0.0/8", "2001:db8::/32"]
                .map(|network| network.parse().expect("a network"))
                .to_vec(),
            unix: true,
        };
        let mut headers = HeaderMap::new();
        for field in fields {
            let value = HeaderValue::from_bytes(field.as_bytes()).expect("a value");
            headers.append(FORWARDED_FOR, value);
        }
        let peer = match peer {
            "unix" => ClientAddress::Unix,
            address => ClientAddress::from(address.parse::<IpAddr>().expect("an address")),
        };
        let client = client_address(&headers, peer, &trusted);
        assert_eq!(client.to_string(), expected, "{fields:?}");
    }

    #[test]
    fn the_last_address_that_is_not_a_proxy_counts() {
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["192.0.2.7"], "192.0.2.7");
        check("::ffff:10.0.0.1", &["192.0.2.7"], "192.0.2.7");
        check("unix", &["192.0.2.7, 10.1.1.1 ,2001:db8::1"], "192.0.2.7");
        check(
            "10.0.0.1",
            &["192.0.2.7", "10.1.1.1, 10.2.2.2"],
            "192.0.2.7",
        );
        check("10.0.0.1", &["192.0.2.7:4711"], "192.0.2.7");
        check("10.0.0.1", &["[2a00::7]"], "2a00::7");
        check("10.0.0.1", &["[2a00::7]:4711"], "2a00::7");
        check("10.0.0.1", &["10.3.3.3"], "10.3.3.3");
    }

    #[test]
    fn what_a_client_writes_is_not_believed() {
        check("192.0.2.7", &["198.51.100.1"], "192.0.2.7");
        check("10.0.0.1", &["198.51.100.1, 192.0.2.7"], "192.0.2.7");
        check("10.0.0.1", &["198.51.100.1, nonsense"], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1,"], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1", "\u{e9}"], "10.0.0.1");
        check(
            "10.0.0.1",
            &["198.51.100.1", "\u{e9}, 192.0.2.7"],
            "192.0.2.7",
        );
        check(
            "10.0.0.1",
            &["198.51.100.1, nonsense, 10.4.4.4"],
            "10.4.4.4",
        );
    }
}
