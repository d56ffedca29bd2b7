//! A balancer that fails in the way its configuration selects. Calls of the self-test, whose
//! request names no service, succeed.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Balancer, Candidates, Decision, Request, Weights};

/// The fault to commit.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    Panic,
    Loop,
    Grow,
    Recurse,
    Unusable,
    Burn,
    PickNone,
    RefuseConfig,
    PanicInNew,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    fault: Fault,
}

const BURN_STEPS: u32 = 1_200_000;

struct FaultyBalancer(Fault);

impl Balancer for FaultyBalancer {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["service"];

    fn new(config: Config, _: &mut Weights) -> Result<Self, String> {
        match config.fault {
            Fault::RefuseConfig => Err("the test configured a rejection".to_owned()),
            Fault::PanicInNew => panic!("panic in new"),
            fault => Ok(Self(fault)),
        }
    }

    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision {
        if matches!(self.0, Fault::Burn) {
            // In the self-test as well: the gateway learns there that the policy is slow.
            burn();
            return candidates.at(1).serve();
        }
        if request.string(0).is_empty() {
            return Decision::none("self-test");
        }
        match self.0 {
            Fault::Panic => panic!("the guest's panic message"),
            Fault::Loop => loop {
                std::hint::black_box(request);
            },
            Fault::Grow => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            Fault::Recurse => candidates
                .at(deep(request.sequence() as usize + 1) % 2)
                .serve(),
            Fault::Unusable => match candidates.iter().find(|candidate| !candidate.usable()) {
                Some(unusable) => unusable.serve(),
                None => panic!("every member is usable"),
            },
            Fault::Burn | Fault::PickNone | Fault::RefuseConfig | Fault::PanicInNew => {
                Decision::none("the guest picks no member")
            }
        }
    }
}

#[expect(unconditional_recursion, reason = "exhausting the stack is the fault")]
fn deep(depth: usize) -> usize {
    std::hint::black_box(deep(std::hint::black_box(depth + 1)) + 1)
}

/// Takes about two milliseconds: each step depends on the one before.
fn burn() {
    let mut mixed = std::hint::black_box(1_u64);
    for _ in 0..BURN_STEPS {
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13) ^ 1;
    }
    std::hint::black_box(mixed);
}

tollgate_policy::export_balancer!(FaultyBalancer);
