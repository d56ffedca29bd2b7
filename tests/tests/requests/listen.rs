//! Where a service listens: options of the socket, Unix sockets, and the client's address behind
//! proxies.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Client, Program, Rig, binary, turn, wait_for_rows};

const SOON: Duration = Duration::from_secs(10);

/// The signature and the fixed fields of a PROXY protocol header of version 2, for TCP over IPv4.
const BINARY_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";

/// A request for the models, by `token`, on a connection that is closed after it.
fn request(token: &str, fields: &str) -> Vec<u8> {
    format!(
        "GET /v1/models HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n\
        connection: close\r\n{fields}\r\n"
    )
    .into_bytes()
}

/// Sends `bytes`, and returns what comes back until the end.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    // The gateway may close the connection while this is being sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = timeout(SOON, read).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn exchange_with(address: SocketAddr, pieces: &[&[u8]]) -> String {
    let stream = TcpStream::connect(address).await.expect("connects");
    exchange(stream, &pieces.concat()).await
}

/// Returns the fields `client` of the events `message` in the log.
fn clients(program: &Program, message: &str) -> Vec<String> {
    let log = program.log();
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(|event| event.to_string().contains(&format!("\"{message}\"")))
        .filter_map(|event| find(&event, "client"))
        .collect()
}

/// Returns the text of the field `name`, however deep it is.
fn find(value: &Value, name: &str) -> Option<String> {
    let fields = value.as_object()?;
    let here = fields.get(name).and_then(Value::as_str).map(str::to_owned);
    here.or_else(|| fields.values().find_map(|value| find(value, name)))
}

