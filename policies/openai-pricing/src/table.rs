//! The price table: converts prices in USD per million tokens into integer rates.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{LONG_CONTEXT, SHORT_CONTEXT};

const SHIPPED: &str = include_str!("../prices.json");

/// No token has ever cost this much: a higher figure is a typing error.
const USD_PER_MILLION_MAX: f64 = 1_000_000.0;

/// The prices of a model family.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "tollgate_policy::schemars")]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "source and date are documentation for readers of the table"
    )
)]
pub(crate) struct FamilyPrices {
    /// The source of the figures.
    #[serde(default)]
    source: String,
    /// The day on which the source showed them: `2026-03-05`.
    #[serde(default)]
    date: String,
    /// Prices of the default tier.
    default: UsdPrices,
    /// Prices of the default tier beyond 272,000 input tokens.
    long: Option<UsdPrices>,
    /// Prices of the flex tier, or their ratio to the default tier's.
    flex: Option<TierPrices>,
    /// Prices of the priority tier, or their ratio to the default tier's.
    priority: Option<TierPrices>,
}

/// Prices in USD per million tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "tollgate_policy::schemars")]
struct UsdPrices {
    /// Input tokens that are not read from a prompt cache.
    #[schemars(range(min = 0.0))]
    input: f64,
    /// Input tokens read from a prompt cache.
    #[schemars(range(min = 0.0))]
    cached: f64,
    /// Input tokens written to a prompt cache. Default: the price of `input`.
    #[schemars(range(min = 0.0))]
    cache_write: Option<f64>,
    /// Output tokens, including reasoning tokens.
    #[schemars(range(min = 0.0))]
    output: f64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(crate = "tollgate_policy::schemars")]
enum TierPrices {
    /// A multiple of the default tier's prices, including the long-context prices.
    Ratio(#[schemars(range(min = 0.0))] f64),
    /// Separate prices. A tier with separate prices has no long-context price.
    Own(UsdPrices),
}

/// The cost of one token in pico-dollars (10^-12 USD), so that prices below a nano-dollar per token
/// stay integers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenRate(u64);

impl TokenRate {
    fn from_usd_per_million(usd: f64) -> Result<Self, String> {
        if !(0.0..=USD_PER_MILLION_MAX).contains(&usd) {
            return Err(format!(
                "expected USD per million tokens from 0 to {USD_PER_MILLION_MAX}, found {usd}"
            ));
        }
        Ok(Self((usd * 1e6).round() as u64))
    }

    /// Returns the cost of `tokens` in nano-dollars, rounded half up.
    pub(crate) fn of(self, tokens: u64) -> u64 {
        // Below 2^32 (4,294 USD per million tokens) 64 bits suffice; wasm emulates 128-bit
        // arithmetic.
        if let (Ok(rate), Ok(tokens)) = (u32::try_from(self.0), u32::try_from(tokens)) {
            return (u64::from(rate) * u64::from(tokens) + 500) / 1000;
        }
        let picodollars = u128::from(self.0) * u128::from(tokens);
        u64::try_from((picodollars + 500) / 1000).unwrap_or(u64::MAX)
    }
}

/// The rates of one tier at one context length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenRates {
    pub(crate) input: TokenRate,
    pub(crate) cached: TokenRate,
    pub(crate) cache_write: TokenRate,
    pub(crate) output: TokenRate,
}

impl TokenRates {
    fn new(usd: &UsdPrices, ratio: f64) -> Result<Self, String> {
        Ok(Self {
            input: TokenRate::from_usd_per_million(usd.input * ratio)?,
            cached: TokenRate::from_usd_per_million(usd.cached * ratio)?,
            cache_write: TokenRate::from_usd_per_million(
                usd.cache_write.unwrap_or(usd.input) * ratio,
            )?,
            output: TokenRate::from_usd_per_million(usd.output * ratio)?,
        })
    }
}

/// A service tier that is charged separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceTier {
    Default,
    Flex,
    Priority,
}

impl ServiceTier {
    /// Returns the tier to charge. `auto`, `scale`, unknown and missing tiers count as `default`.
    pub(crate) fn charged_for(name: &str) -> Self {
        match name {
            "flex" => Self::Flex,
            "priority" => Self::Priority,
            _ => Self::Default,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }
}

/// The rates of one family.
#[derive(Debug, Clone)]
pub(crate) struct FamilyRates {
    default: RatesByContext,
    flex: Option<RatesByContext>,
    priority: Option<RatesByContext>,
}

#[derive(Debug, Clone, Copy)]
struct RatesByContext {
    short: TokenRates,
    long: Option<TokenRates>,
}

impl FamilyRates {
    fn new(family: &FamilyPrices) -> Result<Self, String> {
        let tier = |prices: &Option<TierPrices>| match prices {
            Some(prices) => RatesByContext::of_tier(family, prices).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            default: RatesByContext::scaled(family, 1.0)?,
            flex: tier(&family.flex)?,
            priority: tier(&family.priority)?,
        })
    }

