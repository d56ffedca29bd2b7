//! An account's standing: its two rate-limit windows, and the headers and the `wham/usage` body
//! that report them.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

const FIVE_HOUR_MINUTES: u64 = 300;
const WEEKLY_MINUTES: u64 = 10_080;
const ACTIVE_LIMIT: &str = "codex_bengalfox";

/// The account's plan, its windows, and how responses report them.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// `plan_type` of `wham/usage`, for example `plus`.
    pub plan: String,
    /// The window of five hours.
    pub five_hour: Window,
    /// The window of a week.
    pub weekly: Window,
    /// Names of the rate-limit headers.
    pub header_form: HeaderForm,
    /// Which window is in the primary slot.
    pub slots: Slots,
}

/// The state of one rate-limit window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Used, in percent of the window's budget.
    pub used_percent: f64,
    /// When the window resets, in Unix seconds.
    pub resets_at: u64,
    /// What each answered turn adds to `used_percent`.
    pub used_percent_per_turn: f64,
}

/// Names of the rate-limit headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderForm {
    /// `x-codex-primary-…`, no active limit named.
    Plain,
    /// `x-codex-active-limit: codex_bengalfox` and `x-codex-bengalfox-primary-…`.
    ActiveLimit,
    /// `x-codex-active-limit: codex_bengalfox`, but `x-codex-primary-…`.
    PlainBesideActiveLimit,
    /// No such headers, as api.openai.com answers.
    Absent,
}

/// Which window is in the primary slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Primary is the 5-hour window: the usual order.
    FiveHourFirst,
    /// Primary is the weekly window.
    WeeklyFirst,
}

impl Standing {
    /// Creates a standing with nothing used, both windows beginning now, and plain headers.
    pub fn new(plan: &str) -> Self {
        let now = unix_now();
        Standing {
            plan: plan.to_owned(),
            five_hour: Window::fresh(now + FIVE_HOUR_MINUTES * 60),
            weekly: Window::fresh(now + WEEKLY_MINUTES * 60),
            header_form: HeaderForm::Plain,
            slots: Slots::FiveHourFirst,
        }
    }

    /// Sets the 5-hour window's use, in percent.
    pub fn five_hour_used(mut self, percent: f64) -> Self {
        self.five_hour.used_percent = percent;
        self
    }

    /// Sets the weekly window's use, in percent.
    pub fn weekly_used(mut self, percent: f64) -> Self {
        self.weekly.used_percent = percent;
        self
    }

    /// Sets the 5-hour window's reset, in Unix seconds.
    pub fn five_hour_resets_at(mut self, unix_seconds: u64) -> Self {
        self.five_hour.resets_at = unix_seconds;
        self
    }

    /// Sets the weekly window's reset, in Unix seconds.
    pub fn weekly_resets_at(mut self, unix_seconds: u64) -> Self {
        self.weekly.resets_at = unix_seconds;
        self
    }

    /// Sets the names of the headers.
    pub fn header_form(mut self, form: HeaderForm) -> Self {
        self.header_form = form;
        self
    }

    /// Sets the order of the windows.
    pub fn slots(mut self, slots: Slots) -> Self {
        self.slots = slots;
        self
    }

    /// Adds one turn's use. Returns whether anything changed.
    pub(crate) fn use_one_turn(&mut self) -> bool {
        let grows =
            self.five_hour.used_percent_per_turn != 0.0 || self.weekly.used_percent_per_turn != 0.0;
        for window in [&mut self.five_hour, &mut self.weekly] {
            window.used_percent = (window.used_percent + window.used_percent_per_turn).min(100.0);
        }
        grows
    }

    /// Returns the rate-limit headers.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let limit = match self.header_form {
            HeaderForm::Absent => return headers,
            HeaderForm::Plain => "codex",
            HeaderForm::ActiveLimit | HeaderForm::PlainBesideActiveLimit => {
                headers.insert(
                    "x-codex-active-limit",
                    HeaderValue::from_static(ACTIVE_LIMIT),
                );
                if self.header_form == HeaderForm::ActiveLimit {
                    "codex-bengalfox"
                } else {
                    "codex"
                }
            }
        };
        for (slot, window, minutes) in self.in_slots() {
            let fields = [
                ("used-percent", number(window.used_percent).to_string()),
                ("window-minutes", minutes.to_string()),
                ("reset-at", window.resets_at.to_string()),
            ];
            for (field, value) in fields {
                let name = HeaderName::try_from(format!("x-{limit}-{slot}-{field}"))
                    .expect("built of header letters");
                headers.insert(
                    name,
                    HeaderValue::try_from(value).expect("a number is a header value"),
                );
            }
        }
        headers
    }

    /// Returns the body of `GET /backend-api/wham/usage`.
    pub(crate) fn usage_body(&self) -> Value {
        let [primary, secondary] = self.in_slots().map(|(_, window, minutes)| {
            json!({
                "used_percent": number(window.used_percent),
                "limit_window_seconds": minutes * 60,
                "reset_after_seconds": window.resets_at.saturating_sub(unix_now()),
                "reset_at": window.resets_at,
            })
        });
        let limit_reached = self.is_limit_reached();
        json!({
            "plan_type": self.plan,
            "rate_limit": {
                "allowed": !limit_reached,
                "limit_reached": limit_reached,
                "primary_window": primary,
                "secondary_window": secondary,
            },
        })
    }

    /// Returns the event that reports it on a socket.
    pub(crate) fn event(&self) -> Value {
        let [primary, secondary] = self.in_slots().map(|(_, window, minutes)| {
            json!({
                "used_percent": number(window.used_percent),
                "window_minutes": minutes,
                "reset_at": window.resets_at,
            })
        });
        let limit_reached = self.is_limit_reached();
        json!({
            "type": "codex.rate_limits",
            "plan_type": self.plan,
            "metered_limit_name": match self.header_form {
                HeaderForm::ActiveLimit | HeaderForm::PlainBesideActiveLimit => ACTIVE_LIMIT,
                HeaderForm::Plain | HeaderForm::Absent => "codex",
            },
            "rate_limits": {
                "allowed": !limit_reached,
                "limit_reached": limit_reached,
                "primary": primary,
                "secondary": secondary,
            },
        })
    }

    fn is_limit_reached(&self) -> bool {
        self.five_hour.used_percent >= 100.0 || self.weekly.used_percent >= 100.0
    }

    fn in_slots(&self) -> [(&'static str, Window, u64); 2] {
        let (five_hour, weekly) = (
            (self.five_hour, FIVE_HOUR_MINUTES),
            (self.weekly, WEEKLY_MINUTES),
        );
        let (primary, secondary) = match self.slots {
            Slots::FiveHourFirst => (five_hour, weekly),
            Slots::WeeklyFirst => (weekly, five_hour),
        };
        [
            ("primary", primary.0, primary.1),
            ("secondary", secondary.0, secondary.1),
        ]
    }
}

impl Window {
    fn fresh(resets_at: u64) -> Self {
        Window {
            used_percent: 0.0,
            resets_at,
            used_percent_per_turn: 0.0,
        }
    }
}

/// Writes whole figures without a fraction, as the backend does.
fn number(percent: f64) -> Value {
    if percent.fract() == 0.0 {
        json!(percent as i64)
    } else {
        json!(percent)
    }
}

/// Returns the current Unix second.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs()
}