/// A team behind proxies on this machine, with these fields of its service.
fn behind_proxies(rig: &Rig, fields: Value) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    let service = config["services"][0].as_object_mut().expect("a service");
    service.insert("trusted_proxies".to_owned(), json!(["127.0.0.0/8"]));
    for (name, value) in fields.as_object().expect("fields") {
        service.insert(name.clone(), value.clone());
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_names_the_client() {
    let rig = Rig::new().await;
    let config = behind_proxies(&rig, json!({ "proxy_protocol": true }));
    let program = rig.spawn(&config).await;
    let address = program.client().address();
    let binary = [BINARY_HEADER, &[192, 0, 2, 8, 127, 0, 0, 1, 0, 80, 0, 81]].concat();
    for header in [
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4096 8080\r\n".as_slice(),
        b"PROXY TCP6 2001:db8::7 ::1 4096 8080\r\n",
        b"PROXY UNKNOWN\r\n",
        &binary,
    ] {
        let answer = exchange_with(address, &[header, &request("token-alice", "")]).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(
        clients(&program, "request"),
        ["192.0.2.7", "2001:db8::7", "unknown", "192.0.2.8"]
    );
    // The proxy does not know the client, which therefore cannot be believed.
    let spoofed = request("token-alice", "x-forwarded-for: 192.0.2.9\r\n");
    exchange_with(address, &[b"PROXY UNKNOWN\r\n", &spoofed]).await;
    let last = clients(&program, "request").pop();
    assert_eq!(last.as_deref(), Some("unknown"));
    // The client of a proxy that itself is trusted: another proxy's field counts.
    let two = request("token-alice", "x-forwarded-for: 192.0.2.9\r\n");
    let answer = exchange_with(address, &[b"PROXY TCP4 127.0.0.2 127.0.0.1 1 2\r\n", &two]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let last = clients(&program, "request").pop();
    assert_eq!(last.as_deref(), Some("192.0.2.9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_its_proxy_header_is_closed() {
    let rig = Rig::new().await;
    let config = behind_proxies(&rig, json!({ "proxy_protocol": true }));
    let program = rig.spawn(&config).await;
    let address = program.client().address();
    let request = request("token-alice", "");
    for header in [
        b"".as_slice(),
        b"PROXY TCP4 nonsense 127.0.0.1 4096 8080\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x03abc",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ] {
        let answer = exchange_with(address, &[header, &request]).await;
        assert_eq!(answer, "", "{header:?}");
    }
    assert!(clients(&program, "request").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_is_accepted_from_trusted_proxies_only() {
    let rig = Rig::new().await;
    let fields = json!({ "proxy_protocol": true, "trusted_proxies": ["192.0.2.0/24"] });
    let program = rig.spawn(&behind_proxies(&rig, fields)).await;
    let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 4096 8080\r\n".as_slice();
    let pieces = [header, &request("token-alice", "")];
    for _ in 0..3 {
        let answer = exchange_with(program.client().address(), &pieces).await;
        assert_eq!(answer, "");
    }
    // Logged once a minute, whatever their number.
    let message = "connection closed: it is not from one of trusted_proxies";
    assert_eq!(program.log().matches(message).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_for_is_believed_from_trusted_proxies_only() {
    for (trusted, expected) in [(json!("127.0.0.1"), "192.0.2.7"), (json!([]), "127.0.0.1")] {
        let rig = Rig::new().await;
        let fields = json!({ "trusted_proxies": trusted });
        let program = rig.spawn(&behind_proxies(&rig, fields)).await;
        let address = program.client().address();
        let spoofed = "x-forwarded-for: 203.0.113.1, 192.0.2.7\r\n";
        for (token, message) in [("token-alice", "request"), ("wrong", "request refused")] {
            exchange_with(address, &[&request(token, spoofed)]).await;
            assert_eq!(clients(&program, message), [expected], "{message}");
        }
        // Neither the field nor the address reaches upstream.
        let seen = rig.forwarded().pop().expect("a request");
        assert_eq!(seen.header("x-forwarded-for"), None);
    }
}

/// Failed authentications are delayed by the client's address, not by that of its proxy.
#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_one_proxy_are_delayed_separately() {
    let rig = Rig::new().await;
    let program = rig.spawn(&behind_proxies(&rig, json!({}))).await;
    let address = program.client().address();
    let wrong = |client: &str| request("wrong", &format!("x-forwarded-for: {client}\r\n"));
    for _ in 0..9 {
        exchange_with(address, &[&wrong("192.0.2.7")]).await;
    }
    let begun = std::time::Instant::now();
    exchange_with(address, &[&wrong("192.0.2.8")]).await;
    // The tenth failure of one address waits for more than a second.
    assert!(begun.elapsed() < Duration::from_secs(1));
}

/// A team, and a service on the Unix socket `codex.sock` of the rig's folder.
fn with_unix_service(rig: &Rig) -> Value {
    let mut config = rig.team(&["a"], json!({}));
    let mut unix = rig.config(json!({
        "tag": "unix",
        "credentials": [rig.oauth("b")],
        "trusted_proxies": "unix",
    }))["services"][0]
        .clone();
    unix["listen"] = json!(format!("unix:{}", rig.path("codex.sock").display()));
    unix.as_object_mut()
        .expect("a service")
        .remove("listen_port");
    config["services"]
        .as_array_mut()
        .expect("a list")
        .push(unix);
    config
}

async fn ask_unix(path: &Path, fields: &str) -> String {
    let stream = UnixStream::connect(path).await.expect("connects");
    exchange(stream, &request("any", fields)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_listens_on_a_unix_socket() {
    let rig = Rig::new().await;
    let config = with_unix_service(&rig);
    let program = rig.spawn(&config).await;
    let socket = rig.path("codex.sock");
    let mode = fs::metadata(&socket).expect("the socket").permissions();
    assert_eq!(mode.mode() & 0o777, 0o660);
    let answer = ask_unix(&socket, "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = ask_unix(&socket, "x-forwarded-for: 192.0.2.7\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(clients(&program, "request"), ["unix", "192.0.2.7"]);
    // The file that a killed gateway leaves behind is replaced.
    program.kill();
    assert!(socket.exists());
    let program = rig.spawn(&config).await;
    let answer = ask_unix(&socket, "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    assert!(!socket.exists(), "the socket is left behind");
}

/// Runs a gateway that does not start. Returns its standard error.
fn failure(rig: &Rig, config: &Value) -> String {
    let file = rig.write("failing.json", config.to_string());
    let output = Command::new(binary())
        .args(["run", "-c", &file])
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_that_is_in_use_or_another_file_is_not_replaced() {
    let rig = Rig::new().await;
    let config = with_unix_service(&rig);
    let program = rig.spawn(&config).await;
    let mut second = config.clone();
    second["data_dir"] = json!(rig.path("other-data"));
    let printed = failure(&rig, &second);
    assert!(printed.contains("address in use"), "{printed}");
    let answer = ask_unix(&rig.path("codex.sock"), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    program.kill();
    fs::remove_file(rig.path("codex.sock")).expect("the socket is left behind");
    rig.write("codex.sock", "a file of the operator");
    let printed = failure(&rig, &second);
    assert!(
        printed.contains("expected a socket or nothing, found another file"),
        "{printed}"
    );
    let found = fs::metadata(rig.path("codex.sock")).expect("the file is kept");
    assert!(!found.file_type().is_socket());
}

/// A team with these fields of its service.
fn with_fields(rig: &Rig, fields: Value) -> Value {
    let mut config = behind_proxies(rig, fields);
    config["services"][0]["trusted_proxies"] = json!([]);
    config
}

async fn serves(client: &Client) {
    let answer = client.clone().token("token-alice").turn(&turn("s")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_options_serves() {
    let rig = Rig::new().await;
    let fields = json!({
        "bind_interface": "lo",
        "reuse_addr": true,
        "tcp_fast_open": true,
        "tcp_multi_path": true,
        "tcp_keep_alive": "1h",
        "tcp_keep_alive_interval": "10s",
    });
    let program = rig.spawn(&with_fields(&rig, fields)).await;
    serves(&program.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_cannot_be_set_is_named() {
    let rig = Rig::new().await;
    for (fields, expected) in [
        (
            json!({ "bind_interface": "nowhere0" }),
            "bind_interface \"nowhere0\": no such device",
        ),
        (
            json!({ "netns": "/proc/self/ns/uts" }),
            "netns \"/proc/self/ns/uts\": invalid argument",
        ),
        (
            json!({ "netns": "nowhere" }),
            "netns \"/run/netns/nowhere\": no such file or directory",
        ),
    ] {
        let printed = failure(&rig, &with_fields(&rig, fields));
        let expected = format!("service \"ocm\": cannot listen on 127.0.0.1:0: {expected}");
        assert!(printed.contains(&expected), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_shared_with_reuse_addr_only() {
    let rig = Rig::new().await;
    let other = TcpSocket::new_v4().expect("a socket");
    other.set_reuseport(true).expect("an option of this system");
    other
        .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .expect("a free port");
    let port = other.local_addr().expect("it is bound").port();
    let printed = failure(&rig, &with_fields(&rig, json!({ "listen_port": port })));
    assert!(printed.contains("address already in use"), "{printed}");
    let fields = json!({ "listen_port": port, "reuse_addr": true });
    let program = rig.spawn(&with_fields(&rig, fields)).await;
    // The other socket does not listen, so that all connections reach the gateway.
    serves(&program.client()).await;
}

/// Sends a turn with a long response over `stream`, and reads nothing of it.
async fn read_nothing(rig: &Rig, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let body = turn("stalled").to_string();
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer token-alice\r\n\
        content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    stream.write_all(&request).await.expect("it is read");
    let rows = wait_for_rows(&rig.ledger(), 1).await;
    assert_eq!(rows[0].text("end"), Some("client_gone"), "{rows:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_loses_its_connection_over_each_kind_of_socket() {
    for unix in [true, false] {
        let rig = Rig::new().await;
        let mut config = with_unix_service(&rig);
        config["services"][0]["tcp_multi_path"] = json!(true);
        config["limits"] = json!({ "client_stall_timeout": "300ms" });
        let program = rig.spawn(&config).await;
        for account in ["a", "b"] {
            rig.account(account)
                .always(Reply::ok().deltas(4000).delta_bytes(10_000));
        }
        if unix {
            let stream = UnixStream::connect(rig.path("codex.sock")).await;
            read_nothing(&rig, stream.expect("connects")).await;
        } else {
            let stream = TcpStream::connect(program.client().address()).await;
            read_nothing(&rig, stream.expect("connects")).await;
        }
    }
}

/// Returns the timer of the gateway's end of `connection`: 2 for keep-alive, 0 for none.
fn timer(gateway: SocketAddr, connection: &TcpStream) -> Option<u8> {
    let peer = connection.local_addr().expect("it is connected");
    let (own, other) = (
        format!(":{:04X} ", gateway.port()),
        format!(":{:04X} ", peer.port()),
    );
    let table = fs::read_to_string("/proc/net/tcp").expect("the table of connections");
    let line = table.lines().find(|line| {
        let addresses: Vec<&str> = line.split_whitespace().skip(1).take(2).collect();
        matches!(addresses.as_slice(), [local, remote]
            if format!("{local} ").ends_with(&own) && format!("{remote} ").ends_with(&other))
    })?;
    let timer = line.split_whitespace().nth(5)?;
    timer.split(':').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_are_probed_unless_that_is_disabled() {
    for (fields, expected) in [
        (json!({}), 2),
        (json!({ "disable_tcp_keep_alive": true }), 0),
    ] {
        let rig = Rig::new().await;
        let program = rig.spawn(&with_fields(&rig, fields)).await;
        let address = program.client().address();
        let silent = TcpStream::connect(address).await.expect("connects");
        // Connections are accepted in order: the silent one is accepted, too.
        serves(&program.client()).await;
        assert_eq!(timer(address, &silent), Some(expected));
    }
}

/// A process in a new network namespace.
struct Namespace(Child);

impl Namespace {
    /// Returns `None` where namespaces cannot be made.
    fn new() -> Option<Self> {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut ready = [0; 6];
        let mut output = child.stdout.take()?;
        let is_ready = std::io::Read::read_exact(&mut output, &mut ready).is_ok();
        is_ready.then_some(Self(child))
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_listens_in_another_network_namespace() {
    let Some(namespace) = Namespace::new() else {
        eprintln!("skipped: this user cannot make network namespaces");
        return;
    };
    let rig = Rig::new().await;
    let fields = json!({
        "netns": namespace.file("ns/net"),
        "listen": "0.0.0.0",
        "routing_mark": "0x1f",
    });
    let program = rig.spawn(&with_fields(&rig, fields)).await;
    let port = program.client().address().port();
    let listens = |table: &str| {
        let table = fs::read_to_string(table).expect("a table of sockets");
        table.contains(&format!(":{port:04X} 00000000:0000 0A"))
    };
    assert!(listens(&namespace.file("net/tcp")), "not in the namespace");
    assert!(!listens("/proc/self/net/tcp"), "in this namespace, too");
}
