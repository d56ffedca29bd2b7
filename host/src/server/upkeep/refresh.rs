//! Refreshes, put together: the transaction of `credentials`, the request of `upstream`, and where both run.
//!
//! `tollgate run` has each refresh done by a process of its own: a gateway that is killed between the token endpoint's
//! answer and its writing would have spent a token for nothing, and the refreshing process lives on and writes it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Uri};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::credentials::{Answer, Job, NoAnswer, Outcome, refresh};
use crate::upstream::{RequestBody, Trust, Upstream, UpstreamError};
use crate::values::limits::{ANSWER_BYTES, Limits};

/// What this gateway calls itself.
pub(super) const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

/// What a refreshing process may take beyond its time-outs, before it is not waited for any more. It is never killed.
const SLACK: Duration = Duration::from_secs(15);

/// The lock is held meanwhile, and Codex waits for it for five seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The command by which the gateway's own program refreshes one file, as an [`Errand`] on its input says.
pub const COMMAND: &str = "refresh-credential";

/// Where refreshes are done.
#[derive(Debug, Clone)]
pub enum RefreshIn {
    /// In this process. If it is killed in the middle of one, the credential may need a new login.
    ThisProcess,
    /// Each in a process of its own: this program with [`COMMAND`].
    Child(PathBuf),
}

/// One refresh, as it is handed to the process that does it. It has no secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Errand {
    job: Job,
    endpoint: String,
    connect_timeout: Duration,
    refresh_timeout: Duration,
}

/// Does refreshes.
#[derive(Debug)]
pub(super) struct Refresher {
    place: RefreshIn,
    endpoint: Uri,
    limits: Arc<Limits>,
    trust: Trust,
}

impl Refresher {
    pub(super) fn new(
        place: RefreshIn,
        endpoint: Uri,
        limits: &Arc<Limits>,
        trust: &Trust,
    ) -> Self {
        Self {
            place,
            endpoint,
            limits: Arc::clone(limits),
            trust: trust.clone(),
        }
    }

    /// Does one.
    pub(super) async fn refresh(&self, job: Job) -> Outcome {
        let errand = Errand {
            job,
            endpoint: self.endpoint.to_string(),
            // What was not sent within half the time can be told from what was not answered.
            connect_timeout: self
                .limits
                .connect_timeout
                .min(CONNECT_TIMEOUT)
                .min(self.limits.refresh_timeout / 2),
            refresh_timeout: self.limits.refresh_timeout,
        };
        match &self.place {
            RefreshIn::ThisProcess => run(errand, &self.trust, &self.limits).await,
            RefreshIn::Child(program) => {
                let patience = self.limits.lock_timeout + self.limits.refresh_timeout + SLACK;
                match timeout(patience, by_child(program, &errand)).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(reason)) => failed(format!("the refreshing process: {reason}")),
                    Err(_) => failed("the refreshing process takes too long".to_owned()),
                }
            }
        }
    }
}

fn failed(reason: String) -> Outcome {
    Outcome::Failed {
        reason,
        retry_after: None,
    }
}

async fn by_child(program: &PathBuf, errand: &Errand) -> Result<Outcome, String> {
    let said = |error: std::io::Error| crate::files::plain(&error);
    let mut child = Command::new(program)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        // A signal to the gateway's group must not end it.
        .process_group(0)
        .spawn()
        .map_err(said)?;
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("it has no pipes".to_owned());
    };
    let text = serde_json::to_vec(errand).map_err(|error| error.to_string())?;
    input.write_all(&text).await.map_err(said)?;
    drop(input);
    let mut answer = Vec::new();
    output.read_to_end(&mut answer).await.map_err(said)?;
    let status = child.wait().await.map_err(said)?;
    serde_json::from_slice(&answer).map_err(|_| format!("it ended with {status}"))
}

/// Runs one refresh in this process, to its end.
pub async fn run_errand(errand: Errand) -> Outcome {
    let limits = Limits {
        connect_timeout: errand.connect_timeout,
        ..Limits::default()
    };
    run(errand, &Trust::of_the_platform(), &limits).await
}

async fn run(errand: Errand, trust: &Trust, limits: &Limits) -> Outcome {
    // A connection of its own: one that upstream closes at the same moment would leave open whether it was sent.
    let upstream = Upstream::new(trust, limits);
    let handle = Handle::current();
    let refreshing = spawn_blocking(move || {
        let Errand {
            job,
            endpoint,
            refresh_timeout,
            ..
        } = errand;
        refresh(&job, |body| {
            handle.block_on(ask(&upstream, &endpoint, body, refresh_timeout))
        })
    });
    refreshing
        .await
        .unwrap_or_else(|_| failed("it panicked".to_owned()))
}

async fn ask(
    upstream: &Upstream,
    endpoint: &str,
    body: Zeroizing<Vec<u8>>,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(endpoint)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, AGENT)
        .body(RequestBody::kept([Bytes::from_owner(body)].into()))
        .map_err(|error| NoAnswer::NotSent(error.to_string()))?;
    let response = match upstream.exchange(request, ANSWER_BYTES, limit).await {
        Ok(response) => response,
        Err(error @ UpstreamError::Unreachable(_)) => {
            return Err(NoAnswer::NotSent(format!("the token endpoint: {error}")));
        }
        Err(error) => {
            return Err(NoAnswer::Lost(format!(
                "the token endpoint gave no answer ({error})"
            )));
        }
    };
    Ok(Answer {
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers().get(RETRY_AFTER)),
        body: Zeroizing::new(response.into_body().to_vec()),
    })
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
pub(super) fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text)
        .ok()?
        .duration_since(SystemTime::now())
        .ok()
}
