//! The shipped balancer `fallback`: each request is sent with the first usable credential in the
//! configured order.
//!
//! It is never sticky: a session returns to the first credential as soon as that is usable again.
//! The only exception is a request that names a previous response: the credential that issued the
//! response serves it while usable.

use tollgate_policy::{Balancer, Candidate, Candidates, Decision, NoConfig, Request, Weights};

struct Fallback;

impl Balancer for Fallback {
    type Config = NoConfig;

    fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&self, _: &Request, candidates: &Candidates) -> Decision {
        let continues = candidates.continues().filter(Candidate::usable);
        match continues.or_else(|| candidates.usable().next()) {
            Some(candidate) => candidate.serve(),
            None => Decision::none("no credential is usable"),
        }
    }
}

tollgate_policy::export_balancer!(Fallback);

#[cfg(test)]
mod tests {
    use tollgate_policy::testing::{Member, member, pick, request};

    use super::*;

    #[track_caller]
    fn check(members: &[Member], home: Option<usize>, expected: Option<usize>) {
        let decision = pick::<Fallback>("{}", members, home, &request());
        assert_eq!(
            (decision.member(), decision.moves_home()),
            (expected, false)
        );
    }

    #[test]
    fn the_first_usable_member_serves_regardless_of_the_home() {
        check(&[member("a"), member("b")], None, Some(0));
        check(&[member("a").unusable(), member("b")], None, Some(1));
        check(&[member("a"), member("b")], Some(1), Some(0));
    }

    #[test]
    fn a_previous_response_binds_while_its_issuer_is_usable() {
        check(
            &[member("a"), member("b").with("continues", 1.0)],
            None,
            Some(1),
        );
        check(
            &[member("a"), member("b").with("continues", 1.0).unusable()],
            None,
            Some(0),
        );
    }

    #[test]
    fn no_usable_member_is_a_decision() {
        check(&[], None, None);
    }
}
