//! Pricers: what usage costs.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::request::Request;

/// Prices a response.
pub trait Pricer: Sized + 'static {
    /// What the operator may configure; [`NoConfig`](crate::NoConfig) for nothing.
    type Config: DeserializeOwned + JsonSchema;

    /// Which strings of a request the policy wants to see, by their names in the contract. Each costs a copy.
    const STRINGS: &'static [&'static str] = &["model", "service-tier"];

    /// Takes the configuration.
    ///
    /// # Errors
    /// A text that tells the operator what is wrong.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// What `counts` cost.
    ///
    /// # Errors
    /// Why that cannot be told; the usage is recorded as unpriced, for that reason.
    fn price(&self, request: &Request, counts: &Counts) -> Result<Price, String>;
}

/// The tokens of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All input tokens; `cached` and `cache_write` are contained.
    pub input: u64,
    /// Input tokens read from a prompt cache.
    pub cached: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write: u64,
    /// All output tokens; `reasoning` is contained.
    pub output: u64,
    /// Output tokens spent on reasoning.
    pub reasoning: u64,
}

/// What a response costs, in nano-dollars (10^-9 USD) by kind. A kind that is contained in another and not charged on
/// its own costs 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price {
    /// Input tokens that are neither cached nor cache writes.
    pub input: u64,
    /// Input tokens read from a prompt cache.
    pub cached: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write: u64,
    /// Output tokens.
    pub output: u64,
    /// Reasoning tokens, where they have a price of their own.
    pub reasoning: u64,
    /// The context window that the price belongs to, in tokens.
    pub context_window: u64,
}

impl Price {
    /// The cost in all.
    pub fn total(&self) -> u64 {
        self.input + self.cached + self.cache_write + self.output + self.reasoning
    }
}

const KINDS: [&str; 5] = ["input", "cached", "cache-write", "output", "reasoning"];

/// Where each known kind of token stands in the host's lists.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    width: usize,
    places: [Option<usize>; KINDS.len()],
}

impl Columns {
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
