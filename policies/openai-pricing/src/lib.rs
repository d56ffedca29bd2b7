//! The shipped pricer: OpenAI's list prices, by model family, service tier and context length.
//!
//! The prices are data: `prices.json` holds each with its source and date, and the policy's
//! configuration can replace some or all of them. A model or tier without a price is an error: the
//! policy never guesses.

mod table;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Counts, Price, Pricer, Request};

use table::{FamilyPrices, PriceTable, ServiceTier, TokenRates};

/// Input beyond this many tokens is charged at the family's long-context price, if it has one.
const SHORT_CONTEXT: u64 = 272_000;
/// The context window of a request that was charged at a long-context price.
const LONG_CONTEXT: u64 = 1_050_000;

const MODEL: usize = 0;
const SERVICE_TIER: usize = 1;

/// The configuration of `openai-pricing`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "tollgate_policy::schemars")]
struct Config {
    /// Prices by model family. They are added to the shipped prices and replace those of the same
    /// name.
    #[serde(default)]
    prices: BTreeMap<String, FamilyPrices>,
    /// Whether the shipped prices apply to models that `prices` does not name.
    #[serde(default = "yes")]
    shipped_prices: bool,
}

fn yes() -> bool {
    true
}

struct OpenAiPricing {
    table: PriceTable,
}

impl Pricer for OpenAiPricing {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["model", "service-tier"];

    fn new(config: Config) -> Result<Self, String> {
        let mut table = if config.shipped_prices {
            PriceTable::shipped()?
        } else {
            PriceTable::default()
        };
        for (name, family) in config.prices {
            table.insert(name, &family)?;
        }
        Ok(Self { table })
    }

    fn price(&self, request: &Request, counts: &Counts) -> Result<Price, String> {
        let model = request.string(MODEL);
        if model.is_empty() {
            return Err("the response names no model".to_owned());
        }
        let prices = self
            .table
            .find(model)
            .ok_or_else(|| format!("model {model:?} has no price"))?;
        let tier = ServiceTier::charged_for(request.string(SERVICE_TIER));
        let (rates, context_window) = prices
            .rates(tier, counts.input)
            .ok_or_else(|| format!("model {model:?} has no price for tier {:?}", tier.as_str()))?;
        Ok(Price {
            context_window,
            ..cost(rates, counts)
        })
    }
}

fn cost(rates: &TokenRates, counts: &Counts) -> Price {
    let plain = counts
        .input
        .saturating_sub(counts.cached)
        .saturating_sub(counts.cache_write);
    Price {
        input: rates.input.of(plain),
        cached: rates.cached.of(counts.cached),
        cache_write: rates.cache_write.of(counts.cache_write),
        output: rates.output.of(counts.output),
        // Reasoning tokens are part of the output tokens and are charged with them.
        reasoning: 0,
        context_window: 0,
    }
}

