//! Certificates from an ACME server: each is obtained when there is none, and renewed before it
//! expires.
//!
//! Owns when that happens, and the sockets on which challenges are answered. Does not know how an
//! order is made. A new certificate is written to its file, and in use once the file is read like
//! any other. Invariant: at most one order of a certificate is open.

mod history;
mod http_challenges;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::history::CertificateOrders;
use self::http_challenges::HttpChallenges;
use super::certificates::{CertificateOrigin, CertificateState};
use super::stop::{REREAD_INTERVAL, StopSignal};
use crate::acme::{AcmeError, AcmeFetch, AcmeFetchError, ChallengeAnswer, issue};
use crate::config::{AcmeChallenge, AcmeConfig};
use crate::files::io_reason;
use crate::tls::{OpenAlpnChallenge, TlsServer};
use crate::upstream::{RequestBody, UpstreamClient};
use crate::values::clock::Timestamp;
use crate::values::headers::retry_after;
use crate::values::limits::{
    ACME_CHALLENGE_CONNECTIONS, ACME_REQUEST_TIMEOUT, ACME_RESPONSE_BYTES, ACME_RETRY_AFTER_MAX,
    ACME_VALIDATION_RETRY_MIN,
};

pub(super) use self::history::OrderHistories;

/// How often it is checked whether a renewal is due. The clock may have been set forward.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The pause after a connection to a port for challenges could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A certificate that an ACME server issues.
pub(super) struct CertificateToIssue {
    pub(super) config: AcmeConfig,
    /// The address on which ports for challenges are bound.
    pub(super) listen: IpAddr,
    /// As [`CertificateState::begin_issuing`] returned it.
    pub(super) issuing: u64,
    pub(super) orders: Arc<CertificateOrders>,
    pub(super) server: AcmePeer,
}

/// The ACME server, as requests reach it.
pub(super) struct AcmePeer {
    fetch: AcmeFetch,
    /// What its last refusal asked for.
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl AcmePeer {
    /// Sends requests by `client`.
    pub(super) fn new(client: UpstreamClient) -> Self {
        let noted = Arc::new(Mutex::new(None));
        let retry_after_noted = Arc::clone(&noted);
        let fetch: AcmeFetch = Arc::new(move |request: Request<Bytes>| {
            let (client, noted) = (client.clone(), Arc::clone(&noted));
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let request = Request::from_parts(head, RequestBody::buffered(Arc::from([body])));
                let response = client
                    .fetch(request, ACME_RESPONSE_BYTES, ACME_REQUEST_TIMEOUT)
                    .await
                    .map_err(|error| AcmeFetchError(error.to_string()))?;
                let is_refused = matches!(
                    response.status(),
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                );
                if is_refused {
                    let asked = retry_after(response.headers(), Timestamp::now());
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = asked;
                }
                Ok(response)
            })
        });
        Self {
            fetch,
            retry_after: retry_after_noted,
        }
    }

    /// Returns the pause that the server asked for since the last call, within the limit.
    fn take_retry_after(&self) -> Duration {
        let mut noted = self
            .retry_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        noted.take().unwrap_or_default().min(ACME_RETRY_AFTER_MAX)
    }
}

/// Obtains and renews the certificate until `stop`.
pub(super) async fn keep_issued(
    state: Arc<CertificateState>,
    certificate: CertificateToIssue,
    mut stop: StopSignal,
) {
    tokio::select! {
        () = renew(&state, &certificate) => {}
        () = stop.received() => {}
    }
}

async fn renew(state: &CertificateState, certificate: &CertificateToIssue) {
    let CertificateToIssue {
        issuing, orders, ..
    } = certificate;
    let mut need = CertificateNeed::of(state);
    let mut seen = orders.issued();
    let mut reported = None;
    loop {
        need.wait_until_due().await;
        let mut history = orders.turn().await;
        if orders.issued() != seen {
            // Another service obtained it, and this one has not read the file yet.
            seen = orders.issued();
            drop(history);
            need.wait_until_met().await;
            continue;
        }
        if let Some(next_at) = history.next_at() {
            let pause = next_at.saturating_duration_since(Instant::now());
            if let Some(reason) = history.failure().filter(|_| reported != Some(next_at)) {
                state.issue_failed(*issuing, reason, pause);
                reported = Some(next_at);
            }
            drop(history);
            sleep(pause).await;
            continue;
        }
        if !need.is_due() {
            continue;
        }
        let (reason, pause_min) = match order(certificate, &need.server).await {
            Ok(()) => {
                seen = orders.count_issued();
                state.issued(*issuing);
                need.wait_until_met().await;
                if !need.is_due() {
                    history.succeed(need.remaining());
                    continue;
                }
                (unusable_reason(state, &certificate.config), Duration::ZERO)
            }
            Err(FailedOrder { error, pause_min }) => {
                let field = &certificate.config.field;
                (
                    format!("{field}: certificate not issued: {error}"),
                    pause_min,
                )
            }
        };
        let pause = history.fail(&reason, pause_min);
        reported = history.next_at();
        state.issue_failed(*issuing, &reason, pause);
    }
}

