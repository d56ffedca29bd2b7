//! Repeatable chance: a seed determines all of it.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// Creates a generator seeded by the environment variable `name`, or by the clock. Prints the
    /// seed.
    ///
    /// # Panics
    /// Panics if the variable is not a number.
    pub fn seeded(name: &str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock stands after 1970")
            .as_nanos() as u64;
        let told = std::env::var(name)
            .ok()
            .map(|seed| seed.parse().expect("the seed is a number"));
        let seed = told.unwrap_or(now);
        println!("the same again: {name}={seed}");
        Self(seed)
    }

    /// Creates a generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns a duration within the range, in microseconds.
    pub fn within(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(range.start + self.next() % (range.end - range.start))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
