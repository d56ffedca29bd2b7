//! Proxies on 127.0.0.1, which speak SOCKS 4, 4a and 5 and HTTP CONNECT, or answer with bytes of the
//! test's choice.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A connection that a proxy was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenTunnel {
    /// `socks4`, `socks4a`, `socks5` or `http`.
    pub protocol: &'static str,
    /// `host:port`, as the client wrote it.
    pub target: String,
    /// `name:password`, or the user id of SOCKS 4; empty without a login.
    pub login: String,
    /// The request's head in lower case, for `http`.
    pub head: String,
}

/// A running proxy. It stops when it is dropped, with its tunnels.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<SeenTunnel>>>,
    task: JoinHandle<()>,
}

/// What a proxy does after it sent its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterBytes {
    /// It closes the connection.
    Close,
    /// It says nothing more.
    Hold,
}

impl Proxy {
    /// Starts a proxy that asks for no login.
    pub async fn start() -> Self {
        Self::serve("", None).await
    }

    /// Starts a proxy that asks for this login: `name:password`.
    pub async fn with_login(login: &'static str) -> Self {
        Self::serve(login, None).await
    }

    /// Starts a proxy that speaks TLS.
    pub async fn over_tls(config: Arc<ServerConfig>) -> Self {
        Self::serve("", Some(TlsAcceptor::from(config))).await
    }

