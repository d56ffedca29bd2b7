//! The sums of a usage file, by model, tier, context window, week and user.

use std::collections::BTreeMap;

use crate::values::exchange::money::NanoUsd;

/// The context window of a response without a price.
const DEFAULT_CONTEXT_WINDOW: u64 = 272_000;

/// What a usage file counts of one response.
#[derive(Debug, Clone)]
pub(crate) struct ResponseUsage<'a> {
    /// The model that answered.
    pub(crate) model: &'a str,
    /// The service tier as upstream names it.
    pub(crate) service_tier: &'a str,
    /// The context window, if the response has a price.
    pub(crate) context_window: Option<u64>,
    /// The start of the credential's week, in Unix seconds.
    pub(crate) week_start_unix: Option<u64>,
    /// The user's name, if the service has users.
    pub(crate) user: Option<&'a str>,
    /// 1, or 0 for what is not a request.
    pub(crate) requests: u64,
    /// Input tokens, including the cached ones.
    pub(crate) input: u64,
    /// Input tokens that were read from a prompt cache.
    pub(crate) cached: u64,
    /// Output tokens of the response.
    pub(crate) output: u64,
    /// The cost, 0 without a price.
    pub(crate) cost: NanoUsd,
}

/// The sums of one usage file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct UsageSums {
    combinations: BTreeMap<UsageCombination, CombinationSums>,
}

/// What a sum is grouped by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UsageCombination {
    pub(super) model: String,
    pub(super) service_tier: String,
    pub(super) context_window: u64,
    /// The start of the credential's week in Unix seconds; 0 if it is unknown.
    pub(super) week_start_unix: u64,
}

impl UsageCombination {
    /// Creates a combination with a tier and a context window that a usage file knows.
    pub(super) fn new(
        model: String,
        service_tier: &str,
        context_window: Option<u64>,
        week_start_unix: u64,
    ) -> Self {
        Self {
            model,
            service_tier: known_tier(service_tier).to_owned(),
            context_window: context_window.unwrap_or(DEFAULT_CONTEXT_WINDOW),
            week_start_unix,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CombinationSums {
    pub(super) total: UsageSum,
    pub(super) by_user: BTreeMap<String, UsageSum>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct UsageSum {
    pub(super) requests: u64,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cached: u64,
    pub(super) cost: NanoUsd,
}

impl UsageSum {
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input += other.input;
        self.output += other.output;
        self.cached += other.cached;
        self.cost.0 += other.cost.0;
    }
}

impl UsageSums {
    pub(crate) fn add(&mut self, usage: &ResponseUsage<'_>) {
        let combination = UsageCombination::new(
            usage.model.to_owned(),
            usage.service_tier,
            usage.context_window,
            usage.week_start_unix.unwrap_or(0),
        );
        let sum = UsageSum {
            requests: usage.requests,
            input: usage.input,
            output: usage.output,
            cached: usage.cached,
            cost: usage.cost,
        };
        let sums = self.combination_mut(combination);
        sums.total.add(&sum);
        if let Some(user) = usage.user {
            sums.by_user.entry(user.to_owned()).or_default().add(&sum);
        }
    }

    pub(super) fn combinations(&self) -> &BTreeMap<UsageCombination, CombinationSums> {
        &self.combinations
    }

    pub(super) fn combination_mut(
        &mut self,
        combination: UsageCombination,
    ) -> &mut CombinationSums {
        self.combinations.entry(combination).or_default()
    }
}

/// Returns the tier that a response counts under.
fn known_tier(service_tier: &str) -> &str {
    match service_tier {
        "flex" | "priority" => service_tier,
        _ => "default",
    }
}
