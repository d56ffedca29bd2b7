//! Reads the JSON of a usage file: this gateway's, and those of sing-box since its first version.
//!
//! The sums of costs are not read: they follow from the combinations. Old files call the tokens
//! `prompt_tokens` and `completion_tokens`, and have `null` in place of empty lists and maps.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::sums::{UsageCombination, UsageSum, UsageSums};
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
    /// Parses the text of a file.
    ///
    /// # Errors
    /// The text is not a usage file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, InvalidUsageFile> {
        let file: StoredUsageFile = serde_json::from_slice(text)?;
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

#[derive(Deserialize)]
struct StoredUsageFile {
    /// Required, so that another JSON file is not taken for a usage file.
    #[serde(deserialize_with = "null_as_default")]
    combinations: Vec<StoredCombination>,
}

#[derive(Deserialize)]
struct StoredCombination {
    model: String,
    #[serde(default, deserialize_with = "null_as_default")]
    service_tier: String,
    #[serde(default, deserialize_with = "null_as_default")]
    context_window: u64,
    #[serde(default, deserialize_with = "null_as_default")]
    week_start_unix: u64,
    total: StoredSum,
    #[serde(default, deserialize_with = "null_as_default")]
    by_user: BTreeMap<String, StoredSum>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredSum {
    request_count: u64,
    input_tokens: u64,
    /// `input_tokens` in old files.
    prompt_tokens: u64,
    output_tokens: u64,
    /// `output_tokens` in old files.
    completion_tokens: u64,
    cached_tokens: u64,
    cost_usd: f64,
}

impl StoredSum {
    fn sum(&self) -> Result<UsageSum, InvalidUsageFile> {
        let cost = NanoUsd::from_usd(self.cost_usd).ok_or(InvalidUsageFile::Cost(self.cost_usd))?;
        Ok(UsageSum {
            requests: self.request_count,
            input: first_above_0(self.input_tokens, self.prompt_tokens),
            output: first_above_0(self.output_tokens, self.completion_tokens),
            cached: self.cached_tokens,
            cost,
        })
    }
}

fn first_above_0(tokens: u64, old_tokens: u64) -> u64 {
    if tokens > 0 { tokens } else { old_tokens }
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
