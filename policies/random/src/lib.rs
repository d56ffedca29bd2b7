//! The shipped balancer `random`: a new session is assigned to a usable credential, each with the
//! same probability.

use tollgate_policy::{Balancer, Candidates, Decision, NoConfig, Request, Weights};

struct Random;

impl Balancer for Random {
    type Config = NoConfig;

    fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision {
        candidates.sticky(|| {
            let usable = candidates.usable().count() as u64;
            // The seed has 53 random bits, so the bias of the remainder is below 2^-40 for any pool
            // that fits in memory.
            candidates
                .usable()
                .nth((request.seed() % usable.max(1)) as usize)
        })
    }
}

tollgate_policy::export_balancer!(Random);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::{member, pick, request};

    use super::*;

    #[test]
    fn every_usable_member_is_equally_likely() {
        let members = [member("a"), member("b").unusable(), member("c")];
        let mut served = [0; 3];
        for seed in 0..1000 {
            let decision = pick::<Random>("{}", &members, None, &request().with_seed(seed));
            served[decision.member().expect("two are usable")] += 1;
        }
        assert_eq!(served, [500, 0, 500]);
    }

    #[test]
    fn the_same_seed_chooses_the_same_member() {
        let members = [member("a"), member("b"), member("c")];
        let seeded = request().with_seed(9_007_199_254_740_991);
        let first = pick::<Random>("{}", &members, None, &seeded);
        assert_eq!(first, pick::<Random>("{}", &members, None, &seeded));
    }

    #[test]
    fn no_usable_member_is_a_decision() {
        assert_eq!(
            pick::<Random>("{}", &[member("a").unusable()], None, &request()).member(),
            None
        );
    }
}
