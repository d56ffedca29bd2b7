//! Connecting: from a route of the configuration to a stream whose other end is upstream.
//!
//! Owns name resolution, sockets and the protocols of proxies. Does not know what is sent over a
//! stream. Invariant: an error names the outbound that failed, and quotes no login or header value.

mod direct;
mod error;
mod http_connect;
mod proxy_tls;
mod sockets;
mod socks;
mod stream;
mod target;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

pub use error::{DialError, DialFailure, ProxyTlsError};
pub use stream::OutboundStream;
pub use target::{DialAddress, DialDeadline};

use super::trust::TrustRoots;
use crate::config::{
    OutboundCarrier, OutboundConfig, OutboundProtocol, SocketOptions, SocksProxy, UpstreamRoute,
};
use http_connect::ConnectProxy;

/// Makes connections over one route. Clones share it.
#[derive(Clone)]
pub struct Dialer(Arc<DialerParts>);

struct DialerParts {
    route: UpstreamRoute,
    paths: RoutePaths,
}

/// The paths of a route: for the environment, the URL decides.
enum RoutePaths {
    One(Hop),
    ByUrl {
        https: Option<Hop>,
        http: Option<Hop>,
        direct: Hop,
        /// Intercepts the URLs that are not in `NO_PROXY`.
        proxied: Box<Matcher>,
    },
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("route", &self.0.route)
            .finish()
    }
}

impl Dialer {
    /// Creates a dialer that checks the certificates of proxies with `trust`, if the route does not
    /// name others.
    pub fn new(route: &UpstreamRoute, trust: &TrustRoots) -> Self {
        let hop = |outbound: &OutboundConfig| Hop::new(outbound, trust);
        let paths = match route {
            UpstreamRoute::Direct => RoutePaths::One(Hop::direct()),
            UpstreamRoute::Outbound(outbound) => RoutePaths::One(hop(outbound)),
            UpstreamRoute::Environment(proxies) => RoutePaths::ByUrl {
                https: proxies.https.as_ref().map(hop),
                http: proxies.http.as_ref().map(hop),
                direct: Hop::direct(),
                proxied: Box::new(
                    Matcher::builder()
                        .all("http://proxy.invalid")
                        .no(proxies.no_proxy.clone())
                        .build(),
                ),
            },
        };
        Self(Arc::new(DialerParts {
            route: route.clone(),
            paths,
        }))
    }

    /// Returns the route that it connects over.
    pub fn route(&self) -> &UpstreamRoute {
        &self.0.route
    }

    /// Returns why a proxy's TLS settings cannot be used, with the outbound's tag.
    ///
    /// # Errors
    /// A certificate or a key cannot be used.
    pub fn check(&self) -> Result<(), (String, ProxyTlsError)> {
        match &self.0.paths {
            RoutePaths::One(hop) => hop.check(),
            RoutePaths::ByUrl { https, http, .. } => {
                https.iter().chain(http).try_for_each(Hop::check)
            }
        }
    }

    /// Connects to the host of `uri`, an `http` or `https` URL. TLS with it is not included.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn dial(
        &self,
        uri: &Uri,
        deadline: DialDeadline,
    ) -> Result<OutboundStream, DialError> {
        let Some(target) = DialAddress::of_uri(uri) else {
            return Err(DialFailure::NoHost.without_outbound());
        };
        self.path_to(uri).connect(&target, deadline).await
    }

    /// Returns the outbound through which the host of `uri` is reached.
    pub fn outbound_to(&self, uri: &Uri) -> Option<&OutboundConfig> {
        match &self.0.route {
            UpstreamRoute::Direct => None,
            UpstreamRoute::Outbound(outbound) => Some(outbound),
            UpstreamRoute::Environment(proxies) => {
                let tag = self.path_to(uri).tag.as_deref()?;
                let mut proxies = proxies.https.iter().chain(&proxies.http);
                proxies.find(|proxy| proxy.tag == tag)
            }
        }
    }

    fn path_to(&self, uri: &Uri) -> &Hop {
        match &self.0.paths {
            RoutePaths::One(hop) => hop,
            RoutePaths::ByUrl {
                https,
                http,
                direct,
                proxied,
            } => {
                let is_https = uri.scheme_str() == Some("https");
                let proxy = if is_https { https } else { http };
                let is_proxied = proxied.intercept(uri).is_some();
                proxy.as_ref().filter(|_| is_proxied).unwrap_or(direct)
            }
        }
    }
}