    /// Starts a proxy that reads something, answers with `bytes`, and then does as `after` says.
    pub async fn answering(bytes: impl Into<Vec<u8>>, after: AfterBytes) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::accept(move |mut stream, _| {
            let bytes = Arc::clone(&bytes);
            async move {
                let mut read = [0; 1024];
                if stream.read(&mut read).await? > 0 {
                    stream.write_all(&bytes).await?;
                }
                finish(stream, after).await
            }
        })
        .await
    }

    /// Starts a proxy that sends `bytes` before it reads anything, and then does as `after` says.
    pub async fn speaking_first(bytes: impl Into<Vec<u8>>, after: AfterBytes) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        Self::accept(move |mut stream, _| {
            let bytes = Arc::clone(&bytes);
            async move {
                stream.write_all(&bytes).await?;
                finish(stream, after).await
            }
        })
        .await
    }

    async fn serve(login: &'static str, tls: Option<TlsAcceptor>) -> Self {
        Self::accept(move |stream, seen| {
            let tls = tls.clone();
            async move {
                match tls {
                    None => tunnel(stream, login, seen).await,
                    Some(tls) => tunnel(tls.accept(stream).await?, login, seen).await,
                }
            }
        })
        .await
    }

    async fn accept<F>(
        handle: impl Fn(TcpStream, Arc<Mutex<Vec<SeenTunnel>>>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port on 127.0.0.1");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<SeenTunnel>>> = Arc::default();
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(handle(stream, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns an outbound to it for a configuration, of this type: `socks` or `http`.
    pub fn outbound(&self, kind: &str, tag: &str) -> Value {
        json!({ "type": kind, "tag": tag, "server": "127.0.0.1", "server_port": self.address.port() })
    }

    /// Returns the connections that it was asked for, with a good login.
    ///
    /// # Panics
    /// Panics if one of its tasks panicked.
    pub fn tunnels(&self) -> Vec<SeenTunnel> {
        self.seen.lock().expect("no holder panics").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn finish(mut stream: TcpStream, after: AfterBytes) -> io::Result<()> {
    match after {
        AfterBytes::Close => stream.shutdown().await,
        AfterBytes::Hold => {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map(drop)
        }
    }
}

/// Serves one connection of a client, in the protocol that its first byte says.
async fn tunnel<S>(mut client: S, login: &str, seen: Arc<Mutex<Vec<SeenTunnel>>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let first = client.read_u8().await?;
    let asked = match first {
        4 => socks4(&mut client).await?,
        5 => socks5(&mut client, login).await?,
        first => http(&mut client, first, login).await?,
    };
    let Some(asked) = asked else {
        return client.shutdown().await;
    };
    let (protocol, target) = (asked.protocol, asked.target.clone());
    seen.lock().expect("no holder panics").push(asked);
    let Ok(mut upstream) = TcpStream::connect(here(&target)).await else {
        return reply(&mut client, protocol, Outcome::Refused).await;
    };
    reply(&mut client, protocol, Outcome::Connected).await?;
    copy_bidirectional(&mut client, &mut upstream)
        .await
        .map(drop)
}

/// Resolves a name as no one else does: to this host.
fn here(target: &str) -> SocketAddr {
    target.parse().unwrap_or_else(|_| {
        let port = target.rsplit(':').next().and_then(|port| port.parse().ok());
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.unwrap_or(0))
    })
}

enum Outcome {
    Connected,
    Refused,
}

async fn reply<S: AsyncWrite + Unpin>(
    client: &mut S,
    protocol: &str,
    outcome: Outcome,
) -> io::Result<()> {
    let bytes: &[u8] = match (protocol, outcome) {
        ("http", Outcome::Connected) => b"HTTP/1.1 200 Connection established\r\n\r\n",
        ("http", Outcome::Refused) => b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
        ("socks5", Outcome::Connected) => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        ("socks5", Outcome::Refused) => &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
        (_, Outcome::Connected) => &[0, 0x5a, 0, 0, 0, 0, 0, 0],
        (_, Outcome::Refused) => &[0, 0x5b, 0, 0, 0, 0, 0, 0],
    };
    client.write_all(bytes).await?;
    client.flush().await
}

async fn text_until_zero<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<String> {
    let mut text = Vec::new();
    loop {
        match client.read_u8().await? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            byte => text.push(byte),
        }
    }
}

async fn text_of<S: AsyncRead + Unpin>(client: &mut S, length: u8) -> io::Result<String> {
    let mut text = vec![0; length.into()];
    client.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn socks4<S: AsyncRead + Unpin>(client: &mut S) -> io::Result<Option<SeenTunnel>> {
    client.read_u8().await?;
    let port = client.read_u16().await?;
    let address = Ipv4Addr::from(client.read_u32().await?);
    let login = text_until_zero(client).await?;
    let is_name = address.octets()[..3] == [0, 0, 0];
    let (protocol, host) = if is_name {
        ("socks4a", text_until_zero(client).await?)
    } else {
        ("socks4", address.to_string())
    };
    Ok(Some(SeenTunnel {
        protocol,
        target: format!("{host}:{port}"),
        login,
        head: String::new(),
    }))
}

/// Returns `None` after a wrong login.
async fn socks5<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    expected: &str,
) -> io::Result<Option<SeenTunnel>> {
    let count = client.read_u8().await?;
    let mut methods = vec![0; count.into()];
    client.read_exact(&mut methods).await?;
    let method = if expected.is_empty() { 0 } else { 2 };
    if !methods.contains(&method) {
        client.write_all(&[5, 0xff]).await?;
        return Ok(None);
    }
    client.write_all(&[5, method]).await?;
    client.flush().await?;
    let mut login = String::new();
    if method == 2 {
        client.read_u8().await?;
        let length = client.read_u8().await?;
        let name = text_of(client, length).await?;
        let length = client.read_u8().await?;
        let password = text_of(client, length).await?;
        login = format!("{name}:{password}");
        let status = u8::from(login != expected);
        client.write_all(&[1, status]).await?;
        client.flush().await?;
        if login != expected {
            return Ok(None);
        }
    }
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let host = match head[3] {
        1 => Ipv4Addr::from(client.read_u32().await?).to_string(),
        3 => {
            let length = client.read_u8().await?;
            text_of(client, length).await?
        }
        _ => format!("[{}]", std::net::Ipv6Addr::from(client.read_u128().await?)),
    };
    let port = client.read_u16().await?;
    Ok(Some(SeenTunnel {
        protocol: "socks5",
        target: format!("{host}:{port}"),
        login,
        head: String::new(),
    }))
}

/// Returns `None` after a wrong login. `Proxy-Authorization` is compared as it is.
async fn http<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    first: u8,
    expected: &str,
) -> io::Result<Option<SeenTunnel>> {
    let mut head = vec![first];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let login = field("proxy-authorization").unwrap_or_default();
    if login != expected {
        client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            .await?;
        client.flush().await?;
        return Ok(None);
    }
    let asked = head.split(' ').nth(1).unwrap_or_default();
    let target = if asked.starts_with('/') {
        field("host").unwrap_or_default()
    } else {
        asked.to_owned()
    };
    Ok(Some(SeenTunnel {
        protocol: "http",
        target,
        login,
        head: head.to_ascii_lowercase(),
    }))
}
