//! Pricers: computing the cost of usage.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

/// Computes the price of a response.
pub trait Pricer: Sized + 'static {
    /// The policy's configuration. Use [`NoConfig`](crate::NoConfig) for a policy that takes none.
    type Config: DeserializeOwned + JsonSchema;

    /// The strings of a request that the policy needs, by their names in the contract. Each costs a
    /// copy per call.
    const STRINGS: &'static [&'static str] = &["model", "service-tier"];

    /// Creates the policy from its configuration.
    ///
    /// # Errors
    /// Returns a message for the operator if the configuration is invalid.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Returns the price of `counts`.
    ///
    /// # Errors
    /// Returns the reason if the usage cannot be priced. The gateway records it as unpriced with
    /// that reason.
    fn price(&self, request: &Request, counts: &Counts) -> Result<Price, String>;
}

/// The token counts of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All input tokens, including `cached` and `cache_write`.
    pub input: u64,
    /// Input tokens read from a prompt cache.
    pub cached: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write: u64,
    /// All output tokens, including `reasoning`.
    pub output: u64,
    /// Output tokens spent on reasoning.
    pub reasoning: u64,
}

/// The price of a response by kind of token, in nano-dollars (10^-9 USD). A kind that is included
/// in another and not charged separately costs 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price {
    /// Input tokens that are neither cached nor cache writes.
    pub input: u64,
    /// Input tokens read from a prompt cache.
    pub cached: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write: u64,
    /// Output tokens, including reasoning tokens that are not priced separately.
    pub output: u64,
    /// Reasoning tokens, if they are priced separately from output tokens.
    pub reasoning: u64,
    /// The context window that the price applies to, in tokens.
    pub context_window: u64,
}

impl Price {
    /// Returns the sum over all kinds.
    pub fn total(&self) -> u64 {
        self.input + self.cached + self.cache_write + self.output + self.reasoning
    }
}

const KINDS: [&str; 5] = ["input", "cached", "cache-write", "output", "reasoning"];

/// The position of each known kind of token in the host's lists.
#[derive(Debug, Clone, Default)]
pub struct TokenColumns {
    width: usize,
    places: [Option<usize>; KINDS.len()],
}

impl TokenColumns {
    pub(crate) fn new(columns: &[String]) -> Self {
        let places = KINDS.map(|kind| columns.iter().position(|column| column == kind));
        Self {
            width: columns.len(),
            places,
        }
    }

    pub(crate) fn counts(&self, raw: &[f64]) -> Counts {
        let [input, cached, cache_write, output, reasoning] = self.places.map(|place| {
            place
                .and_then(|place| raw.get(place))
                .map_or(0, |count| *count as u64)
        });
        Counts {
            input,
            cached,
            cache_write,
            output,
            reasoning,
        }
    }

    pub(crate) fn by_kind(&self, price: &Price) -> Vec<f64> {
        let costs = [
            price.input,
            price.cached,
            price.cache_write,
            price.output,
            price.reasoning,
        ];
        let mut row = vec![0.0; self.width];
        for (place, cost) in self.places.iter().zip(costs) {
            if let Some(place) = place {
                row[*place] = cost as f64;
            }
        }
        row
    }
}