tollgate_policy::export_pricer!(OpenAiPricing);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::request;

    use super::*;

    const MILLION: Counts = Counts {
        input: 200_000,
        cached: 100_000,
        cache_write: 0,
        output: 1_000_000,
        reasoning: 7,
    };

    fn policy(config: &str) -> OpenAiPricing {
        let config = serde_json::from_str(config).expect("the test passes valid JSON");
        OpenAiPricing::new(config).expect("the test passes valid prices")
    }

    #[track_caller]
    fn check(
        config: &str,
        model: &str,
        tier: &str,
        counts: Counts,
        expected: Result<(u64, u64), &str>,
    ) {
        let price = policy(config).price(&request().with_strings([model, tier]), &counts);
        let found = price.map(|price| (price.total(), price.context_window));
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn cached_tokens_cost_the_cached_price() {
        // 100,000 at 2.50 + 100,000 at 0.25 + 1,000,000 at 15.00 per million: 0.25 + 0.025 + 15
        // USD.
        check("{}", "gpt-5.4", "", MILLION, Ok((15_275_000_000, 272_000)));
    }

    #[test]
    fn tiers_have_separate_prices_and_unknown_tiers_count_as_default() {
        check(
            "{}",
            "gpt-5.4",
            "flex",
            MILLION,
            Ok((7_637_500_000, 272_000)),
        );
        check(
            "{}",
            "gpt-5.4",
            "priority",
            MILLION,
            Ok((30_550_000_000, 272_000)),
        );
        for same in ["auto", "scale", "default", "nonsense"] {
            check(
                "{}",
                "gpt-5.4",
                same,
                MILLION,
                Ok((15_275_000_000, 272_000)),
            );
        }
    }

    #[test]
    fn long_context_starts_past_272_000_tokens() {
        let at = Counts {
            input: 272_000,
            ..Counts::default()
        };
        let past = Counts {
            input: 272_001,
            ..Counts::default()
        };
        check("{}", "gpt-5.4", "", at, Ok((680_000_000, 272_000)));
        check("{}", "gpt-5.4", "", past, Ok((1_360_005_000, 1_050_000)));
        check("{}", "gpt-5", "", past, Ok((340_001_250, 272_000)));
    }

    #[test]
    fn only_a_dated_name_belongs_to_its_family() {
        check(
            "{}",
            "gpt-5.4-2026-03-05",
            "",
            MILLION,
            Ok((15_275_000_000, 272_000)),
        );
        check(
            "{}",
            "gpt-5.4-pro-2026-03-05",
            "",
            Counts {
                output: 1,
                ..Counts::default()
            },
            Ok((180_000, 272_000)),
        );
        check(
            "{}",
            "gpt-5.4-enormous",
            "",
            MILLION,
            Err(r#"model "gpt-5.4-enormous" has no price"#),
        );
        check(
            "{}",
            "gpt-5.4-2026-3-5",
            "",
            MILLION,
            Err(r#"model "gpt-5.4-2026-3-5" has no price"#),
        );
    }

    #[test]
    fn a_longer_name_wins_over_its_family() {
        let own = r#"{"prices": {"gpt-5.4-2026-03-05": {"source": "mine", "date": "2026-03-05",
            "default": {"input": 1, "cached": 1, "output": 1}}}}"#;
        let one = Counts {
            output: 1_000_000,
            ..Counts::default()
        };
        check(
            own,
            "gpt-5.4-2026-03-05",
            "",
            one,
            Ok((1_000_000_000, 272_000)),
        );
        check(
            own,
            "gpt-5.4-2026-03-06",
            "",
            one,
            Ok((15_000_000_000, 272_000)),
        );
    }

    #[test]
    fn an_unknown_model_is_an_error_and_never_free() {
        check("{}", "", "", MILLION, Err("the response names no model"));
        check(
            "{}",
            "llama",
            "",
            MILLION,
            Err(r#"model "llama" has no price"#),
        );
        check(
            "{}",
            "o1",
            "flex",
            MILLION,
            Err(r#"model "o1" has no price for tier "flex""#),
        );
    }

    #[test]
    fn the_whole_table_can_be_replaced() {
        check(
            r#"{"shipped_prices": false}"#,
            "gpt-5.4",
            "",
            MILLION,
            Err(r#"model "gpt-5.4" has no price"#),
        );
    }

    #[test]
    fn a_fraction_of_a_nanodollar_is_rounded_once_per_kind() {
        // 0.005 USD per million is 5 nano-dollars a token; flex is half of that.
        check(
            "{}",
            "gpt-5-nano",
            "flex",
            Counts {
                input: 3,
                cached: 3,
                ..Counts::default()
            },
            Ok((8, 272_000)),
        );
    }

    #[test]
    fn cache_writes_without_a_price_cost_the_input_price() {
        let counts = Counts {
            input: 10,
            cache_write: 10,
            ..Counts::default()
        };
        check("{}", "gpt-5.4", "", counts, Ok((25_000, 272_000)));
    }
}
