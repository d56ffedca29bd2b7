//! The events of a sequence, and the model: what was reported about a credential, and whether it
//! may be picked.

use proptest::prelude::*;

pub(super) const MINUTE: i64 = 60;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;

/// When each sequence begins, in Unix seconds.
pub(super) const BEGIN: i64 = 1_800_000_000;

/// How long a rejection lasts if its end is unknown or in the past.
pub(super) const REFUSED: i64 = 5 * MINUTE;

/// Two resets that are closer than this belong to one window. Generated resets are much closer, or
/// much farther apart.
pub(super) const SAME_WINDOW: i64 = 10 * MINUTE;

// Events

/// A point in time, in Unix seconds.
pub(super) type Moment = i64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    FiveHour,
    Weekly,
}

/// What a header or a poll reports about one window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// The used share, in percent.
    pub(super) used: u8,
    pub(super) resets_at: Option<Moment>,
}

/// What one response or poll reports.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) five_hour: Option<Told>,
    pub(super) weekly: Option<Told>,
    /// Whether the weekly window is in the primary slot.
    pub(super) swapped: bool,
}

/// An event of one of the credentials.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The gateway reads the headers of a response.
    Headers(Message),
    /// The gateway sends a poll.
    PollBegins,
    /// The poll in flight ends, if there is one.
    PollEnds(Message),
    /// A 429 that reports its end in this many seconds, or no end.
    Refused(Option<i64>),
    /// The clock moves forward or back by this many seconds, for all credentials.
    Clock(i64),
}

/// A window's resets are on a grid with a little jitter: upstream's clock and ours differ.
pub(super) fn reset(grid: i64, places: std::ops::Range<i64>) -> impl Strategy<Value = Moment> {
    (places, -MINUTE..=MINUTE).prop_map(move |(place, jitter)| BEGIN + place * grid + jitter)
}

pub(super) fn told(grid: i64, places: std::ops::Range<i64>) -> impl Strategy<Value = Told> {
    let resets_at = proptest::option::weighted(0.9, reset(grid, places));
    (0..=100_u8, resets_at).prop_map(|(used, resets_at)| Told { used, resets_at })
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    let five_hour = proptest::option::weighted(0.8, told(HOUR, -2..12));
    let weekly = proptest::option::weighted(0.8, told(DAY, -1..9));
    (five_hour, weekly, any::<bool>()).prop_map(|(five_hour, weekly, swapped)| Message {
        five_hour,
        weekly,
        swapped,
    })
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let end = proptest::option::weighted(0.7, -HOUR..8 * DAY);
    prop_oneof![
        4 => message().prop_map(Event::Headers),
        2 => Just(Event::PollBegins),
        2 => message().prop_map(Event::PollEnds),
        1 => end.prop_map(Event::Refused),
        2 => prop_oneof![-2 * HOUR..3 * HOUR, -2 * DAY..4 * DAY].prop_map(Event::Clock),
    ]
}

/// Caps of a credential: 5-hour and weekly.
pub(super) fn caps() -> impl Strategy<Value = (u8, u8)> {
    (1..=100_u8, 1..=100_u8)
}

// The model: what was reported, and what follows from it

#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) five_hour: Option<Told>,
    pub(super) weekly: Option<Told>,
    pub(super) refused_until: Option<Moment>,
    /// Whether a response reported something since the poll in flight began; `None` without a poll.
    pub(super) overtaken: Option<bool>,
}

impl Known {
    pub(super) fn window(&mut self, span: Span) -> &mut Option<Told> {
        match span {
            Span::FiveHour => &mut self.five_hour,
            Span::Weekly => &mut self.weekly,
        }
    }

    /// Responses overtake each other: within a window usage never decreases.
    pub(super) fn hear(&mut self, message: &Message, now: Moment) {
        for (span, told) in message.windows() {
            let known = self.window(span);
            *known = Some(match *known {
                Some(old) if !is_over(old, now) => merged(old, told, now),
                _ => told,
            });
        }
    }

    /// A poll replaces what is known. A window that it does not report is kept until it resets.
    pub(super) fn replace(&mut self, message: &Message) {
        for window in [&mut self.five_hour, &mut self.weekly] {
            *window = window.filter(|told| told.resets_at.is_some());
        }
        for (span, told) in message.windows() {
            *self.window(span) = Some(told);
        }
    }

    pub(super) fn is_usable(&self, caps: (u8, u8), now: Moment) -> bool {
        let is_under = |told: Option<Told>, cap: u8| {
            told.is_none_or(|told| is_over(told, now) || told.used < cap)
        };
        self.refused_until.is_none_or(|until| until <= now)
            && is_under(self.five_hour, caps.0)
            && is_under(self.weekly, caps.1)
    }
}

/// Returns whether the window has reset.
pub(super) fn is_over(told: Told, now: Moment) -> bool {
    told.resets_at.is_some_and(|resets_at| resets_at <= now)
}

/// Returns what is known of a window that has not reset, after a further report.
pub(super) fn merged(old: Told, new: Told, now: Moment) -> Told {
    let is_later = |reset: Moment| {
        old.resets_at
            .is_some_and(|known| reset > known + SAME_WINDOW)
    };
    match new.resets_at {
        // A report about a window that has ended says nothing about the current one.
        Some(reset) if reset <= now && old.resets_at.is_some() => old,
        Some(reset) if is_later(reset) => new,
        reset => Told {
            used: old.used.max(new.used),
            resets_at: reset.or(old.resets_at),
        },
    }
}