/// An outbound, ready to connect.
struct Hop {
    /// `None` without an outbound.
    tag: Option<Arc<str>>,
    protocol: HopProtocol,
    carrier: HopCarrier,
}

enum HopProtocol {
    Direct,
    Socks(SocksProxy),
    Http(Box<ConnectProxy>),
}

enum HopCarrier {
    Sockets(SocketOptions),
    Hop(Box<Hop>),
}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<OutboundStream, DialError>> + Send + 'a>>;

impl Hop {
    fn direct() -> Self {
        Self {
            tag: None,
            protocol: HopProtocol::Direct,
            carrier: HopCarrier::Sockets(SocketOptions::default()),
        }
    }

    fn new(outbound: &OutboundConfig, trust: &TrustRoots) -> Self {
        Self {
            tag: Some(outbound.tag.as_str().into()),
            protocol: match &outbound.protocol {
                OutboundProtocol::Direct => HopProtocol::Direct,
                OutboundProtocol::Socks(proxy) => HopProtocol::Socks(proxy.clone()),
                OutboundProtocol::Http(proxy) => {
                    HopProtocol::Http(Box::new(ConnectProxy::new(proxy, trust)))
                }
            },
            carrier: match &outbound.carrier {
                OutboundCarrier::Sockets(options) => HopCarrier::Sockets(options.clone()),
                OutboundCarrier::Outbound(outbound) => {
                    HopCarrier::Hop(Box::new(Self::new(outbound, trust)))
                }
            },
        }
    }

    fn check(&self) -> Result<(), (String, ProxyTlsError)> {
        if let HopProtocol::Http(proxy) = &self.protocol
            && let Err(error) = proxy.check()
        {
            return Err((self.tag.as_deref().unwrap_or_default().to_owned(), error));
        }
        match &self.carrier {
            HopCarrier::Sockets(_) => Ok(()),
            HopCarrier::Hop(hop) => hop.check(),
        }
    }

    /// Connects to `target`. Boxed, because it may connect through another outbound.
    fn connect<'a>(&'a self, target: &'a DialAddress, deadline: DialDeadline) -> Connecting<'a> {
        Box::pin(async move {
            let here = |failure: DialFailure| failure.at(self.tag.as_ref());
            match &self.protocol {
                HopProtocol::Direct => self.open(target, deadline).await,
                HopProtocol::Socks(proxy) => {
                    let server = DialAddress::of_proxy(&proxy.address);
                    let stream = self.open(&server, deadline).await?;
                    let step = format!("the SOCKS handshake with {server}");
                    let handshake = socks::handshake(stream, proxy, target);
                    deadline.bound(&step, handshake).await.map_err(here)
                }
                HopProtocol::Http(proxy) => {
                    let server = DialAddress::of_proxy(proxy.address());
                    let stream = self.open(&server, deadline).await?;
                    let stream = proxy.secure(stream, deadline).await.map_err(here)?;
                    let step = format!("the response of {server} to CONNECT");
                    let tunnel = proxy.tunnel(stream, target);
                    deadline.bound(&step, tunnel).await.map_err(here)
                }
            }
        })
    }

    /// Connects to `target` as this outbound reaches its own server.
    async fn open(
        &self,
        target: &DialAddress,
        deadline: DialDeadline,
    ) -> Result<OutboundStream, DialError> {
        match &self.carrier {
            HopCarrier::Hop(hop) => hop.connect(target, deadline).await,
            HopCarrier::Sockets(options) => {
                let connected = direct::connect(target, options, deadline).await;
                connected
                    .map(OutboundStream::from)
                    .map_err(|failure| failure.at(self.tag.as_ref()))
            }
        }
    }
}
