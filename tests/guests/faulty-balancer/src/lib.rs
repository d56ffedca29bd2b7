//! A balancer that fails as its configuration says, as soon as it serves: a request that names no service only tries it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Balancer, Candidates, Decision, Request, Weights};

/// How it fails.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    Panic,
    Loop,
    Grow,
    Recurse,
    Unusable,
    Burn,
    PickNobody,
    RefuseConfig,
    PanicInNew,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    fault: Fault,
}

const BURN_STEPS: u32 = 1_200_000;

struct Faulty(Fault);

impl Balancer for Faulty {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["service"];

    fn new(config: Config, _: &mut Weights) -> Result<Self, String> {
        match config.fault {
            Fault::RefuseConfig => Err("this fault is not to my taste".to_owned()),
            Fault::PanicInNew => panic!("in new"),
            fault => Ok(Self(fault)),
        }
    }

    fn pick(&self, request: &Request, candidates: &Candidates) -> Decision {
        if matches!(self.0, Fault::Burn) {
            // When it is tried, too: by that it is known to be slow.
            burn();
            return candidates.at(1).serve();
        }
        if request.string(0).is_empty() {
            return Decision::none("nobody asks");
        }
        match self.0 {
            Fault::Panic => panic!("my own words"),
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
                None => panic!("everybody is usable"),
            },
            Fault::Burn | Fault::PickNobody | Fault::RefuseConfig | Fault::PanicInNew => {
                Decision::none("I do not want to")
            }
        }
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
fn deep(depth: usize) -> usize {
    std::hint::black_box(deep(std::hint::black_box(depth + 1)) + 1)
}

/// About two milliseconds: each step needs the one before it.
fn burn() {
    let mut mixed = std::hint::black_box(1_u64);
    for _ in 0..BURN_STEPS {
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13) ^ 1;
    }
    std::hint::black_box(mixed);
}

tollgate_policy::export_balancer!(Faulty);
