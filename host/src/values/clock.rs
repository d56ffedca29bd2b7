//! The time: whole milliseconds since 1970-01-01T00:00:00Z.
//!
//! Code that depends on the time takes a [`Timestamp`] as an argument, so that a test can choose
//! it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the current time. A clock before 1970 counts as 1970.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Returns the time `seconds` after the epoch.
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Returns the whole seconds since the epoch, rounded down.
    pub fn unix(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the time `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// Returns the time `duration` earlier.
    pub fn before(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// Returns how long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time as RFC 3339 in UTC, to the second.
    pub fn rfc3339(self) -> String {
        i64::try_from(self.unix())
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|moment| moment.format(&Rfc3339).ok())
            .unwrap_or_else(|| self.unix().to_string())
    }

    /// Reads an RFC 3339 date and time.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(moment.unix_timestamp_nanos() / 1_000_000)
            .ok()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3339_is_written_and_read() {
        let moment =
            Timestamp::from_rfc3339("2026-03-05T10:20:30.123456789Z").expect("a valid date");
        assert_eq!(moment.0 % 1000, 123);
        assert_eq!(moment.rfc3339(), "2026-03-05T10:20:30Z");
        assert_eq!(Timestamp::from_rfc3339("yesterday"), None);
    }
}
