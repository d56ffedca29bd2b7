//! The minimal proxy with hyper: hyper's server, hyper-util's pooled client, and a changed
//! authority between them. Bodies keep their type, and nothing is read, counted or checked; tokio
//! copies WebSockets in both directions.
//!
//! It shows what the libraries themselves cost.

use std::{convert::Infallible, io, net::Ipv4Addr, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::HOST,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{Either, Empty};
use hyper::{body::Bytes, body::Incoming, server::conn::http1, service::service_fn, upgrade};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tollgate_bench::ready;

/// Forwards everything to one upstream.
#[derive(Parser)]
struct ProxyArguments {
    /// Where to write the address once it listens
    #[arg(long)]
    ready_file: PathBuf,
    /// Address of the upstream
    #[arg(long)]
    upstream: SocketAddr,
}

/// The pause after a failed accept (no descriptor left), in which others can close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

// The multi-threaded runtime with one worker, because that is what Tollgate gets too.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> io::Result<()> {
    let arguments = ProxyArguments::parse();
    let Ok(proxy) = Proxy::to(arguments.upstream) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready::announce(&arguments.ready_file, listener.local_addr()?)?;
    // The worker accepts, not the main thread, so that one thread does all the work.
    tokio::spawn(accept(listener, proxy))
        .await
        .map_err(io::Error::other)
}

async fn accept(listener: TcpListener, proxy: Proxy) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        tokio::spawn(serve(stream, proxy.clone()));
    }
}

async fn serve(stream: TcpStream, proxy: Proxy) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| proxy.forward(request));
    // A client that disconnects ends only its connection.
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .ok();
}

#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Incoming>,
    authority: Authority,
    host: HeaderValue,
}

impl Proxy {
    fn to(upstream: SocketAddr) -> Result<Self, http::Error> {
        let text = upstream.to_string();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            authority: text.parse()?,
            host: text.try_into()?,
        })
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Either<Incoming, Empty<Bytes>>>, Infallible> {
        *request.uri_mut() = self.upstream_uri(request.uri());
        request.headers_mut().insert(HOST, self.host.clone());
        let client = upgrade::on(&mut request);
        match self.client.request(request).await {
            Ok(mut response) => {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    tokio::spawn(relay(client, upgrade::on(&mut response)));
                }
                Ok(response.map(Either::Left))
            }
            Err(_) => Ok(bad_gateway()),
        }
    }

    fn upstream_uri(&self, asked: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(
            asked
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| PathAndQuery::from_static("/")),
        );
        // A URI with scheme, authority and path is valid.
        Uri::from_parts(parts).unwrap_or_default()
    }
}

async fn relay(client: upgrade::OnUpgrade, upstream: upgrade::OnUpgrade) {
    if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
        // A side that disconnects ends only its socket.
        copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream))
            .await
            .ok();
    }
}

fn bad_gateway() -> Response<Either<Incoming, Empty<Bytes>>> {
    let mut response = Response::new(Either::Right(Empty::new()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
