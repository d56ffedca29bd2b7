//! What the gateway says to a service manager (systemd), and takes from it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::time::timeout;
use tollgate_tests::{Client, Program, Rig, binary, is_running, replace_file, send_signal, turn};

const SOON: Duration = Duration::from_secs(20);

/// The end of the notifications, as the service manager has it.
struct Notifications(UnixDatagram);

impl Notifications {
    fn of(rig: &Rig) -> Self {
        Self(UnixDatagram::bind(rig.path("notify")).expect("a new socket"))
    }

    /// Returns the next message, of which watchdog pings are left out.
    async fn next(&self) -> String {
        loop {
            let message = self.any().await;
            if message.trim() != "WATCHDOG=1" {
                return message.trim().to_owned();
            }
        }
    }

    async fn any(&self) -> String {
        let mut buffer = [0; 4096];
        let received = timeout(SOON, self.0.recv(&mut buffer));
        let length = received.await.expect("in time").expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

fn command(rig: &Rig) -> Command {
    let mut command = Command::new(binary());
    command
        .stdin(Stdio::null())
        .env("NOTIFY_SOCKET", rig.path("notify"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_reloads_and_the_end_are_notified() {
    let rig = Rig::new().await;
    let notifications = Notifications::of(&rig);
    let config = rig.team(&["a"], json!({}));
    let program = rig.spawn_as(command(&rig), &config).await;
    assert_eq!(notifications.next().await, "READY=1");
    for broken in [false, true] {
        if broken {
            replace_file(&rig.path("config.json"), "{");
        } else {
            program.signal(libc::SIGHUP);
        }
        let reloading = notifications.next().await;
        let (state, time) = reloading.split_once('\n').expect("two states");
        assert_eq!(state, "RELOADING=1");
        assert!(time.starts_with("MONOTONIC_USEC="), "{reloading}");
        assert_eq!(notifications.next().await, "READY=1");
    }
    program.signal(libc::SIGTERM);
    assert_eq!(notifications.next().await, "STOPPING=1");
    assert_eq!(program.wait(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_pinged_in_its_interval() {
    let rig = Rig::new().await;
    let notifications = Notifications::of(&rig);
    let mut command = command(&rig);
    command.env("WATCHDOG_USEC", "1000000");
    let _program = rig.spawn_as(command, &rig.team(&["a"], json!({}))).await;
    let mut last = Instant::now();
    let mut pings = 0;
    while pings < 4 {
        if notifications.any().await.trim() == "WATCHDOG=1" {
            assert!(last.elapsed() < Duration::from_secs(1), "a ping is late");
            last = Instant::now();
            pings += 1;
        } else {
            last = Instant::now();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_names_the_new_main_process() {
    let rig = Rig::new().await;
    let notifications = Notifications::of(&rig);
    let program = rig
        .spawn_as(command(&rig), &rig.team(&["a"], json!({})))
        .await;
    assert_eq!(notifications.next().await, "READY=1");
    program.signal(libc::SIGUSR2);
    let named = notifications.next().await;
    let process = named.strip_prefix("MAINPID=").expect("a main process");
    let process: u32 = process.parse().expect("a process id");
    assert_ne!(process, program.id());
    assert_eq!(notifications.next().await, "READY=1");
    // The old process ends, but the service does not.
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    send_signal(process, libc::SIGTERM);
    assert_eq!(notifications.next().await, "STOPPING=1");
    let begun = Instant::now();
    while is_running(process) {
        assert!(begun.elapsed() < SOON, "the new process does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts the gateway with `first` and `second` as the service manager's sockets, named `names`.
async fn activate(
    rig: &Rig,
    config: &Value,
    first: impl Into<OwnedFd>,
    second: impl Into<OwnedFd>,
    names: &str,
) -> Program {
    let sockets = [first.into(), second.into()];
    // A shell knows the process that it becomes.
    let script = "LISTEN_PID=$$ exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(binary())
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::null());
    let files = [&sockets[0], &sockets[1]].map(|socket| socket.as_raw_fd());
    // SAFETY: fcntl and dup2 are async-signal-safe and touch no memory of this process, whose
    // sockets are open until the child has started.
    unsafe {
        command.pre_exec(move || {
            // Out of the way of the places that they get.
            let moved = files.map(|file| libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 10));
            for (place, file) in (3..).zip(moved) {
                if file < 0 || libc::dup2(file, place) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let program = rig.spawn_as(command, config).await;
    drop(sockets);
    program
}

async fn serves(address: SocketAddr) {
    let answer = Client::new(address)
        .token("token-alice")
        .turn(&turn("s"))
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_the_service_manager_are_found_by_name() {
    let rig = Rig::new().await;
    let (first, first_address) = listener();
    let unix = UnixListener::bind(rig.path("managed.sock")).expect("a new socket");
    let config = rig.team(&["a"], json!({}));
    let program = activate(&rig, &config, first, unix, "ocm:ocm").await;
    serves(first_address).await;
    let mut stream = UnixStream::connect(rig.path("managed.sock"))
        .await
        .expect("connects");
    let request = "GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-alice\r\n\
        connection: close\r\n\r\n";
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
    // It belongs to the service manager.
    assert!(rig.path("managed.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_the_service_manager_are_found_by_address() {
    let rig = Rig::new().await;
    let ((first, first_address), (second, second_address)) = (listener(), listener());
    let mut config = rig.team(&["a"], json!({}));
    config["services"][0]["listen_port"] = json!(first_address.port());
    config["admin"] = json!({ "listen_port": second_address.port() });
    let program = activate(
        &rig,
        &config,
        first,
        second,
        "tollgate.socket:tollgate.socket",
    )
    .await;
    serves(first_address).await;
    let health = Client::new(second_address)
        .try_send(http::Method::GET, "/healthz", "")
        .await
        .expect("an answer");
    assert_eq!(health.status, StatusCode::OK);
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait(SOON).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_nothing_uses_is_closed_with_a_warning() {
    let rig = Rig::new().await;
    let ((first, first_address), (second, second_address)) = (listener(), listener());
    let config = rig.team(&["a"], json!({}));
    let program = activate(&rig, &config, first, second, "ocm:other").await;
    serves(first_address).await;
    let refused = tokio::net::TcpStream::connect(second_address).await;
    assert!(refused.is_err(), "the unused socket listens");
    let log = program.log();
    assert!(
        log.contains("no service uses this socket, closing it"),
        "{log}"
    );
}

/// The configuration names a loopback address, but everyone can reach the socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_socket_of_the_service_manager_keeps_its_users() {
    let rig = Rig::new().await;
    let public = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = public.local_addr().expect("it is bound").port();
    let (second, _) = listener();
    let config = rig.team(&["a"], json!({}));
    let program = activate(&rig, &config, public, second, "ocm:other").await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    serves(address).await;
    let mut open = config.clone();
    open["services"][0]["users"] = json!([]);
    replace_file(&rig.path("config.json"), open.to_string());
    let begun = Instant::now();
    while !program
        .log()
        .contains("services[0].users: cannot be removed")
    {
        assert!(begun.elapsed() < SOON, "{}", program.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stranger = Client::new(address).turn(&turn("s")).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
}

/// The service manager rejects what it gets from a process that is not the main one.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_a_successor_pings_no_watchdog() {
    let rig = Rig::new().await;
    let notifications = Notifications::of(&rig);
    let mut command = command(&rig);
    command.env("WATCHDOG_USEC", "200000");
    let mut config = rig.team(&["a"], json!({}));
    config["limits"] = json!({ "head_timeout": "60s" });
    let program = rig.spawn_as(command, &config).await;
    assert_eq!(notifications.next().await, "READY=1");
    let address = program.client().address();
    let _silent = tokio::net::TcpStream::connect(address)
        .await
        .expect("it listens");
    // Connections are accepted in order: the silent one keeps the old process.
    serves(address).await;
    program.signal(libc::SIGUSR2);
    let named = notifications.next().await;
    let process = named.strip_prefix("MAINPID=").expect("a main process");
    let process: u32 = process.parse().expect("a process id");
    assert_eq!(notifications.next().await, "READY=1");
    send_signal(process, libc::SIGSTOP);
    // What the new process sent before it stood still.
    while timeout(Duration::from_millis(100), notifications.any())
        .await
        .is_ok()
    {}
    let ping = timeout(Duration::from_millis(500), notifications.any()).await;
    assert!(ping.is_err(), "{ping:?}");
    assert!(is_running(program.id()), "the old process has ended");
    program.signal(libc::SIGUSR2);
    let begun = Instant::now();
    while !program.log().contains("SIGUSR2 ignored") {
        assert!(begun.elapsed() < SOON, "{}", program.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    send_signal(process, libc::SIGKILL);
}
