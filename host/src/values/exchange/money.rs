//! Money: integers of nano-dollars. An unknown cost is not zero.

use std::fmt;

/// An amount in nano-dollars (10^-9 USD).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// Returns the amount in USD, for formats without integers. It is exact up to 2^53 nano-dollars
    /// (9 million USD).
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Returns the amount of `usd`, rounded, or `None` if it is negative or not a number.
    pub fn from_usd(usd: f64) -> Option<Self> {
        let nano = (usd * 1e9).round();
        (0.0..9e18).contains(&nano).then_some(Self(nano as u64))
    }
}

impl fmt::Display for NanoUsd {
    /// Writes the amount in USD with four decimals, rounded half up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths_of_mill = (self.0 + 50_000) / 100_000;
        write!(
            f,
            "${}.{:04}",
            tenths_of_mill / 10_000,
            tenths_of_mill % 10_000
        )
    }
}

/// The cost of a response, or why it is unknown. An unknown cost is never treated as zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseCost {
    /// A policy priced it.
    Priced {
        /// What the response cost.
        amount: NanoUsd,
        /// The context window that the price belongs to, in tokens.
        context_window: u64,
    },
    /// No policy priced it.
    Unpriced {
        /// Why the cost is unknown.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_with_four_decimals() {
        assert_eq!(NanoUsd(15_275_000_000).to_string(), "$15.2750");
        assert_eq!(NanoUsd(49_999).to_string(), "$0.0000");
        assert_eq!(NanoUsd(50_000).to_string(), "$0.0001");
    }

    #[test]
    fn usd_is_converted_back_to_the_nano_dollar() {
        assert_eq!(
            NanoUsd::from_usd(NanoUsd(1_234_567_891).usd()),
            Some(NanoUsd(1_234_567_891))
        );
        assert_eq!(NanoUsd::from_usd(-1.0), None);
        assert_eq!(NanoUsd::from_usd(f64::NAN), None);
    }
}
