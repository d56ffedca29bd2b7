//! The JSON of a usage file, as sing-box writes it. Money is a decimal fraction here, and only
//! here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::sums::{CombinationSums, UsageCombination, UsageSum, UsageSums};
use crate::values::clock::Timestamp;
use crate::values::exchange::money::NanoUsd;

/// Why a text is not a usage file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidUsageFile {
    /// The text is not JSON of the expected shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A cost is negative, or too large.
    #[error("cost_usd: expected an amount from 0 to 9e9, found {0}")]
    Cost(f64),
}

impl UsageSums {
    /// Returns the text of the file at `now`.
    pub(crate) fn to_json(&self, now: Timestamp) -> String {
        let mut costs = CostSums::default();
        let mut all = UsageSum::default();
        for (combination, sums) in self.combinations() {
            let week = (combination.week_start_unix > 0)
                .then(|| Timestamp::from_unix(combination.week_start_unix).rfc3339());
            all.add(&sums.total);
            if let Some(week) = &week {
                *costs.by_week.entry(week.clone()).or_default() += sums.total.cost.0;
            }
            for (user, sum) in &sums.by_user {
                *costs.by_user.entry(user.clone()).or_default() += sum.cost.0;
                if let Some(week) = &week {
                    let weeks = costs.by_user_and_week.entry(user.clone()).or_default();
                    *weeks.entry(week.clone()).or_default() += sum.cost.0;
                }
            }
        }
        let file = UsageFileJson {
            last_updated: now.rfc3339(),
            costs: CostsJson {
                total_usd: all.cost.usd(),
                by_user: usd(&costs.by_user),
                by_week: usd(&costs.by_week),
                by_user_and_week: costs
                    .by_user_and_week
                    .iter()
                    .map(|(user, weeks)| (user.clone(), usd(weeks)))
                    .collect(),
            },
            combinations: self
                .combinations()
                .iter()
                .map(CombinationJson::from)
                .collect(),
        };
        serde_json::to_string_pretty(&file)
            .unwrap_or_else(|error| unreachable!("all maps have text keys: {error}"))
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// The text is not a usage file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, InvalidUsageFile> {
        let file: UsageFileJson = serde_json::from_slice(text)?;
        let mut sums = Self::default();
        for entry in file.combinations {
            let combination = UsageCombination::new(
                entry.model,
                &entry.service_tier,
                (entry.context_window != 0).then_some(entry.context_window),
                entry.week_start_unix,
            );
            let combined = sums.combination_mut(combination);
            combined.total.add(&entry.total.sum()?);
            for (user, sum) in entry.by_user {
                combined.by_user.entry(user).or_default().add(&sum.sum()?);
            }
        }
        Ok(sums)
    }
}

fn usd(nano: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    nano.iter()
        .map(|(name, amount)| (name.clone(), NanoUsd(*amount).usd()))
        .collect()
}

/// The costs in nano-dollars.
#[derive(Default)]
struct CostSums {
    by_user: BTreeMap<String, u64>,
    by_week: BTreeMap<String, u64>,
    by_user_and_week: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Serialize, Deserialize)]
struct UsageFileJson {
    last_updated: String,
    #[serde(default)]
    costs: CostsJson,
    combinations: Vec<CombinationJson>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct CostsJson {
    total_usd: f64,
    by_user: BTreeMap<String, f64>,
    by_week: BTreeMap<String, f64>,
    by_user_and_week: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Serialize, Deserialize)]
struct CombinationJson {
    model: String,
    #[serde(default)]
    service_tier: String,
    #[serde(default)]
    context_window: u64,
    #[serde(default)]
    week_start_unix: u64,
    total: SumJson,
    #[serde(default)]
    by_user: BTreeMap<String, SumJson>,
}

#[derive(Serialize, Deserialize)]
struct SumJson {
    #[serde(default)]
    request_count: u64,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    cost_usd: f64,
}

impl SumJson {
    fn sum(&self) -> Result<UsageSum, InvalidUsageFile> {
        let cost = NanoUsd::from_usd(self.cost_usd).ok_or(InvalidUsageFile::Cost(self.cost_usd))?;
        Ok(UsageSum {
            requests: self.request_count,
            input: self.input_tokens,
            output: self.output_tokens,
            cached: self.cached_tokens,
            cost,
        })
    }
}

impl From<&UsageSum> for SumJson {
    fn from(sum: &UsageSum) -> Self {
        Self {
            request_count: sum.requests,
            input_tokens: sum.input,
            output_tokens: sum.output,
            cached_tokens: sum.cached,
            cost_usd: sum.cost.usd(),
        }
    }
}

impl From<(&UsageCombination, &CombinationSums)> for CombinationJson {
    fn from((combination, sums): (&UsageCombination, &CombinationSums)) -> Self {
        Self {
            model: combination.model.clone(),
            service_tier: combination.service_tier.clone(),
            context_window: combination.context_window,
            week_start_unix: combination.week_start_unix,
            total: SumJson::from(&sums.total),
            by_user: sums
                .by_user
                .iter()
                .map(|(user, sum)| (user.clone(), SumJson::from(sum)))
                .collect(),
        }
    }
}
