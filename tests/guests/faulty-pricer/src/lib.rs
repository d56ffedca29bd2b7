//! A pricer that fails as its configuration says, as soon as it serves: a request that names no service only tries it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollgate_policy::{Counts, Price, Pricer, Request};

/// How it fails.
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

struct Faulty(Fault);

impl Pricer for Faulty {
    type Config = Config;

    const STRINGS: &'static [&'static str] = &["service"];

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self(config.fault))
    }

    fn price(&self, request: &Request, _: &Counts) -> Result<Price, String> {
        if request.string(0).is_empty() {
            return Err("nobody asks".to_owned());
        }
        match self.0 {
            Fault::Panic => panic!("my own words"),
            Fault::Loop => loop {
                std::hint::black_box(request);
            },
            Fault::Absurd => Ok(Price {
                input: u64::MAX / 8,
                ..Price::default()
            }),
            Fault::Unknown => Err("never heard of it".to_owned()),
        }
    }
}

tollgate_policy::export_pricer!(Faulty);
