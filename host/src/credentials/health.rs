//! A credential's condition, as `tollgate status` and the admin API report it.

use std::path::Path;

use serde::Serialize;

use super::credential::Credential;
use super::identity::{CredentialKind, UpstreamIdentity};
use super::state::{CredentialLoadError, CredentialState};
use crate::config::WindowCaps;
use crate::values::clock::Timestamp;
use crate::values::credential::windows::WindowKind;

/// The most important thing to know about a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CredentialCondition {
    /// Its file was not read yet.
    Loading,
    /// Requests can be sent with it.
    Ready,
    /// Its tokens are being refreshed.
    Refreshing,
    /// Upstream refuses it (429).
    RateLimited {
        /// The end, in Unix milliseconds.
        until: u64,
        /// The window that is exhausted, if upstream says which.
        window: Option<WindowKind>,
    },
    /// Its use reached a cap: the rest is its owner's.
    Paused {
        /// The window that reached its cap.
        window: WindowKind,
        /// The end, in Unix milliseconds, if it is known.
        until: Option<u64>,
    },
    /// The operator must log in again.
    LoginNeeded {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// Its access token has expired and the last refresh failed; another attempt follows.
    CannotRefresh {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
    /// The other gateway is not connected.
    NotConnected,
    /// Its file cannot be used.
    Unreadable {
        /// A sentence for the operator, without any secret.
        reason: String,
    },
}

/// A window, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowHealth {
    /// The used share, if it is known.
    pub used: Option<f64>,
    /// The share at which the credential is not used any more.
    pub cap: f64,
    /// When the window resets, in Unix milliseconds, if it is known.
    pub resets_at: Option<u64>,
}

/// A credential's condition and the figures behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CredentialHealth {
    /// The tag, unique in its service.
    pub credential: String,
    /// What it is; `None` while it is not loaded.
    pub kind: Option<CredentialKind>,
    /// The most important thing to know.
    #[serde(flatten)]
    pub condition: CredentialCondition,
    /// Whether a request can be sent with it now.
    pub usable: bool,
    /// Its plan; empty while unknown.
    pub plan: String,
    /// The window of about five hours; its cap is known even if its usage is not.
    pub five_hour: WindowHealth,
    /// The window of about a week; its cap is known even if its usage is not.
    pub weekly: WindowHealth,
    /// When the last poll succeeded, in Unix milliseconds.
    pub polled_at: Option<u64>,
    /// Why the last poll failed, if it did.
    pub poll_failure: Option<String>,
    /// When its access token expires, in Unix milliseconds, if it says so.
    pub expires_at: Option<u64>,
    /// When its tokens were issued, in Unix milliseconds.
    pub refreshed_at: Option<u64>,
    /// Why the last refresh failed, if it did.
    pub refresh_failure: Option<String>,
    /// Why upstream cannot be reached, if the last request could not be sent.
    pub connect_failure: Option<String>,
    /// Why its reverse connection could not be made, if the last attempt failed.
    pub reverse_failure: Option<String>,
    /// The number of requests in flight with the credential.
    pub in_flight: u32,
}

impl Credential {
    /// Returns its condition at `now`.
    pub fn health(&self, now: Timestamp) -> CredentialHealth {
        let candidate = self.candidate(now);
        let state = self.state();
        let caps = state.caps_of(self.signals());
        let identity = state.identity().ok();
        CredentialHealth {
            credential: self.tag().to_owned(),
            kind: identity.map(|identity| identity.kind()),
            condition: condition(&state, self, now),
            usable: candidate.usable,
            plan: state.usage().plan().to_owned(),
            five_hour: window_health(&state, caps, WindowKind::FiveHour, now),
            weekly: window_health(&state, caps, WindowKind::Weekly, now),
            polled_at: state.polls().succeeded_at().map(|at| at.0),
            poll_failure: state.poll_failure(self.signals()).map(str::to_owned),
            expires_at: identity
                .and_then(|identity| identity.expires_at())
                .map(|at| at.0),
            refreshed_at: identity
                .and_then(|identity| identity.refreshed_at())
                .map(|at| at.0),
            refresh_failure: state.refresh_failure(self.signals()).map(str::to_owned),
            connect_failure: state.connect_failure(self.signals()).map(str::to_owned),
            reverse_failure: state.reverse_failure(self.signals()).map(str::to_owned),
            in_flight: candidate.in_flight,
        }
    }
}

fn window_health(
    state: &CredentialState,
    caps: WindowCaps,
    span: WindowKind,
    now: Timestamp,
) -> WindowHealth {
    let windows = state.usage().windows();
    WindowHealth {
        used: windows.is_known(span).then(|| windows.used(span, now)),
        cap: cap(caps, span),
        resets_at: windows.reset_at(span, now).map(|at| at.0),
    }
}

/// What prevents requests now comes before what will prevent them later.
fn condition(
    state: &CredentialState,
    credential: &Credential,
    now: Timestamp,
) -> CredentialCondition {
    let identity = match state.identity() {
        Ok(identity) => identity,
        Err(CredentialLoadError::NotRead) => return CredentialCondition::Loading,
        Err(CredentialLoadError::NotConnected) => return CredentialCondition::NotConnected,
        Err(error) => {
            let reason = with_path(credential.path(), &error.to_string());
            return CredentialCondition::Unreadable { reason };
        }
    };
    if let Some(reason) = state.refreshes().login_reason(identity) {
        let reason = reason.to_owned();
        return CredentialCondition::LoginNeeded { reason };
    }
    if state.refreshes().is_running() {
        return CredentialCondition::Refreshing;
    }
    if !state.is_presentable(now) {
        return expired_condition(identity, state.refresh_failure(credential.signals()));
    }
    if let Some(limit) = state.usage().rate_limit(now) {
        return CredentialCondition::RateLimited {
            until: limit.until.0,
            window: limit.window,
        };
    }
    match window_over_cap(state, state.caps_of(credential.signals()), now) {
        Some(span) => CredentialCondition::Paused {
            window: span,
            until: state.usage().windows().reset_at(span, now).map(|at| at.0),
        },
        None => CredentialCondition::Ready,
    }
}

/// Returns the condition of a credential whose access token has expired and is not being refreshed.
fn expired_condition(
    identity: &UpstreamIdentity,
    refresh_failure: Option<&str>,
) -> CredentialCondition {
    if !identity.is_refreshable() {
        return CredentialCondition::LoginNeeded {
            reason: "the access token has expired, and the file has no refresh token".to_owned(),
        };
    }
    CredentialCondition::CannotRefresh {
        reason: refresh_failure
            .unwrap_or("the access token has expired")
            .to_owned(),
    }
}

fn window_over_cap(
    state: &CredentialState,
    caps: WindowCaps,
    now: Timestamp,
) -> Option<WindowKind> {
    [WindowKind::Weekly, WindowKind::FiveHour]
        .into_iter()
        .find(|span| state.usage().windows().used(*span, now) >= cap(caps, *span))
}

fn cap(caps: WindowCaps, span: WindowKind) -> f64 {
    match span {
        WindowKind::FiveHour => caps.five_hour,
        WindowKind::Weekly => caps.weekly,
    }
}

/// Returns `reason`, prefixed with the file's path unless it contains that.
fn with_path(path: Option<&Path>, reason: &str) -> String {
    let path = path
        .map(|path| path.display().to_string())
        .filter(|path| !reason.contains(path.as_str()));
    match path {
        Some(path) => format!("{path}: {reason}"),
        None => reason.to_owned(),
    }
}
