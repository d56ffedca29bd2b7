//! Polls of a credential's usage. They run beside requests and delay none.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use serde_json::Value;

use super::refresh::AGENT;
use crate::credentials::{Credential, StartedPoll, UpstreamIdentity, UsageReport};
use crate::upstream::{RequestBody, UpstreamClient};
use crate::values::clock::Timestamp;
use crate::values::credential::windows::WindowReading;
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
        Err(PollFailure {
            reason,
            retry_after,
        }) => {
            tracing::debug!(credential = credential.tag(), reason, "poll failed");
            credential.record_poll_failure(poll, reason, retry_after, Timestamp::now());
        }
    }
}

struct PollFailure {
    reason: String,
    retry_after: Option<Duration>,
}

impl PollFailure {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry_after: None,
        }
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
        .map_err(|error| PollFailure::new(error.to_string()))?;
    let response = upstream.fetch(request, ANSWER_BYTES, limit).await;
    let response = response.map_err(|error| PollFailure::new(error.to_string()))?;
    let value = json(&response)?;
    match gateway {
        Some(_) => status(&value),
        None => usage(&value),
    }
}

fn json(response: &Response<Bytes>) -> Result<Value, PollFailure> {
    let status = response.status();
    if !status.is_success() {
        let is_limited = status == StatusCode::TOO_MANY_REQUESTS;
        let retry_after = is_limited
            .then(|| retry_after(response.headers(), Timestamp::now()))
            .flatten();
        return Err(PollFailure {
            reason: format!("answered {}", status.as_u16()),
            retry_after,
        });
    }
    let value = serde_json::from_slice(response.body())
        .ok()
        .filter(Value::is_object);
    value.ok_or_else(|| PollFailure::new("expected a JSON object, found something else"))
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
        return Err(PollFailure::new("expected rate-limit windows, found none"));
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
    let number = |name: &str| {
        status
            .get(name)
            .and_then(Value::as_f64)
            .filter(|number| *number >= 0.0)
    };
    let (Some(five_hour), Some(weekly)) = (
        number("five_hour_utilization"),
        number("weekly_utilization"),
    ) else {
        return Err(PollFailure::new(
            "expected five_hour_utilization and weekly_utilization",
        ));
    };
    let own_weight = number("plan_weight").filter(|weight| *weight > 0.0 && weight.is_finite());
    Ok(UsageReport {
        reading: WindowReading::from_percentages(five_hour, weekly),
        plan: None,
        own_weight,
    })
}