/// Says why a certificate that was issued did not help.
fn unusable_reason(state: &CertificateState, config: &AcmeConfig) -> String {
    let field = &config.field;
    match state.rejection() {
        Some(reason) => format!("{field}: the issued certificate is not in use: {reason}"),
        None => format!(
            "{field}: the issued certificate is to be renewed at once: is the clock of this machine right?"
        ),
    }
}

/// Tells when a certificate must be issued.
struct CertificateNeed {
    server: watch::Receiver<Option<TlsServer>>,
    origin: watch::Receiver<CertificateOrigin>,
}

impl CertificateNeed {
    fn of(state: &CertificateState) -> Self {
        Self {
            server: state.server(),
            origin: state.origin(),
        }
    }

    /// Returns the time until the certificate that is in use must be renewed: none if there is none.
    fn remaining(&self) -> Duration {
        if *self.origin.borrow() == CertificateOrigin::Before {
            return Duration::ZERO;
        }
        let renew_at = self.server.borrow().as_ref().and_then(TlsServer::renew_at);
        let remaining = renew_at.map(|at| at.0.saturating_sub(Timestamp::now().0));
        Duration::from_millis(remaining.unwrap_or_default())
    }

    fn is_due(&self) -> bool {
        self.remaining().is_zero()
    }

    fn mark_unchanged(&mut self) {
        self.server.mark_unchanged();
        self.origin.mark_unchanged();
    }

    async fn wait_until_due(&mut self) {
        loop {
            self.mark_unchanged();
            let remaining = self.remaining();
            if remaining.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(remaining.min(CLOCK_INTERVAL)) => {}
                _ = self.server.changed() => {}
                _ = self.origin.changed() => {}
            }
        }
    }

    /// Waits for a certificate that was just issued: until its file is read, the old one is due all
    /// the same. Returns at the latest when the file has been read for certain.
    async fn wait_until_met(&mut self) {
        self.mark_unchanged();
        let met = async {
            while self.is_due() {
                tokio::select! {
                    // Whatever came is what the file has.
                    _ = self.server.changed() => return,
                    _ = self.origin.changed() => {}
                }
            }
        };
        let _ = timeout(REREAD_INTERVAL * 2, met).await;
    }
}

/// Why an order has no certificate, and how long the next one must wait for it.
struct FailedOrder {
    error: AcmeError,
    pause_min: Duration,
}

/// Obtains a certificate by the first challenge that succeeds.
async fn order(
    certificate: &CertificateToIssue,
    server: &watch::Receiver<Option<TlsServer>>,
) -> Result<(), FailedOrder> {
    let mut pause_min = certificate.server.take_retry_after();
    let mut last = None;
    for challenge in &certificate.config.challenges {
        let Err(error) = order_by(certificate, *challenge, server).await else {
            return Ok(());
        };
        pause_min = certificate.server.take_retry_after().max(pause_min);
        let is_final = match &error {
            AcmeError::NotOffered { .. } | AcmeError::NotValidated { .. } => {
                tracing::warn!(%error, "acme challenge failed");
                false
            }
            AcmeError::Unanswered { .. } => {
                tracing::warn!(%error, "acme challenge not tried");
                false
            }
            AcmeError::Server(_)
            | AcmeError::ExternalAccount { .. }
            | AcmeError::Key(_)
            | AcmeError::File { .. }
            | AcmeError::TimedOut => true,
        };
        if let AcmeError::NotValidated { .. } = &error {
            pause_min = pause_min.max(ACME_VALIDATION_RETRY_MIN);
        }
        last = Some(error);
        if is_final {
            break;
        }
    }
    // Each configuration has a challenge.
    last.map_or(Ok(()), |error| Err(FailedOrder { error, pause_min }))
}

