//! The fields about sockets of a `direct` outbound, seen from the other side.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tollgate::config::parse;
use tollgate::upstream::TrustRoots;
use tollgate::upstream::dial::{DialDeadline, DialError, Dialer};

use super::scene::with;

/// Connects to `address` over a `direct` outbound with these fields.
async fn connect(address: &str, fields: Value) -> Result<TcpStream, DialError> {
    let outbound = with(json!({ "type": "direct", "tag": "out" }), fields);
    let config = json!({ "services": [{ "type": "ocm", "detour": "out", "credential_path": "a.json" }],
        "outbounds": [outbound] });
    let loaded = parse(&config.to_string()).expect("a configuration");
    let route = &loaded.config.services[0].credentials[0].route;
    let dialer = Dialer::new(route, &TrustRoots::from_pem(b""));
    let uri = format!("http://{address}").parse().expect("a URL");
    let stream = dialer
        .dial(&uri, DialDeadline::after(Duration::from_secs(5)))
        .await?;
    Ok(stream.into_tcp().expect("nothing is in between"))
}

/// Connects to a listener of this test. Returns the local address that the listener saw.
async fn seen_from(fields: Value) -> (TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (connected, accepted) = tokio::join!(connect(&address, fields), listener.accept());
    let (_, from) = accepted.expect("a connection");
    (connected.expect("connects"), from)
}

#[tokio::test]
async fn a_socket_is_bound_to_its_address() {
    for port_choice in [false, true] {
        let fields = json!({ "inet4_bind_address": "127.0.0.7", "reuse_addr": true,
            "bind_address_no_port": port_choice });
        let (_, from) = seen_from(fields).await;
        assert_eq!(from.ip().to_string(), "127.0.0.7");
    }
    let error = connect("127.0.0.1:1", json!({ "inet4_bind_address": "192.0.2.1" })).await;
    let error = error.expect_err("the address is not this host's");
    assert_eq!(error.outbound(), Some("out"));
    assert!(
        error.to_string().contains("inet4_bind_address: "),
        "{error}"
    );
}

#[tokio::test]
async fn an_address_of_the_other_version_is_not_bound() {
    let (_, from) = seen_from(json!({ "inet6_bind_address": "2001:db8::1" })).await;
    assert_eq!(from.ip().to_string(), "127.0.0.1");
}

#[tokio::test]
async fn keep_alive_is_as_configured() {
    let (stream, _) = seen_from(json!({})).await;
    let socket = SockRef::from(&stream);
    assert!(socket.keepalive().expect("an option"));
    let idle = socket.tcp_keepalive_time().expect("an option");
    assert_eq!(idle, Duration::from_secs(300));
    let interval = socket.tcp_keepalive_interval().expect("an option");
    assert_eq!(interval, Duration::from_secs(75));
    assert!(stream.nodelay().expect("an option"));

    let fields = json!({ "tcp_keep_alive": "7s", "tcp_keep_alive_interval": "3s" });
    let (stream, _) = seen_from(fields).await;
    let socket = SockRef::from(&stream);
    let idle = socket.tcp_keepalive_time().expect("an option");
    assert_eq!(idle, Duration::from_secs(7));
    let interval = socket.tcp_keepalive_interval().expect("an option");
    assert_eq!(interval, Duration::from_secs(3));

    let (stream, _) = seen_from(json!({ "disable_tcp_keep_alive": true })).await;
    assert!(!SockRef::from(&stream).keepalive().expect("an option"));
}

