//! Chance that can be repeated: a seed tells all of it.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// Seeded by the environment variable `name`, or by the clock; the seed is printed.
    ///
    /// # Panics
    /// The variable is no number.
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

    /// That chance, each time.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A moment within the range, in microseconds.
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
