//! The responses to the challenge HTTP-01 (RFC 8555, section 8.3): files on a port that is open
//! while an order is.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::values::limits::ACME_REQUEST_TIMEOUT;

/// The folder in which a certificate authority looks for its file.
const FOLDER: &str = "/.well-known/acme-challenge/";

/// The files of open challenges, by their names.
#[derive(Debug, Clone, Default)]
pub(super) struct HttpChallenges(Arc<Mutex<HashMap<String, String>>>);

/// A file that exists until this is dropped.
#[derive(Debug)]
pub(super) struct ChallengeFile {
    files: HttpChallenges,
    token: String,
}

impl Drop for ChallengeFile {
    fn drop(&mut self) {
        self.files.lock().remove(&self.token);
    }
}

impl HttpChallenges {
    /// Adds a file with this name and content.
    pub(super) fn add(&self, token: String, content: String) -> ChallengeFile {
        self.lock().insert(token.clone(), content);
        ChallengeFile {
            files: self.clone(),
            token,
        }
    }

    /// Serves the files on one connection.
    pub(super) async fn serve(self, stream: TcpStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            let response = self.respond(request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(ACME_REQUEST_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    fn respond(&self, path: &str) -> Response<Full<Bytes>> {
        let token = path.strip_prefix(FOLDER);
        let content = token.and_then(|token| self.lock().get(token).cloned());
        let (status, content) = match content {
            Some(content) => (StatusCode::OK, content),
            None => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(Full::new(Bytes::from(content)));
        *response.status_mut() = status;
        response
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
