//! HTTP CONNECT (RFC 9110, section 9.3.6), over a connection to the proxy.

use std::error::Error;
use std::pin::pin;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use zeroize::Zeroizing;

use super::error::{DialFailure, ProxyTlsError};
use super::proxy_tls::ProxyTlsClient;
use super::stream::OutboundStream;
use super::target::{DialAddress, DialDeadline};
use crate::config::{HttpProxy, ProxyAddress, ProxyLogin};
use crate::upstream::trust::TrustRoots;
use crate::values::limits::PROXY_HEAD_BYTES;

type ProxyIo = TokioIo<OutboundStream>;

/// An HTTP proxy, ready for requests.
pub(super) struct ConnectProxy {
    address: ProxyAddress,
    path: Option<String>,
    /// The fields of its requests, without `Host` unless the configuration sets it.
    headers: HeaderMap,
    tls: Option<Result<ProxyTlsClient, ProxyTlsError>>,
}

impl ConnectProxy {
    pub(super) fn new(proxy: &HttpProxy, trust: &TrustRoots) -> Self {
        let mut headers = HeaderMap::new();
        for header in &proxy.headers {
            // The configuration was checked for names and values that cannot be sent.
            if let (Ok(name), Some(value)) = (
                HeaderName::try_from(header.name.as_str()),
                sensitive(header.value.expose()),
            ) {
                headers.append(name, value);
            }
        }
        if let Some(value) = proxy.login.as_ref().and_then(basic) {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        let tls = proxy.tls.as_ref();
        Self {
            address: proxy.address.clone(),
            path: proxy.path.clone(),
            headers,
            tls: tls.map(|tls| ProxyTlsClient::new(tls, trust)),
        }
    }

    pub(super) fn address(&self) -> &ProxyAddress {
        &self.address
    }

    /// # Errors
    /// The TLS settings cannot be used.
    pub(super) fn check(&self) -> Result<(), ProxyTlsError> {
        match &self.tls {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Does the TLS handshake with the proxy at the other end of `stream`, if it speaks TLS.
    ///
    /// # Errors
    /// The handshake failed.
    pub(super) async fn secure(
        &self,
        stream: OutboundStream,
        deadline: DialDeadline,
    ) -> Result<OutboundStream, DialFailure> {
        match &self.tls {
            None => Ok(stream),
            Some(Err(error)) => Err(error.clone().into()),
            Some(Ok(tls)) => {
                let step = format!("TLS with {}", tls.server_name());
                deadline.bound(&step, tls.connect(stream)).await
            }
        }
    }

    /// Asks the proxy at the other end of `stream` for a connection to `target`.
    ///
    /// # Errors
    /// The proxy refused, or does not speak HTTP.
    pub(super) async fn tunnel(
        &self,
        stream: OutboundStream,
        target: &DialAddress,
    ) -> Result<OutboundStream, DialFailure> {
        let failed = |error: &hyper::Error| failure(error, target);
        let request = self.request(target)?;
        let (mut sender, connection) = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(PROXY_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let connection = connection.without_shutdown();
        let (response, parts) = exchange(&mut sender, connection, request).await;
        let response = response.map_err(|error| failed(&error))?;
        let status = response.status();
        if !makes_tunnel(status) {
            return Err(DialFailure::ConnectRefused {
                target: target.to_string(),
                status: status.as_u16(),
                hint: hint(&response),
            });
        }
        match parts {
            Some(Ok(Parts { io, read_buf, .. })) => Ok(io.into_inner().with_early(read_buf)),
            Some(Err(error)) => Err(failed(&error)),
            None => Err(DialFailure::ProxyClosed),
        }
    }

    fn request(&self, target: &DialAddress) -> Result<Request<Empty<Bytes>>, DialFailure> {
        let unsendable = || DialFailure::Other(format!("{target} cannot be sent to an HTTP proxy"));
        let authority = target.to_string();
        let uri: Uri = match &self.path {
            Some(path) => path.parse().map_err(|_| unsendable())?,
            None => authority.parse().map_err(|_| unsendable())?,
        };
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        request.headers_mut().clone_from(&self.headers);
        if !self.headers.contains_key(HOST) {
            let host = HeaderValue::try_from(authority).map_err(|_| unsendable())?;
            request.headers_mut().insert(HOST, host);
        }
        Ok(request)
    }
}

type ProxyResponse = hyper::Result<Response<Incoming>>;

/// Sends the only request on a connection. Returns the response's head and, if that makes the
/// connection a tunnel, the connection itself.
async fn exchange(
    sender: &mut SendRequest<Empty<Bytes>>,
    connection: impl Future<Output = hyper::Result<Parts<ProxyIo>>>,
    request: Request<Empty<Bytes>>,
) -> (ProxyResponse, Option<hyper::Result<Parts<ProxyIo>>>) {
    let mut connection = pin!(connection);
    let mut response = pin!(sender.send_request(request));
    let mut parts = None;
    let response = loop {
        tokio::select! {
            biased;
            response = &mut response => break response,
            ended = &mut connection, if parts.is_none() => parts = Some(ended),
        }
    };
    let is_tunnel = response
        .as_ref()
        .is_ok_and(|response| makes_tunnel(response.status()));
    if is_tunnel && parts.is_none() {
        parts = Some(connection.await);
    }
    match (response, parts) {
        // The connection's error is the cause of the request's.
        (Err(_), Some(Err(error))) => (Err(error), None),
        (response, parts) => (response, parts),
    }
}

/// Whether a response to CONNECT makes its connection a tunnel. hyper does not expect one after 204.
fn makes_tunnel(status: StatusCode) -> bool {
    status.is_success() && status != StatusCode::NO_CONTENT
}

fn hint(response: &Response<Incoming>) -> &'static str {
    match response.status() {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if offers_basic(response.headers()) => {
            ": it expects another login (username, password)"
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            ": it expects another kind of login than Basic, which is not supported"
        }
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            ": it does not support CONNECT"
        }
        StatusCode::FORBIDDEN => ": its rules do not allow this host or port",
        _ => "",
    }
}

/// Whether a proxy accepts a login by the scheme Basic: it offers that, or names no scheme.
fn offers_basic(headers: &HeaderMap) -> bool {
    let mut challenges = headers.get_all(PROXY_AUTHENTICATE).iter().peekable();
    challenges.peek().is_none()
        || challenges.any(|challenge| {
            let text = String::from_utf8_lossy(challenge.as_bytes()).to_ascii_lowercase();
            text.split(',')
                .any(|part| part.split_whitespace().next() == Some("basic"))
        })
}

fn failure(error: &hyper::Error, target: &DialAddress) -> DialFailure {
    let is_of_io = error
        .source()
        .is_some_and(|source| source.is::<std::io::Error>());
    let has_ended = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    if is_of_io || has_ended {
        return DialFailure::ProxyClosed;
    }
    DialFailure::NotHttp {
        target: target.to_string(),
        reason: error.to_string(),
    }
}

fn basic(login: &ProxyLogin) -> Option<HeaderValue> {
    let (username, password) = (login.username.expose(), login.password.expose());
    let plain = Zeroizing::new(format!("{username}:{password}"));
    let encoded = Zeroizing::new(BASE64_STANDARD.encode(plain.as_bytes()));
    let value = Zeroizing::new(format!("Basic {}", encoded.as_str()));
    sensitive(&value)
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}
