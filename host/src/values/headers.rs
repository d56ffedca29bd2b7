//! Which header fields pass a gateway (RFC 9110, section 7.6.1), and which nobody but the host may touch.

use http::header::{CONNECTION, HeaderMap, HeaderName};

/// Fields that belong to one connection, beside those that `Connection` names.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// Fields that reverse proxies add. Beside these: everything that starts with `cf-`.
const PROXY_ADDED: [&str; 7] = [
    "cdn-loop",
    "true-client-ip",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "forwarded",
];

/// What a client's own credentials may stand in, and `host`.
const CLIENT_ONLY: [&str; 6] = [
    "host",
    "authorization",
    "x-api-key",
    "api-key",
    "cookie",
    "chatgpt-account-id",
];

/// Fields that no policy sees or edits.
const RESERVED: [&str; 8] = [
    "authorization",
    "chatgpt-account-id",
    "cookie",
    "set-cookie",
    "host",
    "content-length",
    "content-encoding",
    "x-api-key",
];

fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

fn is_proxy_added(name: &str) -> bool {
    name.starts_with("cf-") || PROXY_ADDED.contains(&name)
}

/// Whether `name` (in lower case) is kept from policies.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name == "api-key" || is_hop_by_hop(name)
}

/// What is in the name of a field that carries a secret, whoever's it is.
const SECRET_SHAPES: [&str; 9] = [
    "authorization",
    "api-key",
    "apikey",
    "access-token",
    "auth-token",
    "refresh-token",
    "cookie",
    "password",
    "secret",
];

/// Whether `name` (in lower case) is that of a field that carries a secret. No component sees or sets it; an operator may.
pub fn is_secret_shaped(name: &str) -> bool {
    // Names are short: a search that first prepares itself for what it looks for takes longer than looking.
    let name = name.as_bytes();
    (0..name.len()).any(|at| {
        let rest = &name[at..];
        SECRET_SHAPES
            .iter()
            .any(|shape| shape.as_bytes()[0] == rest[0] && rest.starts_with(shape.as_bytes()))
    })
}

/// Removes from a client's request what must not reach upstream: hop-by-hop fields, what proxies add, and every
/// credential of the client's.
pub fn strip_request(headers: &mut HeaderMap) {
    strip(headers, |name| CLIENT_ONLY.contains(&name));
}

/// Removes from upstream's response what must not reach the client: hop-by-hop fields, what proxies add, and cookies.
pub fn strip_response(headers: &mut HeaderMap) {
    strip(headers, |name| name == "set-cookie");
}

fn strip(headers: &mut HeaderMap, also: impl Fn(&str) -> bool) {
    let named = named_by_connection(headers);
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            is_hop_by_hop(text) || is_proxy_added(text) || also(text) || named.contains(name)
        })
        .cloned()
        .collect();
    for name in unwanted {
        headers.remove(name);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let lists = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(strip: fn(&mut HeaderMap), fields: &[(&str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                name.parse::<HeaderName>().expect("a name"),
                value.parse().expect("a value"),
            );
        }
        strip(&mut headers);
        headers
            .keys()
            .map(|name| name.as_str().to_owned())
            .collect()
    }

    #[test]
    fn what_connection_names_goes_too() {
        let fields = [
            ("connection", "x-one, X-Two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
        ];
        assert_eq!(stripped(strip_request, &fields), ["x-three"]);
    }

    #[test]
    fn a_clients_credentials_never_pass() {
        let fields = [
            ("authorization", "Bearer a"),
            ("api-key", "a"),
            ("x-api-key", "a"),
            ("cookie", "a"),
            ("chatgpt-account-id", "a"),
            ("cf-ray", "a"),
            ("session-id", "a"),
        ];
        assert_eq!(stripped(strip_request, &fields), ["session-id"]);
    }

    #[test]
    fn a_secret_is_told_by_any_part_of_its_name() {
        for name in [
            "authorization",
            "x-apikey",
            "my-secret-too",
            "set-cookie2",
            "auth-token",
            "xpasswordx",
            "aapi-key",
        ] {
            assert!(is_secret_shaped(name), "{name}");
        }
        for name in [
            "",
            "author",
            "api-ke",
            "cooki",
            "x-team",
            "token",
            "session-id",
            "passwor",
        ] {
            assert!(!is_secret_shaped(name), "{name}");
        }
    }

    #[test]
    fn upstreams_cookies_never_pass() {
        assert_eq!(
            stripped(
                strip_response,
                &[("set-cookie", "a"), ("x-codex-turn-state", "b")]
            ),
            ["x-codex-turn-state"]
        );
    }
}