/// Returns an option of a socket that is a number.
fn option(stream: &TcpStream, level: libc::c_int, name: libc::c_int) -> libc::c_int {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` and `length` outlive the call, and `length` is the size of `value`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

#[tokio::test]
async fn fast_open_and_multipath_are_set_and_connect_to_peers_without_them() {
    // Without Multipath TCP in the kernel, ordinary TCP is used.
    let has_multipath = std::fs::read_to_string("/proc/sys/net/mptcp/enabled")
        .is_ok_and(|enabled| enabled.trim() == "1");
    for (fast_open, multipath) in [(false, false), (true, false), (false, true)] {
        let fields = json!({ "tcp_fast_open": fast_open, "tcp_multi_path": multipath });
        let (stream, _) = seen_from(fields).await;
        let found = option(&stream, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT);
        assert_eq!(found, i32::from(fast_open));
        let expected = if multipath && has_multipath {
            libc::IPPROTO_MPTCP
        } else {
            libc::IPPROTO_TCP
        };
        let found = option(&stream, libc::SOL_SOCKET, libc::SO_PROTOCOL);
        assert_eq!(found, expected, "{multipath} {has_multipath}");
    }
    seen_from(json!({ "tcp_fast_open": true, "tcp_multi_path": true })).await;
}

#[tokio::test]
async fn the_options_of_a_bound_address_are_set() {
    for is_set in [false, true] {
        let fields = json!({ "inet4_bind_address": "127.0.0.7", "reuse_addr": is_set,
            "bind_address_no_port": is_set });
        let (stream, _) = seen_from(fields).await;
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
        ] {
            assert_eq!(option(&stream, level, name), i32::from(is_set), "{name}");
        }
    }
}

/// Returns a socket of `address` that drops connections, because its queue is full, and what fills
/// the queue.
fn silent_listener(address: SocketAddr) -> Option<(socket2::Socket, Vec<socket2::Socket>)> {
    let kind = |address: &SocketAddr| socket2::Domain::for_address(*address);
    let listener = socket2::Socket::new(kind(&address), socket2::Type::STREAM, None).ok()?;
    listener.bind(&address.into()).ok()?;
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    for _ in 0..16 {
        let client = socket2::Socket::new(address.domain(), socket2::Type::STREAM, None);
        let client = client.expect("a socket");
        if client
            .connect_timeout(&address, Duration::from_millis(200))
            .is_err()
        {
            return Some((listener, queued));
        }
        queued.push(client);
    }
    panic!("the queue has no end");
}

#[tokio::test]
async fn the_other_version_of_ip_waits_for_the_fallback_delay() {
    let addresses = tokio::net::lookup_host("localhost:0").await;
    let addresses: Vec<SocketAddr> = addresses.expect("localhost has an address").collect();
    // Only one of both is on this host.
    let [first, .., last] = addresses.as_slice() else {
        return;
    };
    let Some((silent, _queued)) = silent_listener(*first) else {
        return;
    };
    let silent = silent.local_addr().expect("an address").as_socket();
    let port = silent.expect("an IP address").port();
    let mut other = *last;
    other.set_port(port);
    let _listener = TcpListener::bind(other).await.expect("the same port");
    for (delay, least) in [("900ms", 900), ("1ms", 0)] {
        let began = Instant::now();
        let fields = json!({ "fallback_delay": delay });
        let connected = connect(&format!("localhost:{port}"), fields).await;
        connected.expect("connects to the other address");
        assert!(began.elapsed() >= Duration::from_millis(least), "{delay}");
    }
}

#[tokio::test]
async fn a_socket_is_bound_to_its_interface() {
    seen_from(json!({ "bind_interface": "lo" })).await;
    let error = connect("127.0.0.1:1", json!({ "bind_interface": "nowhere0" })).await;
    let error = error.expect_err("there is no such interface").to_string();
    assert!(error.contains("bind_interface: no such device"), "{error}");
}

/// Whether this needs a right that the process may lack: then the error says so.
fn check_allowed(connected: Result<TcpStream, DialError>, field: &str) -> Option<TcpStream> {
    match connected {
        Ok(stream) => Some(stream),
        Err(error) => {
            let expected = format!("outbound \"out\": {field}: operation not permitted");
            assert_eq!(error.to_string(), expected);
            None
        }
    }
}

#[tokio::test]
async fn a_socket_has_its_mark() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    for mark in [json!(31), json!("0x1f")] {
        let connected = connect(&address, json!({ "routing_mark": mark })).await;
        if let Some(stream) = check_allowed(connected, "routing_mark") {
            assert_eq!(SockRef::from(&stream).mark().expect("an option"), 31);
        }
    }
}

#[tokio::test]
async fn a_socket_is_in_its_namespace() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    // The namespace of this process, by its path.
    let connected = connect(&address, json!({ "netns": "/proc/self/ns/net" })).await;
    check_allowed(connected, "netns");
    let error = connect(&address, json!({ "netns": "no-such-namespace" })).await;
    let error = error.expect_err("there is no such namespace").to_string();
    assert_eq!(error, "outbound \"out\": netns: no such file or directory");
}

#[tokio::test]
async fn the_other_version_of_ip_is_tried_if_one_is_not_served() {
    // `localhost` may be both ::1 and 127.0.0.1; only one of them is served.
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(local).await else {
            // This host has no IPv6.
            continue;
        };
        let addresses = tokio::net::lookup_host("localhost:0").await;
        let mut addresses = addresses.expect("localhost has an address");
        let is_v4 = local.starts_with("127");
        if !addresses.any(|address| address.is_ipv4() == is_v4) {
            continue;
        }
        let port = listener.local_addr().expect("an address").port();
        let fields = json!({ "fallback_delay": "50ms" });
        let connected = connect(&format!("localhost:{port}"), fields).await;
        connected.expect("connects");
    }
}

#[tokio::test]
async fn a_name_without_addresses_is_named() {
    let error = connect("no-such-host.invalid:1", json!({})).await;
    let error = error.expect_err("the name has no address").to_string();
    assert!(
        error.starts_with("outbound \"out\": cannot resolve no-such-host.invalid: "),
        "{error}"
    );
}

#[tokio::test]
async fn an_address_that_does_not_answer_takes_its_connect_timeout() {
    // A listener whose queue is full drops further connections.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let listener = listener.expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    listener.bind(&any.into()).expect("a port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let address = address.as_socket().expect("an IP address").to_string();
    let mut queued = Vec::new();
    let error = loop {
        let fields = json!({ "connect_timeout": "200ms" });
        match connect(&address, fields).await {
            Ok(stream) => queued.push(stream),
            Err(error) => break error.to_string(),
        }
        assert!(queued.len() < 16, "the queue has no end");
    };
    let expected = format!("outbound \"out\": connecting to {address} timed out after 0.2 s");
    assert_eq!(error, expected);
}
