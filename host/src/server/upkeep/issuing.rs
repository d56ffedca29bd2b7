//! Certificates from an ACME server: each is obtained when there is none, and renewed before it
//! expires.
//!
//! Owns when that happens, and the sockets on which challenges are answered. Does not know how an
//! order is made. A new certificate is written to its file, and in use once the file is read like
//! any other. Invariant: at most one order of a service is open.

mod http_challenges;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::http_challenges::HttpChallenges;
use super::certificates::{CertificateState, CertificateToIssue};
use super::stop::{REREAD_INTERVAL, StopSignal};
use crate::acme::{AcmeError, AcmeFetch, AcmeFetchError, ChallengeAnswer, issue};
use crate::config::{AcmeChallenge, AcmeConfig};
use crate::files::io_reason;
use crate::tls::{OpenAlpnChallenge, TlsServer};
use crate::upstream::{RequestBody, UpstreamClient};
use crate::values::clock::Timestamp;
use crate::values::limits::{
    ACME_REQUEST_TIMEOUT, ACME_RESPONSE_BYTES, ACME_RETRY_MAX, ACME_RETRY_MIN,
};

/// How often it is checked whether a renewal is due. The clock may have been set forward.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Returns requests by `client`, for an ACME server.
pub(super) fn fetch_by(client: UpstreamClient) -> AcmeFetch {
    Arc::new(move |request: Request<Bytes>| {
        let client = client.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let request = Request::from_parts(head, RequestBody::buffered(Arc::from([body])));
            client
                .fetch(request, ACME_RESPONSE_BYTES, ACME_REQUEST_TIMEOUT)
                .await
                .map_err(|error| AcmeFetchError(error.to_string()))
        })
    })
}

/// Obtains and renews the certificate until `stop`.
pub(super) async fn keep_issued(
    state: Arc<CertificateState>,
    certificate: CertificateToIssue,
    fetch: AcmeFetch,
    mut stop: StopSignal,
) {
    tokio::select! {
        () = renew(&state, &certificate, &fetch) => {}
        () = stop.received() => {}
    }
}

async fn renew(state: &Arc<CertificateState>, certificate: &CertificateToIssue, fetch: &AcmeFetch) {
    let mut server = state.server();
    let mut pause = ACME_RETRY_MIN;
    loop {
        let due = time_until_due(&mut server);
        if !due.is_zero() {
            tokio::select! {
                () = sleep(due.min(CLOCK_INTERVAL)) => {}
                _ = server.changed() => {}
            }
            continue;
        }
        match issue_by_any(&certificate.config, certificate.listen, &server, fetch).await {
            Ok(()) => {
                state.issued(certificate.configuration);
                pause = ACME_RETRY_MIN;
                // Until the new file is read, the old certificate is due all the same.
                let _ = timeout(REREAD_INTERVAL * 2, server.changed()).await;
            }
            Err(error) => {
                let field = &certificate.config.field;
                let reason = format!("{field}: certificate not issued: {error}");
                state.issue_failed(certificate.configuration, reason, pause);
                sleep(pause).await;
                pause = (pause * 2).min(ACME_RETRY_MAX);
            }
        }
    }
}

/// Returns the time until the certificate that is in use must be renewed: none if there is none.
fn time_until_due(server: &mut watch::Receiver<Option<TlsServer>>) -> Duration {
    let renew_at = server
        .borrow_and_update()
        .as_ref()
        .and_then(TlsServer::renew_at);
    let remaining = renew_at.map(|at| at.0.saturating_sub(Timestamp::now().0));
    Duration::from_millis(remaining.unwrap_or_default())
}

/// Obtains a certificate by the first challenge that succeeds.
async fn issue_by_any(
    config: &AcmeConfig,
    listen: IpAddr,
    server: &watch::Receiver<Option<TlsServer>>,
    fetch: &AcmeFetch,
) -> Result<(), AcmeError> {
    let mut outcome = Ok(());
    for challenge in &config.challenges {
        outcome = issue_by(config, *challenge, listen, server, fetch).await;
        match &outcome {
            Err(error @ (AcmeError::NotOffered { .. } | AcmeError::NotValidated { .. })) => {
                tracing::warn!(%error, "acme challenge failed");
            }
            Err(error @ AcmeError::Unanswered { .. }) => {
                tracing::warn!(%error, "acme challenge not tried");
            }
            Ok(())
            | Err(
                AcmeError::Server(_)
                | AcmeError::Key(_)
                | AcmeError::File { .. }
                | AcmeError::TimedOut,
            ) => return outcome,
        }
    }
    outcome
}

async fn issue_by(
    config: &AcmeConfig,
    challenge: AcmeChallenge,
    listen: IpAddr,
    server: &watch::Receiver<Option<TlsServer>>,
    fetch: &AcmeFetch,
) -> Result<(), AcmeError> {
    let unanswered = |reason: String| AcmeError::Unanswered {
        challenge: challenge.name(),
        reason,
    };
    let bind = async |port: u16| {
        let address = SocketAddr::new(listen, port);
        TcpListener::bind(address).await.map_err(|error| {
            unanswered(format!("cannot listen on {address}: {}", io_reason(&error)))
        })
    };
    // Ends what accepts connections for the challenge.
    let mut accepting = JoinSet::new();
    match challenge {
        AcmeChallenge::Http { port } => {
            let files = HttpChallenges::default();
            accepting.spawn(files.clone().serve(bind(port).await?));
            let present = |answer| match answer {
                ChallengeAnswer::Http {
                    token,
                    key_authorization,
                } => Ok(files.add(token, key_authorization)),
                ChallengeAnswer::TlsAlpn { .. } => {
                    unreachable!("only the challenge that was asked for is answered")
                }
            };
            issue(config, challenge, Arc::clone(fetch), present).await
        }
        AcmeChallenge::TlsAlpn { port } => {
            if let Some(port) = port {
                accepting.spawn(accept_challenges(bind(port).await?, server.clone()));
            }
            let present = |answer| match answer {
                ChallengeAnswer::TlsAlpn { domain, digest } => {
                    OpenAlpnChallenge::open(&domain, digest)
                        .map_err(|error| unanswered(error.to_string()))
                }
                ChallengeAnswer::Http { .. } => {
                    unreachable!("only the challenge that was asked for is answered")
                }
            };
            issue(config, challenge, Arc::clone(fetch), present).await
        }
    }
}

/// Performs handshakes on a port that is there for challenges alone. Other clients find nothing.
async fn accept_challenges(listener: TcpListener, server: watch::Receiver<Option<TlsServer>>) {
    let mut handshakes = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while handshakes.try_join_next().is_some() {}
        let current = server.borrow().clone();
        if let Some(current) = current {
            handshakes.spawn(async move { current.accept(stream).await.is_ok() });
        }
    }
}
