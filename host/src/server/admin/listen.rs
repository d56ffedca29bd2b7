//! Connections of operators, bounded in number and duration.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::files::{io_reason, remove};
use crate::listener::{HandedOverSocket, SocketFileOwnership, UnixSocketFile};
use crate::platform::{UnixListener, UnixStream, is_of_this_user, set_mode, unix_listener};

/// Who may connect over the Unix socket: the gateway's user.
const MODE: u32 = 0o600;

/// Open connections of each listener.
const CONNECTIONS: usize = 16;

/// A connection is one request and its response. Loading a policy may take a while.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// For the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one request of an operator.
pub(super) trait AdminHandler: Clone + Send + Sync + 'static {
    fn handle(
        &self,
        request: &Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

pub(super) trait AdminStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> AdminStream for T {}

/// A source of operators' connections.
pub(super) trait AdminListener: Sync {
    type Stream: AdminStream;

    /// Accepts the next connection; `None` if its peer has no access.
    fn next(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl AdminListener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.accept().await?;
        // The mode of the socket says the same, but not before it is set.
        if is_of_this_user(&stream) {
            return Ok(Some(stream));
        }
        tracing::warn!("admin connection of another user rejected");
        Ok(None)
    }
}

impl AdminListener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<Option<TcpStream>> {
        let (stream, _) = self.accept().await?;
        Ok(Some(stream))
    }
}

/// Accepts connections for ever.
pub(super) async fn accept(listener: &impl AdminListener, handler: &impl AdminHandler) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.next().await {
            Ok(Some(stream)) => {
                let handler = handler.clone();
                connections.spawn(async move {
                    // The operator sees a timeout as a closed connection.
                    let _ = timeout(CONNECTION_TIMEOUT, serve(stream, handler)).await;
                    drop(permit);
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(error = io_reason(&error), "admin accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: impl AdminStream, handler: impl AdminHandler) {
    let respond = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.handle(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), respond);
    if let Err(error) = served.await {
        tracing::debug!(%error, "admin connection failed");
    }
}

/// Listens on a Unix socket at `path`.
///
/// A socket that is there belongs to a process that is gone: the ledger's lock guards the folder.
///
/// # Errors
/// The socket cannot be created.
pub(super) fn bind_unix(path: &Path) -> io::Result<(UnixListener, UnixSocketFile)> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    let file = UnixSocketFile::of(path, SocketFileOwnership::own());
    set_mode(path, MODE)?;
    Ok((listener, file))
}

/// Listens on the socket of the process before this one, whose file is at `path`.
///
/// # Errors
/// It is not a listening socket.
pub(super) fn take_over_unix(
    socket: HandedOverSocket,
    path: &Path,
) -> io::Result<(UnixListener, UnixSocketFile)> {
    let ownership = socket.file_ownership.clone();
    let (socket, _) = socket.into_listening()?;
    let listener = unix_listener(socket)?;
    Ok((listener, UnixSocketFile::of(path, ownership)))
}
