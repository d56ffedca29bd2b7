//! The tokens of a response, as upstream counts them.

/// Tokens by kind. A kind that upstream does not report is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenCounts {
    /// All input tokens, including cached and cache-write ones.
    pub input: u64,
    /// Input tokens that were read from a prompt cache.
    pub cached: u64,
    /// Input tokens that were written to a prompt cache.
    pub cache_write: u64,
    /// All output tokens, including reasoning ones.
    pub output: u64,
    /// Output tokens that were used for reasoning.
    pub reasoning: u64,
}

/// The names of the kinds in the contract with pricers, in the order of [`TokenCounts::columns`].
pub const COLUMN_NAMES: [&str; 5] = ["input", "cached", "cache-write", "output", "reasoning"];

impl TokenCounts {
    /// Returns the counts in the order of [`COLUMN_NAMES`].
    pub fn columns(&self) -> [f64; 5] {
        [
            self.input,
            self.cached,
            self.cache_write,
            self.output,
            self.reasoning,
        ]
        .map(|count| count as f64)
    }
}
