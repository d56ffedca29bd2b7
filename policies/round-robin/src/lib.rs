//! The shipped balancer `round_robin`: new sessions go to the credentials in turn, past those that are not usable.

use tollgate_policy::{Balancer, Candidates, Decision, NoConfig, Request, Weights};

/// The policy.
pub struct RoundRobin;

impl Balancer for RoundRobin {
    type Config = NoConfig;

    fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision {
        candidates.sticky(|| {
            let first = request.sequence() as usize % candidates.len().max(1);
            let from_first = candidates
                .usable()
                .find(|candidate| candidate.index() >= first);
            from_first.or_else(|| candidates.usable().next())
        })
    }
}

tollgate_policy::export_balancer!(RoundRobin);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::{Member, member, pick, request};

    use super::*;

    #[track_caller]
    fn check(members: &[Member], expected: [usize; 4]) {
        let picked = [0, 1, 2, 3].map(|sequence| {
            let decision =
                pick::<RoundRobin>("{}", members, None, &request().with_sequence(sequence));
            decision.member().expect("somebody is usable")
        });
        assert_eq!(picked, expected);
    }

    #[test]
    fn sessions_go_round() {
        check(&[member("a"), member("b"), member("c")], [0, 1, 2, 0]);
    }

    #[test]
    fn unusable_members_are_stepped_past() {
        check(
            &[member("a"), member("b").unusable(), member("c")],
            [0, 2, 2, 0],
        );
        check(
            &[member("a"), member("b"), member("c").unusable()],
            [0, 1, 0, 0],
        );
    }

    #[test]
    fn a_session_stays_at_home() {
        let members = [member("a"), member("b")];
        let decision = pick::<RoundRobin>("{}", &members, Some(1), &request());
        assert_eq!((decision.member(), decision.moves_home()), (Some(1), false));
    }

    #[test]
    fn nobody_usable_is_a_decision() {
        assert_eq!(
            pick::<RoundRobin>("{}", &[], None, &request()).member(),
            None
        );
    }
}
