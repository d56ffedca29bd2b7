//! How a credential is, as a person reads it.

use std::path::Path;

use serde::Serialize;

use super::{Credential, Identity, IdentityKind};
use crate::values::clock::Timestamp;
use crate::values::windows::Span;

/// The one thing that matters most about a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Condition {
    /// Its file was not read yet.
    Loading,
    /// It serves.
    Ready,
    /// Its tokens are being refreshed.
    Refreshing,
    /// Upstream refuses it (429).
    RateLimited {
        /// Until then, in Unix milliseconds.
        until: u64,
        /// Because of this window, where that is known.
        window: Option<&'static str>,
    },
    /// Its use reached its cap: the rest is its owner's.
    Paused {
        /// In this window.
        window: &'static str,
        /// Until then, in Unix milliseconds, where that is known.
        until: Option<u64>,
    },
    /// Somebody must log in again.
    LoginNeeded {
        /// Why.
        reason: String,
    },
    /// Its tokens are of no use and could not be refreshed; it is tried again.
    CannotRefresh {
        /// Why.
        reason: String,
    },
    /// Its file cannot be used.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// A window, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowHealth {
    /// The used part; none where it is not known.
    pub used: Option<f64>,
    /// Where it ends for this credential.
    pub cap: f64,
    /// When it starts anew, in Unix milliseconds, where that is known.
    pub resets_at: Option<u64>,
}

/// How a credential is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// The credential's tag.
    pub credential: String,
    /// `oauth`, `api_key` or `external`; none while it is not loaded.
    pub kind: Option<&'static str>,
    /// What matters most.
    #[serde(flatten)]
    pub condition: Condition,
    /// Whether a request can be sent with it now.
    pub usable: bool,
    /// Its plan; empty while unknown.
    pub plan: String,
    /// The 5-hour window.
    pub five_hour: WindowHealth,
    /// The weekly window.
    pub weekly: WindowHealth,
    /// When upstream last told its use on asking, in Unix milliseconds.
    pub polled_at: Option<u64>,
    /// Why the last poll told nothing.
    pub poll_failure: Option<String>,
    /// When its access token expires, in Unix milliseconds, where that is known.
    pub expires_at: Option<u64>,
    /// When its tokens were made, in Unix milliseconds.
    pub refreshed_at: Option<u64>,
    /// Why the last refresh failed.
    pub refresh_failure: Option<String>,
    /// Requests under way.
    pub in_flight: u32,
}

impl Credential {
    /// How it is at `now`.
    pub fn health(&self, now: Timestamp) -> Health {
        let candidate = self.candidate(now, false);
        let state = self.state();
        let identity = state.identity.as_ref().ok();
        let windows = &state.standing.windows;
        let window = |span: Span, cap: f64| WindowHealth {
            used: windows.is_known(span).then(|| windows.used(span, now)),
            cap,
            resets_at: windows.reset_at(span, now).map(|at| at.0),
        };
        Health {
            credential: self.tag().to_owned(),
            kind: identity.map(|identity| match identity.kind {
                IdentityKind::OAuth => "oauth",
                IdentityKind::ApiKey => "api_key",
                IdentityKind::External => "external",
            }),
            condition: state.condition(
                self.path(),
                candidate.five_hour_cap,
                candidate.weekly_cap,
                now,
            ),
            usable: candidate.usable,
            plan: state.standing.plan.clone(),
            five_hour: window(Span::FiveHour, candidate.five_hour_cap),
            weekly: window(Span::Weekly, candidate.weekly_cap),
            polled_at: state.polling.told_at.map(|at| at.0),
            poll_failure: state.polling.failure.clone(),
            expires_at: identity
                .and_then(|identity| identity.expires_at)
                .map(|at| at.0),
            refreshed_at: identity
                .and_then(|identity| identity.refreshed_at)
                .map(|at| at.0),
            refresh_failure: state.renewal.failure().map(str::to_owned),
            in_flight: candidate.in_flight,
        }
    }
}

impl super::State {
    /// Why expired tokens are not refreshed.
    fn cannot_serve(&self, identity: &Identity) -> Condition {
        if !identity.refreshable {
            let reason =
                "its access token has expired, and the file has no refresh token".to_owned();
            return Condition::LoginNeeded { reason };
        }
        let reason = self
            .renewal
            .failure()
            .unwrap_or("its access token has expired")
            .to_owned();
        Condition::CannotRefresh { reason }
    }

    /// What keeps it from serving goes before what will.
    fn condition(
        &self,
        path: Option<&Path>,
        five_hour_cap: f64,
        weekly_cap: f64,
        now: Timestamp,
    ) -> Condition {
        let identity = match &self.identity {
            Ok(identity) => identity,
            Err(_) if self.read_at.is_none() => return Condition::Loading,
            Err(reason) => {
                return Condition::Unreadable {
                    reason: in_file(path, &reason.to_string()),
                };
            }
        };
        if let Some(reason) = self.renewal.login_reason(identity) {
            return Condition::LoginNeeded {
                reason: reason.to_owned(),
            };
        }
        if self.renewal.is_running() {
            return Condition::Refreshing;
        }
        if !self.can_serve(now) {
            return self.cannot_serve(identity);
        }
        if let Some(until) = self.standing.limited_until.filter(|until| *until > now) {
            let window = self.standing.limited_by.map(name);
            return Condition::RateLimited {
                until: until.0,
                window,
            };
        }
        let windows = &self.standing.windows;
        let over = [(Span::Weekly, weekly_cap), (Span::FiveHour, five_hour_cap)];
        match over
            .into_iter()
            .find(|(span, cap)| windows.used(*span, now) >= *cap)
        {
            Some((span, _)) => Condition::Paused {
                window: name(span),
                until: windows.reset_at(span, now).map(|at| at.0),
            },
            None => Condition::Ready,
        }
    }
}

/// A reason that names the file.
fn in_file(path: Option<&Path>, reason: &str) -> String {
    match path
        .map(|path| path.display().to_string())
        .filter(|path| !reason.contains(path.as_str()))
    {
        Some(path) => format!("{path}: {reason}"),
        None => reason.to_owned(),
    }
}

fn name(span: Span) -> &'static str {
    match span {
        Span::FiveHour => "5-hour",
        Span::Weekly => "weekly",
    }
}
