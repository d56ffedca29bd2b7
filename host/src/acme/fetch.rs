//! Requests to an ACME server, by whatever client the caller has.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AcmeFetchError(pub(crate) String);

type FetchResult = Result<Response<Bytes>, AcmeFetchError>;

/// Sends a request and reads the whole response.
pub(crate) type AcmeFetch =
    Arc<dyn Fn(Request<Bytes>) -> Pin<Box<dyn Future<Output = FetchResult> + Send>> + Send + Sync>;

/// A client for the ACME library.
pub(super) struct AcmeHttp(pub(super) AcmeFetch);

impl HttpClient for AcmeHttp {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let fetch = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let response = fetch(Request::from_parts(head, body))
                .await
                .map_err(|error| Error::Other(Box::new(error)))?;
            let (parts, body) = response.into_parts();
            Ok(BytesResponse {
                parts,
                body: Box::new(body),
            })
        })
    }
}
