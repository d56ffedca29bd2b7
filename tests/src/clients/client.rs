//! A client: requests as Codex and the SDKs send them, over HTTP/1.1 or HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// The longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A client of one service.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    http: Pooled<HttpConnector, Full<Bytes>>,
    headers: HeaderMap,
    version: Version,
}

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// An answer that was read to the end of its body.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status code.
    pub status: StatusCode,
    /// The header fields of the answer's head.
    pub headers: HeaderMap,
    /// The bytes of the body, as far as they arrived.
    pub body: Bytes,
    /// Whether the body ended in order.
    pub whole: bool,
}

impl Answer {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// Panics if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns a header field as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("a readable field"))
    }

    /// Returns the request's id in the ledger.
    pub fn request_id(&self) -> String {
        self.header("x-tollgate-request-id")
            .expect("every answer is named")
            .to_owned()
    }
}

/// An answer whose body has not been read.
pub struct Stream {
    /// The HTTP status code.
    pub status: StatusCode,
    /// The header fields of the answer's head.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Stream {
    /// Creates the answer of which only the head has been read.
    pub(crate) fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        Stream {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    /// Returns the next part of the body, or `None` at its end.
    ///
    /// # Errors
    /// Returns an error if the body broke off.
    pub async fn part(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = timeout(ANSWER_MAX, self.body.frame())
            .await
            .expect("a part in time")?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Reads until `text` has been read. Returns everything read.
    ///
    /// # Panics
    /// Panics if the body ends before.
    pub async fn until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let part = self
                .part()
                .await
                .unwrap_or_else(|| panic!("the body ended without {text:?}: {read}"));
            read.push_str(&String::from_utf8_lossy(&part.expect("the body continues")));
        }
        read
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Answer {
        let mut body = Vec::new();
        let mut whole = true;
        while let Some(part) = self.part().await {
            match part {
                Ok(part) => body.extend_from_slice(&part),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Answer {
            status: self.status,
            headers: self.headers,
            body: body.into(),
            whole,
        }
    }
}

impl Client {
    /// Creates a client of the service at `address`, over HTTP/1.1 and without a token.
    pub fn new(address: SocketAddr) -> Self {
        let http = Pooled::builder(TokioExecutor::new()).build_http();
        Self {
            address,
            http,
            headers: HeaderMap::new(),
            version: Version::Http1,
        }
    }

    /// Returns this client over HTTP/2 by prior knowledge.
    pub fn http2(&self) -> Self {
        let http = Pooled::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http();
        Self {
            http,
            version: Version::Http2,
            ..self.clone()
        }
    }

    /// Returns the service's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Returns this client with a bearer token.
    pub fn token(&self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Returns this client with a further header field on each request.
    pub fn header(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client
            .headers
            .append(name, value.parse().expect("a field's value"));
        client
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Errors
    /// Returns an error if there is no answer.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Stream, hyper_util::client::legacy::Error> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://{}{path}", self.address)
            .parse()
            .expect("a path");
        *request.headers_mut() = self.headers.clone();
        let response = timeout(ANSWER_MAX, self.http.request(request))
            .await
            .expect("an answer in time")?;
        Ok(Stream::of(response))
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Panics
    /// Panics if there is no answer.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Stream {
        self.try_send(method, path, body)
            .await
            .unwrap_or_else(|error| panic!("no answer: {error:?}"))
    }

    /// Sends a request and reads its whole answer.
    pub async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(method, path, body).await.finish().await
    }

    /// Sends a GET for `path` and reads the whole answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "").await
    }

    /// Sends a turn whose response is cut off. Its head can be lost with the rest: over HTTP/2,
    /// upstream's head and reset can arrive together.
    ///
    /// # Panics
    /// Panics if the response is whole.
    pub async fn turn_cut_off(&self, body: &Value) {
        let client = self.header("content-type", "application/json");
        let sent = client.try_send(Method::POST, "/v1/responses", body.to_string());
        if let Ok(stream) = sent.await {
            assert!(!stream.finish().await.whole, "the response is whole");
        }
    }

    /// POSTs `body` to `/v1/responses` and reads the whole answer.
    pub async fn turn(&self, body: &Value) -> Answer {
        self.start_turn(body).await.finish().await
    }

    /// POSTs `body` to `/v1/responses`.
    pub async fn start_turn(&self, body: &Value) -> Stream {
        let client = self.header("content-type", "application/json");
        client
            .send(Method::POST, "/v1/responses", body.to_string())
            .await
    }
}
