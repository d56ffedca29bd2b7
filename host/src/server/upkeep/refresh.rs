//! Refreshes of tokens: the transaction of `credentials`, the request of `upstream`, and the
//! process in which both run.
//!
//! `tollgate run` has each refresh done by a child process: a gateway that is killed between the
//! token endpoint's response and the write to disk would have spent the refresh token for nothing.
//! The child survives the gateway and writes it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::{OutboundConfig, UpstreamRoute};
use crate::credentials::{
    RefreshJob, RefreshOutcome, TokenRequestError, TokenResponse, refresh_tokens,
};
use crate::files::io_reason;
use crate::platform::in_own_group;
use crate::upstream::dial::Dialer;
use crate::upstream::{ConfiguredTrust, RequestBody, TrustRoots, UpstreamClient, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::headers::retry_after;
use crate::values::limits::{ANSWER_BYTES, Limits};

/// The `User-Agent` of the gateway's own requests.
pub(crate) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

/// How much longer than its own timeouts a child process may take before its outcome counts as
/// unknown. It is not killed.
const CHILD_SLACK: Duration = Duration::from_secs(15);

/// Bounds connecting, because Codex waits five seconds for the lock that is held meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The hidden command that does one refresh, as a [`RefreshRequest`] on its standard input says.
pub const COMMAND: &str = "refresh-credential";

/// The process in which refreshes run.
#[derive(Debug, Clone)]
pub enum RefreshProcess {
    /// This process. If it is killed during a refresh, the credential may need a new login.
    Current,
    /// A child process for each refresh: this program with [`COMMAND`].
    Child(PathBuf),
}

/// One refresh, as it is handed to the process that does it, over a pipe. Of secrets, it contains
/// only those of the outbound.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefreshRequest {
    job: RefreshJob,
    endpoint: String,
    /// The outbound to the endpoint, if there is one.
    outbound: Option<OutboundConfig>,
    connect_timeout: Duration,
    refresh_timeout: Duration,
    /// What the configuration adds to the platform's certificates.
    trust: ConfiguredTrust,
}

#[derive(Debug)]
pub(super) struct TokenRefresher {
    process: RefreshProcess,
    endpoint: Uri,
    limits: Arc<Limits>,
    trust: TrustRoots,
}

impl TokenRefresher {
    pub(super) fn new(
        process: RefreshProcess,
        endpoint: Uri,
        limits: &Arc<Limits>,
        trust: &TrustRoots,
    ) -> Self {
        Self {
            process,
            endpoint,
            limits: Arc::clone(limits),
            trust: trust.clone(),
        }
    }

    /// Does one refresh, over the route of `dialer`, and returns its outcome.
    pub(super) async fn refresh(&self, job: RefreshJob, dialer: &Dialer) -> RefreshOutcome {
        let limits = &self.limits;
        let request = RefreshRequest {
            job,
            endpoint: self.endpoint.to_string(),
            outbound: dialer.outbound_to(&self.endpoint).cloned(),
            // Half the time at most: only then can "not sent" be told from "not answered".
            connect_timeout: limits
                .connect_timeout
                .min(CONNECT_TIMEOUT)
                .min(limits.refresh_timeout / 2),
            refresh_timeout: limits.refresh_timeout,
            trust: self.trust.configured().clone(),
        };
        match &self.process {
            RefreshProcess::Current => run(request, &self.trust, limits).await,
            RefreshProcess::Child(program) => {
                let limit = limits.lock_timeout + limits.refresh_timeout + CHILD_SLACK;
                match timeout(limit, run_in_child(program, &request)).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(error)) => failed(format!("refresh process: {error}")),
                    Err(_) => failed("refresh process: timed out".to_owned()),
                }
            }
        }
    }
}

fn failed(reason: String) -> RefreshOutcome {
    RefreshOutcome::Failed {
        reason,
        retry_after: None,
    }
}

/// The child process did not report an outcome.
#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("{}", io_reason(.0))]
    Io(#[from] io::Error),
    #[error("no pipes to the child process")]
    NoPipes,
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("ended without an outcome ({0})")]
    Ended(ExitStatus),
}

async fn run_in_child(
    program: &Path,
    request: &RefreshRequest,
) -> Result<RefreshOutcome, ChildError> {
    let mut command = Command::new(program);
    command
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    // A signal to the gateway's process group must not end the child.
    let mut child = in_own_group(&mut command).spawn()?;
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(ChildError::NoPipes);
    };
    let text = Zeroizing::new(serde_json::to_vec(request)?);
    input.write_all(&text).await?;
    drop(input);
    let mut text = Vec::new();
    output.read_to_end(&mut text).await?;
    let status = child.wait().await?;
    serde_json::from_slice(&text).map_err(|_| ChildError::Ended(status))
}

/// Runs one refresh in this process, to its end.
pub async fn run_refresh(request: RefreshRequest) -> RefreshOutcome {
    let limits = Limits {
        connect_timeout: request.connect_timeout,
        ..Limits::default()
    };
    let trust = TrustRoots::with_configured(request.trust.clone());
    run(request, &trust, &limits).await
}

async fn run(request: RefreshRequest, trust: &TrustRoots, limits: &Limits) -> RefreshOutcome {
    // A new connection: if upstream closed an idle one at this moment, it would be unknown whether
    // the token was sent.
    let route = request
        .outbound
        .as_ref()
        .map_or(UpstreamRoute::Direct, |outbound| {
            UpstreamRoute::Outbound(Arc::new(outbound.clone()))
        });
    let upstream = UpstreamClient::new(trust, limits, &route);
    let handle = Handle::current();
    let refreshing = spawn_blocking(move || {
        let limit = request.refresh_timeout;
        refresh_tokens(&request.job, |body| {
            handle.block_on(request_tokens(&upstream, &request.endpoint, body, limit))
        })
    });
    refreshing
        .await
        .unwrap_or_else(|_| failed("the refresh panicked".to_owned()))
}

/// Sends the one request of a refresh to the token endpoint.
async fn request_tokens(
    upstream: &UpstreamClient,
    endpoint: &str,
    body: Zeroizing<Vec<u8>>,
    limit: Duration,
) -> Result<TokenResponse, TokenRequestError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(endpoint)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, AGENT)
        .body(RequestBody::buffered([Bytes::from_owner(body)].into()))
        .map_err(|error| TokenRequestError::NotSent(error.to_string()))?;
    let response = match upstream.fetch(request, ANSWER_BYTES, limit).await {
        Ok(response) => response,
        Err(error @ UpstreamError::Unreachable(_)) => {
            return Err(TokenRequestError::NotSent(format!(
                "the token endpoint: {error}"
            )));
        }
        Err(error) => {
            return Err(TokenRequestError::Lost(format!(
                "the token endpoint did not respond ({error})"
            )));
        }
    };
    Ok(TokenResponse {
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers(), Timestamp::now()),
        body: Zeroizing::new(response.into_body().to_vec()),
    })
}
