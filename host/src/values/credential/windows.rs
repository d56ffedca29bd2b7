//! Rate-limit windows: how much of a credential's 5-hour and weekly windows is used, as upstream
//! reports it. This module reads the reports and merges them; it does not know what a credential
//! does with them.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::Value;

use crate::values::clock::Timestamp;

/// Two resets that are closer than this belong to the same window: upstream's clock and ours
/// differ.
const SAME_WINDOW_MS: u64 = 10 * 60 * 1000;

/// The limit that headers belong to if upstream does not name one.
const DEFAULT_LIMIT: &str = "codex";

/// A rate-limit window as it was last reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimitWindow {
    /// The used part, in percent, 0 to 100.
    pub used: f64,
    /// When it resets; `None` if upstream did not say.
    pub reset_at: Option<Timestamp>,
    /// Its length in minutes.
    pub minutes: u32,
}

/// A kind of window. Its serialized name is that of the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum WindowKind {
    /// A window of about 300 minutes.
    #[serde(rename = "5-hour")]
    FiveHour,
    /// A window of about 10080 minutes.
    #[serde(rename = "weekly")]
    Weekly,
}

impl WindowKind {
    /// Returns the length in minutes.
    pub const fn minutes(self) -> u32 {
        match self {
            Self::FiveHour => 300,
            Self::Weekly => 10_080,
        }
    }

    /// Returns the kind of window that is `minutes` long, give or take a fifth.
    pub fn of(minutes: u32) -> Option<Self> {
        [Self::FiveHour, Self::Weekly]
            .into_iter()
            .find(|span| minutes.abs_diff(span.minutes()).saturating_mul(5) <= span.minutes())
    }
}

/// The windows of a credential, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RateLimitWindows {
    five_hour: Option<RateLimitWindow>,
    weekly: Option<RateLimitWindow>,
}

impl RateLimitWindows {
    /// Returns the used part of a window at `now`, in percent. A window that has reset is unused,
    /// and an unknown one counts as unused.
    pub fn used(&self, span: WindowKind, now: Timestamp) -> f64 {
        match self.window(span) {
            Some(window) if window.reset_at.is_none_or(|reset| reset > now) => window.used,
            _ => 0.0,
        }
    }

    /// Returns whether upstream has reported a window.
    pub fn is_known(&self, span: WindowKind) -> bool {
        self.window(span).is_some()
    }

    /// Returns when a window resets, if that is known and in the future.
    pub fn reset_at(&self, span: WindowKind, now: Timestamp) -> Option<Timestamp> {
        self.window(span)
            .and_then(|window| window.reset_at)
            .filter(|reset| *reset > now)
    }

    /// Returns the start of the week that contains `now`, in Unix seconds: the weekly reset minus
    /// the window's length.
    pub fn week_start_unix(&self, now: Timestamp) -> Option<u64> {
        let window = self.weekly?;
        let reset = window.reset_at.filter(|reset| *reset > now)?;
        reset.unix().checked_sub(u64::from(window.minutes) * 60)
    }

    fn window(&self, span: WindowKind) -> Option<&RateLimitWindow> {
        match span {
            WindowKind::FiveHour => self.five_hour.as_ref(),
            WindowKind::Weekly => self.weekly.as_ref(),
        }
    }

    /// Merges what a response reports. Within one window, usage never decreases: responses overtake
    /// each other.
    pub fn observe(&mut self, reading: &WindowReading, now: Timestamp) {
        for (span, window) in reading.windows() {
            let slot = match span {
                WindowKind::FiveHour => &mut self.five_hour,
                WindowKind::Weekly => &mut self.weekly,
            };
            *slot = Some(match slot {
                Some(known) if is_earlier(known, &window, now) => *known,
                Some(known) if is_same(known, &window, now) => RateLimitWindow {
                    used: window.used.max(known.used),
                    reset_at: window.reset_at.or(known.reset_at),
                    ..window
                },
                _ => window,
            });
        }
    }
}

impl RateLimitWindows {
    /// Replaces what is known by what a poll reports.
    pub fn replace(&mut self, reading: &WindowReading) {
        // A window that is no longer reported is kept until it resets; without a known reset it is
        // dropped.
        let ends = |window: &RateLimitWindow| window.reset_at.is_some();
        self.five_hour = reading.five_hour.or(self.five_hour.filter(ends));
        self.weekly = reading.weekly.or(self.weekly.filter(ends));
    }
}

