//! Writes the JSON of a usage file, as sing-box does.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::sums::{CombinationSums, UsageCombination, UsageSum, UsageSums};
use crate::values::clock::Timestamp;
use crate::values::exchange::money::NanoUsd;

impl UsageSums {
    /// Returns the text of the file at `now`. Weeks are named by their start in local time.
    pub(crate) fn to_json(&self, now: Timestamp) -> String {
        self.to_json_in(&TimeZone::system(), now)
    }

    pub(super) fn to_json_in(&self, zone: &TimeZone, now: Timestamp) -> String {
        let mut costs = CostSums::default();
        let mut all = UsageSum::default();
        for (combination, sums) in self.combinations() {
            let week = (combination.week_start_unix > 0)
                .then(|| week_name(combination.week_start_unix, zone));
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
}

/// Returns a week's name: its start in local time and the zone's offset at that time, such as
/// `2026-11-26 19:36:27 UTC+5:30`. In UTC it ends with `UTC+0`.
pub(super) fn week_name(start_unix: u64, zone: &TimeZone) -> String {
    let start = i64::try_from(start_unix)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let Some(start) = start else {
        return start_unix.to_string();
    };
    let start = start.to_zoned(zone.clone());
    let offset_s = start.offset().seconds();
    let sign = if offset_s < 0 { '-' } else { '+' };
    let (hours, minutes) = (
        offset_s.unsigned_abs() / 3600,
        offset_s.unsigned_abs() % 3600 / 60,
    );
    let time = start.strftime("%Y-%m-%d %H:%M:%S");
    match minutes {
        0 => format!("{time} UTC{sign}{hours}"),
        minutes => format!("{time} UTC{sign}{hours}:{minutes:02}"),
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

#[derive(Serialize)]
struct UsageFileJson {
    last_updated: String,
    costs: CostsJson,
    combinations: Vec<CombinationJson>,
}

#[derive(Serialize)]
struct CostsJson {
    total_usd: f64,
    by_user: BTreeMap<String, f64>,
    by_week: BTreeMap<String, f64>,
    by_user_and_week: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Serialize)]
struct CombinationJson {
    model: String,
    service_tier: String,
    context_window: u64,
    week_start_unix: u64,
    total: SumJson,
    by_user: BTreeMap<String, SumJson>,
}

#[derive(Serialize)]
struct SumJson {
    request_count: u64,
    input_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
    cost_usd: f64,
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