async fn order_by(
    certificate: &CertificateToIssue,
    challenge: AcmeChallenge,
    server: &watch::Receiver<Option<TlsServer>>,
) -> Result<(), AcmeError> {
    let (config, listen) = (&certificate.config, certificate.listen);
    let fetch = Arc::clone(&certificate.server.fetch);
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
            let served = files.clone();
            let serve = move |stream| served.clone().serve(stream);
            accepting.spawn(serve_connections(bind(port).await?, serve));
            let present = |answer| match answer {
                ChallengeAnswer::Http {
                    token,
                    key_authorization,
                } => Ok(files.add(token, key_authorization)),
                ChallengeAnswer::TlsAlpn { .. } => {
                    unreachable!("only the challenge that was asked for is answered")
                }
            };
            issue(config, challenge, fetch, present).await
        }
        AcmeChallenge::TlsAlpn { port } => {
            if let Some(port) = port {
                let server = server.clone();
                // Other clients find nothing.
                let shake_hands = move |stream| {
                    let current = server.borrow().clone();
                    async move {
                        if let Some(current) = current {
                            let _ = current.accept(stream).await;
                        }
                    }
                };
                accepting.spawn(serve_connections(bind(port).await?, shake_hands));
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
            issue(config, challenge, fetch, present).await
        }
    }
}

/// Serves connections to a port that is open for challenges. Those that are too many are closed.
async fn serve_connections<S>(listener: TcpListener, serve: impl Fn(TcpStream) -> S)
where
    S: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                if connections.len() < ACME_CHALLENGE_CONNECTIONS {
                    connections.spawn(serve(stream));
                }
            }
            Err(error) => {
                tracing::debug!(error = io_reason(&error), "acme accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::config::UpstreamRoute;
    use crate::upstream::TrustRoots;
    use crate::values::limits::Limits;

    /// Returns the pause after a response with this status line and this `Retry-After`.
    async fn pause_after(status: &str, retry_after: &str) -> Duration {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let response =
            format!("HTTP/1.1 {status}\r\nretry-after: {retry_after}\r\ncontent-length: 0\r\n\r\n");
        let responding = async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let _ = stream.read(&mut [0; 1024]).await;
            stream
                .write_all(response.as_bytes())
                .await
                .expect("it is sent");
            // Until the client closes it.
            let _ = stream.read(&mut [0; 1024]).await;
        };
        let trust = TrustRoots::from_pem(b"");
        let client = UpstreamClient::new(&trust, &Limits::default(), &UpstreamRoute::Direct);
        let peer = AcmePeer::new(client);
        let request = Request::get(format!("http://{address}/")).body(Bytes::new());
        let requesting = (peer.fetch)(request.expect("a request"));
        tokio::select! {
            response = requesting => drop(response.expect("a response")),
            () = responding => unreachable!("the client waits for the response"),
        }
        let pause = peer.take_retry_after();
        assert_eq!(peer.take_retry_after(), Duration::ZERO);
        pause
    }

    #[tokio::test]
    async fn the_pause_that_a_refusal_asks_for_is_kept_within_a_day() {
        for (status, asked, expected_s) in [
            ("429 Too Many Requests", "7200", 7200),
            ("503 Service Unavailable", "7200", 7200),
            ("429 Too Many Requests", "864000", 86_400),
            // An order in progress: when to ask again, which is no refusal.
            ("200 OK", "7200", 0),
        ] {
            let pause = pause_after(status, asked).await;
            assert_eq!(pause, Duration::from_secs(expected_s), "{status}, {asked}");
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed_until_others_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        // Serves a connection until its client closes it.
        let serve = |mut stream: TcpStream| async move {
            let _ = stream.read(&mut [0]).await;
        };
        let mut accepting = JoinSet::new();
        accepting.spawn(serve_connections(listener, serve));
        let connect = async || TcpStream::connect(address).await.expect("a connection");
        let mut open = Vec::new();
        for _ in 0..ACME_CHALLENGE_CONNECTIONS {
            open.push(connect().await);
        }
        let is_closed = async |stream: &mut TcpStream| {
            timeout(Duration::from_millis(200), stream.read(&mut [0]))
                .await
                .is_ok()
        };
        assert!(is_closed(&mut connect().await).await);
        assert!(!is_closed(&mut open[0]).await);
        drop(open);
        let since = Instant::now();
        while is_closed(&mut connect().await).await {
            assert!(since.elapsed() < Duration::from_secs(10), "still closed");
        }
    }
}
