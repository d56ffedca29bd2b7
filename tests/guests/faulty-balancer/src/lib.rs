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
    PickNobody,
    RefuseConfig,
    PanicInNew,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    fault: Fault,
}

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
            Fault::Recurse => candidates.at(deep(request.sequence() as usize + 1) % 2).serve(),
            Fault::Unusable => match candidates.iter().find(|candidate| !candidate.usable()) {
                Some(unusable) => unusable.serve(),
                None => panic!("everybody is usable"),
            },
            Fault::PickNobody | Fault::RefuseConfig | Fault::PanicInNew => Decision::none("I do not want to"),
        }
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
fn deep(depth: usize) -> usize {
    std::hint::black_box(deep(std::hint::black_box(depth + 1)) + 1)
}

tollgate_policy::export_balancer!(Faulty);
