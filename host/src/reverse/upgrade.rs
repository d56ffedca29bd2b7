//! The upgrade by which a reverse connection begins, as the connecting gateway sends it.
//!
//! Does not know how the connection was made. Invariant: no error contains the token or text of the
//! peer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Uri;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::values::secret::SecretString;

/// The path of the upgrade.
pub const REVERSE_PATH: &str = "/ocm/v1/reverse";

/// The protocol that the upgrade names.
pub const REVERSE_PROTOCOL: &str = "reverse-proxy";

/// The largest head of a response.
const HEAD_BYTES: usize = 16 * 1024;

/// How a response begins that accepts the upgrade.
const ACCEPTED: &[u8] = b"HTTP/1.1 101";

/// Why the other gateway did not accept the upgrade.
#[derive(Debug, thiserror::Error)]
pub enum ReverseUpgradeError {
    /// The connection broke before the response.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The other side ended the connection without a response.
    #[error("the connection was closed without a response")]
    Closed,
    /// The response is no HTTP, or too long.
    #[error("expected a response of HTTP/1.1, found something else")]
    NotHttp,
    /// The other gateway refused.
    #[error("answered {0}, expected 101")]
    Refused(u16),
    /// No response came in time.
    #[error("no response in time")]
    TimedOut,
}

/// Asks the gateway at `url` to reverse the connection `io`, within `limit`. Returns what was read
/// beyond its response, which belongs to the session.
///
/// # Errors
/// The gateway did not accept it.
pub async fn ask_to_reverse<I>(
    io: &mut I,
    url: &Uri,
    token: &SecretString,
    limit: Duration,
) -> Result<Bytes, ReverseUpgradeError>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let asking = async {
        io.write_all(request(url, token).as_bytes()).await?;
        io.flush().await?;
        read_response(io).await
    };
    timeout(limit, asking)
        .await
        .unwrap_or(Err(ReverseUpgradeError::TimedOut))
}

/// Returns exactly the fields that sing-box sends and expects.
fn request(url: &Uri, token: &SecretString) -> Zeroizing<String> {
    let host = url.authority().map_or("", |authority| authority.as_str());
    let folder = url.path().trim_end_matches('/');
    Zeroizing::new(format!(
        "GET {folder}{REVERSE_PATH} HTTP/1.1\r\n\
         Host: {host}\r\n\
         Connection: Upgrade\r\n\
         Upgrade: {REVERSE_PROTOCOL}\r\n\
         Authorization: Bearer {}\r\n\r\n",
        token.expose()
    ))
}

async fn read_response<I: AsyncRead + Unpin>(io: &mut I) -> Result<Bytes, ReverseUpgradeError> {
    let mut read = BytesMut::with_capacity(1024);
    let end = loop {
        if let Some(at) = memchr::memmem::find(&read, b"\r\n\r\n") {
            break at + 4;
        }
        if read.len() > HEAD_BYTES {
            return Err(ReverseUpgradeError::NotHttp);
        }
        if io.read_buf(&mut read).await? == 0 {
            return Err(match read.is_empty() {
                true => ReverseUpgradeError::Closed,
                false => ReverseUpgradeError::NotHttp,
            });
        }
    };
    let head = read.split_to(end);
    if head.starts_with(ACCEPTED) {
        return Ok(read.freeze());
    }
    match status(&head) {
        Some(status) => Err(ReverseUpgradeError::Refused(status)),
        None => Err(ReverseUpgradeError::NotHttp),
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(line.get(2..5)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn answered(response: &str) -> Result<Bytes, ReverseUpgradeError> {
        let (mut one, mut other) = duplex(1024 * 1024);
        other.write_all(response.as_bytes()).await.expect("room");
        other.shutdown().await.expect("ended");
        let url = "https://gateway.example:8443/team".parse().expect("a URL");
        let token = SecretString::new("token-T".to_owned());
        let read = ask_to_reverse(&mut one, &url, &token, Duration::from_secs(20)).await;
        drop(one);
        let mut request = String::new();
        other.read_to_string(&mut request).await.expect("text");
        assert_eq!(
            request,
            "GET /team/ocm/v1/reverse HTTP/1.1\r\nHost: gateway.example:8443\r\n\
             Connection: Upgrade\r\nUpgrade: reverse-proxy\r\n\
             Authorization: Bearer token-T\r\n\r\n"
        );
        read
    }

    #[tokio::test]
    async fn what_follows_the_101_is_kept() {
        let response = "HTTP/1.1 101 Whatever\r\nX-Field: ignored\r\n\r\nframes";
        assert_eq!(answered(response).await.expect("accepted"), "frames");
    }

    #[tokio::test]
    async fn other_responses_are_refusals() {
        let refused = answered("HTTP/1.1 401 Unauthorized\r\n\r\n").await;
        assert!(matches!(refused, Err(ReverseUpgradeError::Refused(401))));
        assert!(matches!(
            answered("").await,
            Err(ReverseUpgradeError::Closed)
        ));
        for garbage in ["HTTP/1.1 101", "SSH-2.0\r\n\r\n", "HTTP/1.1 \r\n\r\n"] {
            let refused = answered(garbage).await;
            assert!(
                matches!(refused, Err(ReverseUpgradeError::NotHttp)),
                "{garbage:?}"
            );
        }
        let endless = answered(&"x".repeat(HEAD_BYTES * 2)).await;
        assert!(matches!(endless, Err(ReverseUpgradeError::NotHttp)));
    }
}
