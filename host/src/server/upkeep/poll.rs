//! Polls of a credential's usage. They run beside requests and delay none.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use serde_json::Value;

use super::refresh::AGENT;
use crate::credentials::{Credential, PollFailure, StartedPoll, UpstreamIdentity, UsageReport};
use crate::upstream::{RequestBody, UpstreamClient, UpstreamError};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::{SlotReading, WindowReading};
use crate::values::headers::retry_after;
use crate::values::limits::ANSWER_BYTES;

/// Polls once, and passes the result to the credential.
pub(super) async fn poll(
    credential: &Credential,
    poll: &StartedPoll,
    upstream: &UpstreamClient,
    chatgpt: &str,
    limit: Duration,
) {
    match request_usage(credential, poll.presented(), upstream, chatgpt, limit).await {
        Ok(report) => credential.record_poll(poll, &report, Timestamp::now()),
        Err(failure) => {
            log_failure(credential.tag(), &failure);
            credential.record_poll_failure(poll, failure, Timestamp::now());
        }
    }
}

fn log_failure(credential: &str, failure: &PollFailure) {
    match failure {
        PollFailure::Unreachable { reason } | PollFailure::Failed { reason, .. } => {
            tracing::debug!(credential, reason, "poll failed");
        }
        PollFailure::Rejected { reason } => {
            tracing::warn!(credential, reason, "polls stopped: token rejected");
        }
    }
}

fn failed(reason: impl Into<String>) -> PollFailure {
    PollFailure::Failed {
        reason: reason.into(),
        retry_after: None,
    }
}

async fn request_usage(
    credential: &Credential,
    identity: &UpstreamIdentity,
    upstream: &UpstreamClient,
    chatgpt: &str,
    limit: Duration,
) -> Result<UsageReport, PollFailure> {
    let gateway = credential.external_base().map(|url| url.to_string());
    let uri = match &gateway {
        Some(url) => format!("{}/ocm/v1/status", url.trim_end_matches('/')),
        None => format!("{}/wham/usage", chatgpt.trim_end_matches('/')),
    };
    let mut request = Request::builder()
        .uri(uri)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, AGENT)
        .header(AUTHORIZATION, identity.authorization().clone());
    if let Some(account) = identity.account_id() {
        request = request.header("chatgpt-account-id", account.clone());
    }
    let request = request
        .body(RequestBody::buffered([].into()))
        .map_err(|error| failed(error.to_string()))?;
    let response = upstream.fetch(request, ANSWER_BYTES, limit).await;
    let response = response.map_err(|error| match error {
        UpstreamError::Unreachable(error) => PollFailure::Unreachable {
            reason: error.to_string(),
        },
        error => failed(error.to_string()),
    })?;
    match gateway {
        Some(_) if is_rejected(response.status()) => Err(PollFailure::Rejected {
            reason: format!(
                "answered {}: not polled again until the credential changes or connects again",
                response.status().as_u16()
            ),
        }),
        Some(_) => status(&json(&response)?),
        None => usage(&json(&response)?),
    }
}

/// Whether another gateway rejects the token, which no later poll changes.
fn is_rejected(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

fn json(response: &Response<Bytes>) -> Result<Value, PollFailure> {
    let status = response.status();
    if !status.is_success() {
        let is_limited = status == StatusCode::TOO_MANY_REQUESTS;
        let retry_after = is_limited
            .then(|| retry_after(response.headers(), Timestamp::now()))
            .flatten();
        return Err(PollFailure::Failed {
            reason: format!("answered {}", status.as_u16()),
            retry_after,
        });
    }
    let value = serde_json::from_slice(response.body())
        .ok()
        .filter(Value::is_object);
    value.ok_or_else(|| failed("expected a JSON object, found something else"))
}

/// Reads `wham/usage` of the ChatGPT backend.
fn usage(usage: &Value) -> Result<UsageReport, PollFailure> {
    let plan = usage
        .get("plan_type")
        .and_then(Value::as_str)
        .filter(|plan| is_name(plan));
    let rate_limit = usage.get("rate_limit").unwrap_or(&Value::Null);
    let reading = WindowReading::from_usage(rate_limit);
    // A plan without limits has `null` here.
    if reading.is_empty() && !(rate_limit.is_null() && plan.is_some()) {
        return Err(failed("expected rate-limit windows, found none"));
    }
    Ok(UsageReport {
        reading,
        plan: plan.map(str::to_owned),
        own_weight: None,
    })
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads `ocm/v1/status` of another gateway.
fn status(status: &Value) -> Result<UsageReport, PollFailure> {
    let number = |name: &str| status.get(name).and_then(Value::as_f64);
    let window = |used: &str, reset: &str| SlotReading {
        used_percent: number(used),
        window_minutes: None,
        // 0 means that none is known.
        reset_at: number(reset).filter(|reset| *reset > 0.0),
    };
    let windows = [
        window("five_hour_utilization", "five_hour_reset"),
        window("weekly_utilization", "weekly_reset"),
    ];
    let is_used_known = |window: &SlotReading| window.used_percent.is_some_and(|used| used >= 0.0);
    if !windows.iter().all(is_used_known) {
        return Err(failed(
            "expected five_hour_utilization and weekly_utilization",
        ));
    }
    let own_weight = number("plan_weight").filter(|weight| *weight > 0.0 && weight.is_finite());
    Ok(UsageReport {
        reading: WindowReading::from_slots(windows),
        plan: None,
        own_weight,
    })
}