/// Returns whether `new` is about a window that has ended, and the known window has not.
fn is_earlier(known: &RateLimitWindow, new: &RateLimitWindow, now: Timestamp) -> bool {
    known.reset_at.is_some_and(|known| known > now) && new.reset_at.is_some_and(|new| new <= now)
}

fn is_same(known: &RateLimitWindow, new: &RateLimitWindow, now: Timestamp) -> bool {
    match (known.reset_at, new.reset_at) {
        (Some(known), _) if known <= now => false,
        (Some(known), Some(new)) => new.0 <= known.0.saturating_add(SAME_WINDOW_MS),
        _ => true,
    }
}

/// What is reported for one of a limit's two slots.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SlotReading {
    /// The used part, in percent.
    pub used_percent: Option<f64>,
    /// The length of the window, in minutes.
    pub window_minutes: Option<f64>,
    /// When it resets, in Unix seconds.
    pub reset_at: Option<f64>,
}

/// What one response or poll reports about the windows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WindowReading {
    five_hour: Option<RateLimitWindow>,
    weekly: Option<RateLimitWindow>,
    /// When the exhausted window resets.
    first_reset: Option<Timestamp>,
}

impl WindowReading {
    /// Reads the `x-<limit>-{primary,secondary}-*` headers. A window's length decides its kind,
    /// whichever slot it is in; without a length the slot's name decides. Values that are not
    /// numbers are ignored.
    pub fn from_headers(headers: &HeaderMap, now: Timestamp) -> Self {
        let limit = active_limit(headers);
        let mut reading = Self::default();
        for (slot, by_name) in [
            (&PRIMARY, WindowKind::FiveHour),
            (&SECONDARY, WindowKind::Weekly),
        ] {
            let number = |field: usize| number(headers, limit.as_deref(), slot, field);
            let Some(used) = number(USED_PERCENT) else {
                continue;
            };
            let minutes = number(WINDOW_MINUTES).map(|minutes| minutes as u32);
            let Some(span) = minutes.map_or(Some(by_name), WindowKind::of) else {
                continue;
            };
            let at = number(RESET_AT).map(|seconds| Timestamp::from_unix(seconds as u64));
            let after = number(RESET_AFTER_SECONDS)
                .map(|seconds| Timestamp(now.0.saturating_add((seconds * 1e3) as u64)));
            let window = RateLimitWindow {
                used: used.clamp(0.0, 100.0),
                reset_at: at.or(after),
                minutes: minutes.unwrap_or(span.minutes()),
            };
            reading.set(span, window);
        }
        reading.first_reset = reading.enforced_reset();
        reading
    }

    /// Reads the `rate_limit` of `wham/usage`. Values that are missing, null or not numbers are
    /// ignored.
    pub fn from_usage(rate_limit: &Value) -> Self {
        let slot = |name: &str| {
            let number = |field: &str| rate_limit.get(name)?.get(field)?.as_f64();
            SlotReading {
                used_percent: number("used_percent"),
                window_minutes: number("limit_window_seconds").map(|seconds| seconds / 60.0),
                reset_at: number("reset_at"),
            }
        };
        Self::from_slots([slot("primary_window"), slot("secondary_window")])
    }

    /// Reads the primary and the secondary slot. Values that are not numbers of 0 or more are
    /// ignored.
    pub fn from_slots(slots: [SlotReading; 2]) -> Self {
        let mut reading = Self::default();
        for (slot, by_name) in slots
            .into_iter()
            .zip([WindowKind::FiveHour, WindowKind::Weekly])
        {
            let sound =
                |number: Option<f64>| number.filter(|number| number.is_finite() && *number >= 0.0);
            let Some(used) = sound(slot.used_percent) else {
                continue;
            };
            let minutes = sound(slot.window_minutes).map(|minutes| minutes as u32);
            let Some(span) = minutes.map_or(Some(by_name), WindowKind::of) else {
                continue;
            };
            let window = RateLimitWindow {
                used: used.min(100.0),
                reset_at: sound(slot.reset_at).map(|seconds| Timestamp::from_unix(seconds as u64)),
                minutes: minutes.unwrap_or(span.minutes()),
            };
            reading.set(span, window);
        }
        reading.first_reset = reading.enforced_reset();
        reading
    }

