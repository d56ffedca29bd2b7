//! An example balancer: assigns a new session to the credential with the fewest requests in flight.
use tollgate_policy::{Balancer, Candidates, Decision, NoConfig, Request, Weights};

struct FewestInFlight;

impl Balancer for FewestInFlight {
    type Config = NoConfig;

    fn new(_: NoConfig, _: &mut Weights) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&self, _: &Request, candidates: &Candidates) -> Decision {
        candidates.sticky(|| {
            candidates
                .usable()
                .min_by(|a, b| a.in_flight().total_cmp(&b.in_flight()))
        })
    }
}

tollgate_policy::export_balancer!(FewestInFlight);
