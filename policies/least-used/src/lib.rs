//! The shipped balancer `least_used`: a new session is assigned to the credential with the most
//! capacity left.
//!
//! A credential's score is the unused part of its weekly window below its cap, multiplied by its
//! plan's weight. The score rises as the window's reset approaches, because capacity that is unused
//! at the reset is lost. The highest score wins; of equal scores, the first in the configured
//! order.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Balancer, Candidate, Candidates, Decision, Request, Weights};

const HOUR_MINUTES: f64 = 60.0;
const WEEK_MINUTES: f64 = 168.0 * HOUR_MINUTES;

/// The configuration of `least-used`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "tollgate_policy::schemars")]
struct Config {
    /// Moves a session if its credential's weekly use exceeds the best credential's by more than
    /// this many percentage points, divided by its plan's weight. 0 disables this.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    rebalance_threshold: f64,
    /// Weights by plan. The defaults are 10 for `pro` and 1 for every other plan.
    #[serde(default)]
    plan_weights: BTreeMap<String, f64>,
}

struct LeastUsed {
    rebalance_threshold: f64,
}

impl Balancer for LeastUsed {
    type Config = Config;

    fn new(config: Config, weights: &mut Weights) -> Result<Self, String> {
        for (plan, weight) in &config.plan_weights {
            weights.set(plan, *weight)?;
        }
        Ok(Self {
            rebalance_threshold: config.rebalance_threshold,
        })
    }

    fn pick(&self, _: &Request, candidates: &Candidates) -> Decision {
        if self.rebalance_threshold > 0.0
            && candidates.continues().is_none()
            && let (Some(home), Some(best)) = (
                candidates.home().filter(Candidate::usable),
                best(candidates),
            )
            && home.weekly_used() - best.weekly_used() > self.rebalance_threshold / home.weight()
        {
            return best.adopt();
        }
        candidates.sticky(|| best(candidates))
    }
}

fn best<'a>(candidates: &Candidates<'a>) -> Option<Candidate<'a>> {
    let mut best: Option<(Candidate<'a>, f64)> = None;
    for candidate in candidates.usable() {
        let score = score(&candidate);
        if best.as_ref().is_none_or(|(_, highest)| score > *highest) {
            best = Some((candidate, score));
        }
    }
    best.map(|(candidate, _)| candidate)
}

fn score(candidate: &Candidate) -> f64 {
    let left = (candidate.weekly_cap() - candidate.weekly_used()) * candidate.weight();
    match candidate.weekly_reset() {
        // An `if` instead of `f64::max`, which compiles to a function call in wasm.
        Some(minutes) => {
            left * (WEEK_MINUTES
                / if minutes > HOUR_MINUTES {
                    minutes
                } else {
                    HOUR_MINUTES
                })
        }
        None => left,
    }
}

tollgate_policy::export_balancer!(LeastUsed);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::{Member, member, pick, request};

    use super::*;

    #[track_caller]
    fn check(
        config: &str,
        members: &[Member],
        home: Option<usize>,
        expected: (Option<usize>, bool),
    ) {
        let decision = pick::<LeastUsed>(config, members, home, &request());
        assert_eq!((decision.member(), decision.moves_home()), expected);
    }

    #[test]
    fn the_most_capacity_left_wins_and_the_first_of_equal_scores() {
        check(
            "{}",
            &[
                member("a").with("weekly-used", 40.0),
                member("b").with("weekly-used", 20.0),
            ],
            None,
            (Some(1), true),
        );
        check("{}", &[member("a"), member("b")], None, (Some(0), true));
    }

    #[test]
    fn a_pro_plan_counts_ten_times() {
        let members = [
            member("a"),
            member("b").plan("pro").with("weekly-used", 80.0),
        ];
        check("{}", &members, None, (Some(1), true));
        check(
            r#"{"plan_weights": {"pro": 1}}"#,
            &members,
            None,
            (Some(0), true),
        );
    }

    #[test]
    fn a_near_reset_raises_the_score_down_to_one_hour() {
        let far = member("a")
            .with("weekly-used", 10.0)
            .with("weekly-reset", 168.0 * 60.0);
        let near = member("b")
            .with("weekly-used", 50.0)
            .with("weekly-reset", 24.0 * 60.0);
        check("{}", &[far, near.clone()], None, (Some(1), true));
        let minute = member("c")
            .with("weekly-used", 50.0)
            .with("weekly-reset", 1.0);
        let hour = member("d")
            .with("weekly-used", 50.0)
            .with("weekly-reset", 60.0);
        check("{}", &[minute, hour], None, (Some(0), true));
    }

    #[test]
    fn a_session_stays_while_its_home_is_usable() {
        let members = [member("a"), member("b").with("weekly-used", 90.0)];
        check("{}", &members, Some(1), (Some(1), false));
    }

    #[test]
    fn a_short_outage_keeps_the_home_and_a_long_one_moves_it() {
        let short = member("b").unusable().with("limited", 5.0);
        check("{}", &[member("a"), short], Some(1), (Some(0), false));
        let long = member("b").unusable().with("limited", 300.0);
        check("{}", &[member("a"), long], Some(1), (Some(0), true));
        let full = member("b").unusable().with("weekly-used", 99.0);
        check("{}", &[member("a"), full], Some(1), (Some(0), true));
    }

    #[test]
    fn a_full_window_that_resets_within_ten_minutes_keeps_the_home() {
        for window in ["five-hour", "weekly"] {
            let full = |minutes: f64| {
                member("b")
                    .unusable()
                    .with(&format!("{window}-used"), 99.0)
                    .with(&format!("{window}-reset"), minutes)
            };
            check("{}", &[member("a"), full(10.0)], Some(1), (Some(0), false));
            check("{}", &[member("a"), full(10.5)], Some(1), (Some(0), true));
        }
    }

    #[test]
    fn the_issuer_of_the_previous_response_takes_precedence_over_the_home() {
        let members = [member("a"), member("b").with("continues", 1.0)];
        check("{}", &members, Some(0), (Some(1), false));
    }

    #[test]
    fn the_threshold_is_divided_by_the_plan_weight() {
        let config = r#"{"rebalance_threshold": 20}"#;
        let plus = [member("a").with("weekly-used", 21.0), member("b")];
        check(config, &plus, Some(0), (Some(1), true));
        let within = [member("a").with("weekly-used", 20.0), member("b")];
        check(config, &within, Some(0), (Some(0), false));
        let pro = [
            member("a").plan("pro").with("weekly-used", 3.0),
            member("b").plan("pro"),
        ];
        check(config, &pro, Some(0), (Some(1), true));
    }

    #[test]
    fn no_usable_member_is_a_decision_with_a_reason() {
        check("{}", &[member("a").unusable()], None, (None, false));
        check("{}", &[], None, (None, false));
    }
}
