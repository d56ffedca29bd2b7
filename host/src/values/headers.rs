//! Header fields: which of them a gateway forwards (RFC 9110, section 7.6.1), which only the host
//! may read or edit, and how those are read that several stages need.

pub(crate) mod hops;

use std::time::{Duration, UNIX_EPOCH};

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::clock::Timestamp;

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

/// Fields that can contain the client's own credentials, `host`, and the hops of the request.
const CLIENT_ONLY: [&str; 7] = [
    "host",
    "authorization",
    "x-api-key",
    "api-key",
    "cookie",
    "chatgpt-account-id",
    "tollgate-hops",
];

/// Fields that policies can neither read nor edit.
const RESERVED: [&str; 9] = [
    "authorization",
    "chatgpt-account-id",
    "cookie",
    "set-cookie",
    "host",
    "content-length",
    "content-encoding",
    "x-api-key",
    "tollgate-hops",
];

fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

fn is_proxy_added(name: &str) -> bool {
    name.starts_with("cf-") || PROXY_ADDED.contains(&name)
}

/// Returns whether `name` (in lower case) is hidden from policies.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name == "api-key" || is_hop_by_hop(name)
}

/// Parts of the names of fields that contain secrets.
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

/// Returns whether `name` (in lower case) is that of a field that contains a secret. Policies can
/// neither read nor set it; an operator can.
pub(crate) fn is_secret_shaped(name: &str) -> bool {
    // Names are short: a search algorithm with a preparation phase takes longer than a plain
    // search.
    let name = name.as_bytes();
    (0..name.len()).any(|at| {
        let rest = &name[at..];
        SECRET_SHAPES
            .iter()
            .any(|shape| shape.as_bytes()[0] == rest[0] && rest.starts_with(shape.as_bytes()))
    })
}

/// Removes from a client's request what must not reach upstream: hop-by-hop fields, what proxies
/// add, and every credential of the client's.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    strip(headers, |name| CLIENT_ONLY.contains(&name));
}

/// Removes from upstream's response what must not reach the client: hop-by-hop fields, what proxies
/// add, and cookies.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
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

/// Returns the token of `Bearer <token>` (RFC 6750). The scheme's case does not matter.
pub(crate) fn bearer_token(value: &HeaderValue) -> Option<&str> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Returns how long the sender of `Retry-After` (RFC 9110, section 10.2.3: seconds, or a date) asks
/// to be left alone. A date that has passed counts as no field.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since_epoch = date.duration_since(UNIX_EPOCH).ok()?;
    let pause = Timestamp::default().after(since_epoch).since(now);
    (!pause.is_zero()).then_some(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_retry_after(value: &'static str, expected_s: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        let found = retry_after(&headers, Timestamp(1_000_000));
        assert_eq!(found, expected_s.map(Duration::from_secs), "{value}");
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_a_date() {
        check_retry_after("30", Some(30));
        check_retry_after("Thu, 01 Jan 1970 01:00:00 GMT", Some(2_600));
        check_retry_after("Thu, 01 Jan 1970 00:00:01 GMT", None);
        check_retry_after("soon", None);
        check_retry_after("-1", None);
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_schemes_case() {
        let token =
            |value: &'static str| bearer_token(&HeaderValue::from_static(value)).map(str::to_owned);
        assert_eq!(token("Bearer sk-a").as_deref(), Some("sk-a"));
        assert_eq!(token("bearer  sk-a ").as_deref(), Some("sk-a"));
        for other in ["", "Bearer", "Bearer ", "Basic sk-a", "sk-a"] {
            assert_eq!(token(other), None, "{other:?}");
        }
    }

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
    fn fields_named_by_connection_are_removed() {
        let fields = [
            ("connection", "x-one, X-Two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
        ];
        assert_eq!(stripped(strip_request, &fields), ["x-three"]);
    }

    #[test]
    fn a_clients_credentials_are_removed() {
        let fields = [
            ("authorization", "Bearer a"),
            ("api-key", "a"),
            ("x-api-key", "a"),
            ("cookie", "a"),
            ("chatgpt-account-id", "a"),
            ("cf-ray", "a"),
            ("tollgate-hops", "a"),
            ("session-id", "a"),
        ];
        assert_eq!(stripped(strip_request, &fields), ["session-id"]);
    }

    #[test]
    fn a_secret_is_recognized_by_any_part_of_its_name() {
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
    fn upstreams_cookies_are_removed() {
        assert_eq!(
            stripped(
                strip_response,
                &[("set-cookie", "a"), ("x-codex-turn-state", "b")]
            ),
            ["x-codex-turn-state"]
        );
    }
}
