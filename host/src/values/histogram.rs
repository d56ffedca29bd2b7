//! A lock-free histogram of durations with logarithmic buckets, from which quantiles are computed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per doubling: a quantile is exact to a quarter of its value.
const STEPS: u32 = 4;

/// The end of the first bucket, as a power of two of nanoseconds: 128 ns.
const LEAST: u32 = 7;

/// Doublings above it: up to 68 s.
const DOUBLINGS: u32 = 29;

const BUCKETS: usize = (STEPS * DOUBLINGS) as usize + 1;

/// Counts of durations in buckets, which any thread may add to.
pub struct DurationHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl std::fmt::Debug for DurationHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

impl Default for DurationHistogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl DurationHistogram {
    /// Adds `span` to the bucket that it falls into, without a lock.
    pub fn record(&self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        // The maximum changes rarely, so most calls only read it.
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// Returns how many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed))
    }

    /// Returns the longest duration.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Ordering::Relaxed))
    }

    /// Returns how many durations were at most `span`, exact to a bucket.
    pub fn at_most(&self, span: Duration) -> u64 {
        let last = bucket_of(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
        self.buckets[..=last]
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns the duration that the share `quantile` (0 to 1) of them does not exceed, or `None`
    /// without any.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * quantile).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= rank {
                return Some(Duration::from_nanos(end(index)).min(self.max()));
            }
        }
        Some(self.max())
    }
}

/// Returns the bucket of a duration: its doubling, and the quarter of that.
fn bucket_of(ns: u64) -> usize {
    let Some(doubling) = ns.max(1).ilog2().checked_sub(LEAST) else {
        return 0;
    };
    let quarter = (ns >> (doubling + LEAST - 2)) as u32 & (STEPS - 1);
    ((doubling * STEPS + quarter) as usize + 1).min(BUCKETS - 1)
}

/// Returns the end of a bucket, in nanoseconds.
fn end(bucket: usize) -> u64 {
    let Some(index) = (bucket as u64).checked_sub(1) else {
        return 1 << LEAST;
    };
    let (doubling, quarter) = (index / u64::from(STEPS), index % u64::from(STEPS));
    (u64::from(STEPS) + quarter + 1) << (doubling + u64::from(LEAST) - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_exact_to_a_quarter() {
        let histogram = DurationHistogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (quantile, exact) in [(0.5, 500.0), (0.99, 990.0), (0.001, 1.0)] {
            let found = histogram
                .quantile(quantile)
                .expect("there are some")
                .as_nanos() as f64
                / 1000.0;
            assert!(
                (exact..=exact * 1.26).contains(&found),
                "{quantile}: {found}"
            );
        }
        assert_eq!(
            (histogram.count(), histogram.max()),
            (1000, Duration::from_millis(1))
        );
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_millis(1)));
        assert!((500..=640).contains(&histogram.at_most(Duration::from_micros(500))));
    }

    #[test]
    fn durations_out_of_range_count_in_the_outer_buckets() {
        let histogram = DurationHistogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.record(Duration::ZERO);
        histogram.record(Duration::from_secs(100_000));
        assert_eq!(
            (histogram.count(), histogram.max()),
            (2, Duration::from_secs(100_000))
        );
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_nanos(128)));
    }

    #[test]
    fn buckets_are_adjacent() {
        for ns in [
            1, 127, 128, 129, 160, 191, 192, 255, 256, 1_000_000, 7_777_777,
        ] {
            let at = bucket_of(ns);
            assert!(
                ns < end(at) || at == 0 && ns <= end(at),
                "{ns} is after its bucket"
            );
            assert!(at == 0 || ns >= end(at - 1), "{ns} is before its bucket");
        }
    }
}