    fn set(&mut self, span: WindowKind, window: RateLimitWindow) {
        match span {
            WindowKind::FiveHour => self.five_hour = Some(window),
            WindowKind::Weekly => self.weekly = Some(window),
        }
    }

    fn windows(&self) -> impl Iterator<Item = (WindowKind, RateLimitWindow)> {
        let five_hour = self.five_hour.map(|window| (WindowKind::FiveHour, window));
        five_hour
            .into_iter()
            .chain(self.weekly.map(|window| (WindowKind::Weekly, window)))
    }

    /// Returns when the exhausted window resets; the later reset if both are exhausted.
    fn enforced_reset(&self) -> Option<Timestamp> {
        let full = |window: &RateLimitWindow| window.used >= 100.0;
        self.windows()
            .map(|(_, window)| window)
            .filter(full)
            .filter_map(|window| window.reset_at)
            .max()
    }

    /// Returns whether no window is reported.
    pub fn is_empty(&self) -> bool {
        self.five_hour.is_none() && self.weekly.is_none()
    }

    /// Returns the exhausted window. If both are, it is the window with the later reset.
    pub fn exhausted(&self) -> Option<WindowKind> {
        let full = |(_, window): &(WindowKind, RateLimitWindow)| window.used >= 100.0;
        self.windows()
            .filter(full)
            .max_by_key(|(_, window)| window.reset_at)
            .map(|(span, _)| span)
    }

    /// Returns when the limit that rejected a request resets, if its headers report an exhausted
    /// window.
    pub fn refused_until(&self) -> Option<Timestamp> {
        self.first_reset
    }
}

/// Returns the active limit, if it is not the default one.
fn active_limit(headers: &HeaderMap) -> Option<String> {
    let named = headers
        .get("x-codex-active-limit")
        .and_then(|value| value.to_str().ok())?;
    let named = named.trim().to_ascii_lowercase().replace('_', "-");
    (!named.is_empty() && named != DEFAULT_LIMIT).then_some(named)
}

const USED_PERCENT: usize = 0;
const WINDOW_MINUTES: usize = 1;
const RESET_AT: usize = 2;
const RESET_AFTER_SECONDS: usize = 3;

/// The header names of a slot of the default limit, which need no allocation.
type SlotHeaders = [HeaderName; 4];

static PRIMARY: SlotHeaders = [
    HeaderName::from_static("x-codex-primary-used-percent"),
    HeaderName::from_static("x-codex-primary-window-minutes"),
    HeaderName::from_static("x-codex-primary-reset-at"),
    HeaderName::from_static("x-codex-primary-reset-after-seconds"),
];
static SECONDARY: SlotHeaders = [
    HeaderName::from_static("x-codex-secondary-used-percent"),
    HeaderName::from_static("x-codex-secondary-window-minutes"),
    HeaderName::from_static("x-codex-secondary-reset-at"),
    HeaderName::from_static("x-codex-secondary-reset-after-seconds"),
];