    /// Returns the rates for `input` tokens in `tier` and the context window they apply to, or
    /// `None` if the tier has no price.
    pub(crate) fn rates(&self, tier: ServiceTier, input: u64) -> Option<(&TokenRates, u64)> {
        let rates = match tier {
            ServiceTier::Default => Some(&self.default),
            ServiceTier::Flex => self.flex.as_ref(),
            ServiceTier::Priority => self.priority.as_ref(),
        }?;
        match &rates.long {
            Some(long) if input > SHORT_CONTEXT => Some((long, LONG_CONTEXT)),
            _ => Some((&rates.short, SHORT_CONTEXT)),
        }
    }
}

impl RatesByContext {
    fn of_tier(family: &FamilyPrices, prices: &TierPrices) -> Result<Self, String> {
        match prices {
            TierPrices::Ratio(ratio) => Self::scaled(family, *ratio),
            TierPrices::Own(usd) => Ok(Self {
                short: TokenRates::new(usd, 1.0)?,
                long: None,
            }),
        }
    }

    fn scaled(family: &FamilyPrices, ratio: f64) -> Result<Self, String> {
        let long = match &family.long {
            Some(long) => Some(TokenRates::new(long, ratio)?),
            None => None,
        };
        Ok(Self {
            short: TokenRates::new(&family.default, ratio)?,
            long,
        })
    }
}

/// Prices by the name of the model family.
#[derive(Debug, Default)]
pub(crate) struct PriceTable {
    /// Keyed by names from the operator's configuration, so a hash that resists collisions is not
    /// needed.
    families: FxHashMap<String, FamilyRates>,
}

impl PriceTable {
    /// Creates the table from the embedded `prices.json`.
    pub(crate) fn shipped() -> Result<Self, String> {
        let families: BTreeMap<String, FamilyPrices> =
            serde_json::from_str(SHIPPED).map_err(|error| format!("shipped prices: {error}"))?;
        let mut table = Self::default();
        for (name, family) in families {
            table.insert(name, &family)?;
        }
        Ok(table)
    }

    pub(crate) fn insert(&mut self, name: String, family: &FamilyPrices) -> Result<(), String> {
        let prices = FamilyRates::new(family).map_err(|error| format!("prices.{name}: {error}"))?;
        self.families.insert(name, prices);
        Ok(())
    }

    /// Returns the prices listed under `model`, or under its name without a trailing date.
    pub(crate) fn find(&self, model: &str) -> Option<&FamilyRates> {
        self.families
            .get(model)
            .or_else(|| self.families.get(undated(model)?))
    }
}

/// Returns `gpt-5.4` for `gpt-5.4-2026-03-05`, and `None` for a name without a date.
fn undated(model: &str) -> Option<&str> {
    let (family, date) = model.split_at_checked(model.len().checked_sub("-2026-03-05".len())?)?;
    let is_date = date.bytes().enumerate().all(|(place, byte)| match place {
        0 | 5 | 8 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    is_date.then_some(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_price_names_its_source_and_date() {
        let families: BTreeMap<String, FamilyPrices> =
            serde_json::from_str(SHIPPED).expect("prices.json is well formed");
        assert!(families.len() > 20);
        for (name, family) in families {
            assert!(
                family.source.starts_with("https://"),
                "{name}: source {:?}",
                family.source
            );
            assert_eq!(
                family.date.len(),
                "2026-03-05".len(),
                "{name}: date {:?}",
                family.date
            );
        }
    }

    #[test]
    fn a_cost_is_the_same_on_both_sides_of_32_bits() {
        let edge = u64::from(u32::MAX);
        for rate in [0, 1, 500, edge, edge + 1] {
            for tokens in [0, 1, 499, edge, edge + 1] {
                let expected = (u128::from(rate) * u128::from(tokens) + 500) / 1000;
                assert_eq!(
                    u128::from(TokenRate(rate).of(tokens)),
                    expected,
                    "{rate} times {tokens}"
                );
            }
        }
    }

    #[test]
    fn every_shipped_price_can_be_charged() {
        let table = PriceTable::shipped().expect("prices.json is within bounds");
        assert!(table.find("gpt-5.3-codex").is_some());
    }
}
