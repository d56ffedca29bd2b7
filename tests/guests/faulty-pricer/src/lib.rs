//! A pricer that fails in the way its configuration selects. Calls of the self-test, whose request
//! names no service, return an error in its own words, which is not a fault.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Counts, Price, Pricer, Request};

/// The fault to commit.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    Panic,
    Loop,
    Absurd,
    Unknown,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    fault: Fault,
}

struct FaultyPricer(Fault);

impl Pricer for FaultyPricer {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["service"];

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self(config.fault))
    }

    fn price(&self, request: &Request, _: &Counts) -> Result<Price, String> {
        if request.string(0).is_empty() {
            return Err("self-test".to_owned());
        }
        match self.0 {
            Fault::Panic => panic!("the guest's panic message"),
            Fault::Loop => loop {
                std::hint::black_box(request);
            },
            Fault::Absurd => Ok(Price {
                input: u64::MAX / 8,
                ..Price::default()
            }),
            Fault::Unknown => Err("the guest does not know the model".to_owned()),
        }
    }
}

tollgate_policy::export_pricer!(FaultyPricer);