fn number(
    headers: &HeaderMap,
    limit: Option<&str>,
    slot: &SlotHeaders,
    field: usize,
) -> Option<f64> {
    let usual = &slot[field];
    let under_limit = || {
        let name = usual.as_str().strip_prefix("x-codex-")?;
        headers.get(format!("x-{}-{name}", limit?))
    };
    let read = |value: &HeaderValue| {
        let number: f64 = value.to_str().ok()?.trim().parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    under_limit()
        .and_then(read)
        .or_else(|| headers.get(usual).and_then(read))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn reading(fields: &[(&'static str, &str)]) -> WindowReading {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, value.parse().expect("a value"));
        }
        WindowReading::from_headers(&headers, NOW)
    }

    fn used(windows: &RateLimitWindows) -> (f64, f64) {
        (
            windows.used(WindowKind::FiveHour, NOW),
            windows.used(WindowKind::Weekly, NOW),
        )
    }

    #[test]
    fn a_windows_length_decides_its_kind() {
        let mut windows = RateLimitWindows::default();
        windows.observe(
            &reading(&[
                ("x-codex-primary-used-percent", "12.5"),
                ("x-codex-primary-window-minutes", "10080"),
                ("x-codex-secondary-used-percent", "40"),
                ("x-codex-secondary-window-minutes", "299"),
            ]),
            NOW,
        );
        assert_eq!(used(&windows), (40.0, 12.5));
    }

    #[test]
    fn the_active_limit_is_preferred_to_codex() {
        let mut windows = RateLimitWindows::default();
        windows.observe(
            &reading(&[
                ("x-codex-active-limit", "codex_bengalfox"),
                ("x-codex-bengalfox-primary-used-percent", "7"),
                ("x-codex-primary-used-percent", "1"),
                ("x-codex-secondary-used-percent", "2"),
            ]),
            NOW,
        );
        assert_eq!(used(&windows), (7.0, 2.0));
    }

    #[test]
    fn usage_never_decreases_within_a_window_and_a_new_window_replaces_it() {
        let at = |used: &str, reset: &str| {
            reading(&[
                ("x-codex-primary-used-percent", used),
                ("x-codex-primary-reset-at", reset),
            ])
        };
        let mut windows = RateLimitWindows::default();
        windows.observe(&at("50", "1010000"), NOW);
        windows.observe(&at("40", "1010000"), NOW);
        assert_eq!(used(&windows).0, 50.0);
        windows.observe(&at("3", "1028000"), NOW);
        assert_eq!(used(&windows).0, 3.0);
        assert_eq!(
            windows.used(WindowKind::FiveHour, Timestamp::from_unix(1_028_000)),
            0.0,
            "after the reset"
        );
    }

    #[test]
    fn values_that_are_not_numbers_are_ignored() {
        for wrong in ["", "many", "NaN", "inf", "-5"] {
            assert_eq!(
                reading(&[("x-codex-primary-used-percent", wrong)]),
                WindowReading::default(),
                "{wrong:?}"
            );
        }
        let mut windows = RateLimitWindows::default();
        windows.observe(&reading(&[("x-codex-primary-used-percent", "250")]), NOW);
        assert_eq!(used(&windows).0, 100.0);
    }

    #[test]
    fn a_poll_replaces_what_is_known_and_ignores_invalid_values() {
        let mut windows = RateLimitWindows::default();
        windows.observe(&reading(&[("x-codex-primary-used-percent", "50")]), NOW);
        let usage =
            |text: &str| WindowReading::from_usage(&serde_json::from_str(text).expect("JSON"));
        let slots = r#"{"primary_window": {"used_percent": 9, "limit_window_seconds": 604800, "reset_at": 1500000},
            "secondary_window": {"used_percent": 4.5, "limit_window_seconds": 18000, "reset_at": 1005000}}"#;
        windows.replace(&usage(slots));
        assert_eq!(used(&windows), (4.5, 9.0));
        for nothing in [
            "null",
            "5",
            "{}",
            r#"{"primary_window": null}"#,
            r#"{"primary_window": {"used_percent": null}}"#,
            r#"{"primary_window": {"used_percent": -1}}"#,
            r#"{"primary_window": {"used_percent": "1"}}"#,
            r#"{"primary_window": {"used_percent": 1, "limit_window_seconds": 60}}"#,
        ] {
            windows.replace(&usage(nothing));
            assert_eq!(used(&windows), (4.5, 9.0), "{nothing}");
        }
        windows.replace(&usage(
            r#"{"primary_window": {"used_percent": 250, "reset_at": "soon"}}"#,
        ));
        assert_eq!(used(&windows).0, 100.0);
    }

    #[test]
    fn the_week_starts_one_window_before_its_reset() {
        let mut windows = RateLimitWindows::default();
        windows.observe(
            &reading(&[
                ("x-codex-secondary-used-percent", "1"),
                ("x-codex-secondary-reset-at", "1604800"),
                ("x-codex-secondary-window-minutes", "10080"),
            ]),
            NOW,
        );
        assert_eq!(windows.week_start_unix(NOW), Some(1_000_000));
    }

    #[test]
    fn a_rejection_ends_when_the_exhausted_window_resets() {
        let found = reading(&[
            ("x-codex-primary-used-percent", "100"),
            ("x-codex-primary-reset-at", "1005000"),
            ("x-codex-secondary-used-percent", "30"),
            ("x-codex-secondary-reset-at", "1500000"),
        ]);
        assert_eq!(found.refused_until(), Some(Timestamp::from_unix(1_005_000)));
    }
}
