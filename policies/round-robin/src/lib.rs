//! The shipped balancer `round_robin`: new sessions rotate over the usable credentials, evenly.
//!
//! The rotation is a function of the request's sequence number and of the members that are usable
//! at that moment; unusable members take no turn. A session that has a home stays there.

use tollgate_policy::{Balancer, Candidates, Decision, NoConfig, Request, Weights};

struct RoundRobin;

impl Balancer for RoundRobin {
    type Config = NoConfig;

    fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision {
        candidates.sticky(|| {
            // Counted over the usable members alone: if an unusable member's turns passed to its
            // neighbour, that one would serve twice its share.
            let usable = candidates.usable().count() as u64;
            let turn = request.sequence() % usable.max(1);
            candidates.usable().nth(turn as usize)
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
            decision.member().expect("at least one member is usable")
        });
        assert_eq!(picked, expected);
    }

    #[test]
    fn new_sessions_rotate_over_the_members() {
        check(&[member("a"), member("b"), member("c")], [0, 1, 2, 0]);
    }

    #[test]
    fn unusable_members_take_no_turn() {
        check(
            &[member("a"), member("b").unusable(), member("c")],
            [0, 2, 0, 2],
        );
        check(
            &[member("a"), member("b"), member("c").unusable()],
            [0, 1, 0, 1],
        );
    }

    #[test]
    fn the_neighbour_of_an_unusable_member_gets_no_more_than_its_share() {
        let members = [
            member("a"),
            member("b").unusable(),
            member("c"),
            member("d"),
        ];
        let mut served = [0; 4];
        for sequence in 0..1200 {
            let request = request().with_sequence(sequence);
            let decision = pick::<RoundRobin>("{}", &members, None, &request);
            served[decision.member().expect("three are usable")] += 1;
        }
        assert_eq!(served, [400, 0, 400, 400]);
    }

    #[test]
    fn a_session_stays_at_its_home() {
        let members = [member("a"), member("b")];
        let decision = pick::<RoundRobin>("{}", &members, Some(1), &request());
        assert_eq!((decision.member(), decision.moves_home()), (Some(1), false));
    }

    #[test]
    fn no_usable_member_is_a_decision() {
        let none_usable = [member("a").unusable()];
        for members in [&[][..], &none_usable] {
            assert_eq!(
                pick::<RoundRobin>("{}", members, None, &request()).member(),
                None
            );
        }
    }
}
