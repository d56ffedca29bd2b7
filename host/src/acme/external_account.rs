//! The key of the external account that an ACME account belongs to (RFC 8555, section 7.3.4): the
//! configured one, or a new one from ZeroSSL for an e-mail address.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use instant_acme::ExternalAccountKey;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::AcmeError;
use super::fetch::AcmeFetch;
use crate::config::ExternalAccount;

/// Where ZeroSSL issues keys of external accounts.
const ZERO_SSL_KEYS: &str = "https://api.zerossl.com/acme/eab-credentials-email";

/// Returns the key of `account`. Each call for an e-mail address has another one issued.
pub(super) async fn external_key(
    account: &ExternalAccount,
    fetch: &AcmeFetch,
) -> Result<ExternalAccountKey, AcmeError> {
    let (key_id, mac_key) = match account {
        ExternalAccount::Known { key_id, mac_key } => {
            // The configuration was checked: it is base64url.
            let key = URL_SAFE_NO_PAD.decode(mac_key.expose());
            (key_id.clone(), Zeroizing::new(key.unwrap_or_default()))
        }
        ExternalAccount::IssuedFor { email } => issued_key(email, fetch).await?,
    };
    Ok(ExternalAccountKey::new(key_id, &mac_key))
}

/// The response of ZeroSSL.
#[derive(Deserialize)]
struct IssuedKey {
    eab_kid: Option<String>,
    eab_hmac_key: Option<Zeroizing<String>>,
    error: Option<IssueRejection>,
}

/// Why ZeroSSL issues no key.
#[derive(Deserialize)]
struct IssueRejection {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Has ZeroSSL issue a key for `email`, and returns its identifier and the key itself.
async fn issued_key(
    email: &str,
    fetch: &AcmeFetch,
) -> Result<(String, Zeroizing<Vec<u8>>), AcmeError> {
    let failed = |reason: String| AcmeError::ExternalAccount { reason };
    let form = format!("email={}", utf8_percent_encode(email, NON_ALPHANUMERIC));
    let request = Request::builder()
        .method(Method::POST)
        .uri(ZERO_SSL_KEYS)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from(form))
        .map_err(|error| failed(error.to_string()))?;
    let response = fetch(request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let status = response.status();
    let issued: IssuedKey = serde_json::from_slice(response.body())
        .map_err(|_| failed(format!("status {status} without the expected JSON")))?;
    if let (Some(key_id), Some(mac_key)) = (issued.eab_kid, issued.eab_hmac_key)
        && let Ok(key) = URL_SAFE_NO_PAD.decode(mac_key.trim_end_matches('='))
    {
        return Ok((key_id, Zeroizing::new(key)));
    }
    match issued.error.and_then(|error| error.kind) {
        Some(kind) => Err(failed(format!("status {status}, error {kind:?}"))),
        None => Err(failed(format!("status {status} without a key"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::Response;

    use super::*;

    /// Returns what is answered with `body`, and the requests that it gets.
    fn answering(status: u16, body: &'static str) -> (AcmeFetch, Arc<Mutex<Vec<Request<Bytes>>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&seen);
        let fetch: AcmeFetch = Arc::new(move |request| {
            requests.lock().expect("no panic").push(request);
            Box::pin(async move {
                let body = Bytes::from_static(body.as_bytes());
                let mut response = Response::new(body);
                *response.status_mut() = status.try_into().expect("a status");
                Ok(response)
            })
        });
        (fetch, seen)
    }

    #[tokio::test]
    async fn zerossl_issues_a_key_for_an_e_mail_address() {
        let (fetch, seen) = answering(
            200,
            r#"{"success": true, "eab_kid": "kid-1", "eab_hmac_key": "c2VjcmV0LWtleQ"}"#,
        );
        let (key_id, key) = issued_key("ops+a@example.com", &fetch)
            .await
            .expect("a key");
        assert_eq!(
            (key_id.as_str(), key.as_slice()),
            ("kid-1", &b"secret-key"[..])
        );
        let seen = seen.lock().expect("no panic");
        let request = seen.first().expect("a request");
        assert_eq!(request.method(), Method::POST);
        assert_eq!(
            request.uri(),
            "https://api.zerossl.com/acme/eab-credentials-email"
        );
        assert_eq!(
            request.headers()[CONTENT_TYPE],
            "application/x-www-form-urlencoded"
        );
        assert_eq!(&request.body()[..], b"email=ops%2Ba%40example%2Ecom");
    }

    #[tokio::test]
    async fn a_response_without_a_key_fails_with_its_reason() {
        for (status, body, expected) in [
            (
                200,
                r#"{"success": false, "error": {"code": 2800, "type": "invalid_email"}}"#,
                "status 200 OK, error \"invalid_email\"",
            ),
            (200, r#"{"success": true}"#, "status 200 OK without a key"),
            (
                503,
                "<html>",
                "status 503 Service Unavailable without the expected JSON",
            ),
        ] {
            let (fetch, _) = answering(status, body);
            let error = issued_key("ops@example.com", &fetch)
                .await
                .expect_err("no key");
            assert!(error.to_string().ends_with(expected), "{error}");
        }
    }
}
