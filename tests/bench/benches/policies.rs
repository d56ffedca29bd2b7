//! What a call of each shipped policy costs, warm, through the engine that the gateway uses.

use std::hint::black_box;
use std::path::Path;

use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate::config::{self, PolicyConfig, PolicyKind};
use tollgate::policy::{Engine, Facts, Members, Policy, load_alone};
use tollgate::values::candidate::BalancerCandidate;
use tollgate::values::clock::Timestamp;
use tollgate::values::counts::TokenCounts;
use tollgate_bench::timing::{Figure, Timer};

const MEMORY: usize = 16 * 1024 * 1024;

/// Numbers of candidates, and what a choice among them should take.
const PICKS: [(usize, Option<f64>); 3] = [(2, None), (8, Some(0.6)), (64, Some(1.5))];
const PRICE_AIM_US: f64 = 0.6;
const THREE_HEADERS_AIM_US: f64 = 1.5;

fn shipped(name: &'static str, kind: PolicyKind, config: serde_json::Value) -> PolicyConfig {
    PolicyConfig::shipped(name, kind, config)
}

fn facts() -> Facts<'static> {
    Facts {
        user: "alice",
        session: "0199a0c4-9a52-7d10-b0c9-5d1f0e5a2f11",
        model: "gpt-5.4-2026-03-05",
        service_tier: "priority",
        path: "/v1/responses",
        method: "POST",
        now: Timestamp(1_767_225_600_000),
        seed: 12345,
        ..Facts::default()
    }
}

fn candidates(count: usize) -> Vec<BalancerCandidate> {
    let candidate = |index: usize| BalancerCandidate {
        usable: index % 7 != 3,
        five_hour_used: index as f64,
        five_hour_cap: 99.0,
        five_hour_reset_minutes: Some(120.0),
        weekly_used: (index * 13 % 90) as f64,
        weekly_cap: 99.0,
        weekly_reset_minutes: Some(4000.0),
        ..BalancerCandidate::default()
    };
    (0..count).map(candidate).collect()
}

fn pick(timer: &Timer, engine: &Engine) {
    for name in ["least-used", "round-robin", "random", "fallback"] {
        let policy = shipped(name, PolicyKind::Balancer, serde_json::json!({}));
        let Ok(Policy::Balancer(balancer)) = load_alone(engine, &policy) else {
            panic!("{name} is a balancer")
        };
        for (count, aim_us) in PICKS {
            let members = Members::new(
                (0..count)
                    .map(|index| (format!("credential-{index}"), "plus".to_owned()))
                    .collect(),
            );
            let candidates = candidates(count);
            timer.time(
                &format!("pick/{name}/{count}"),
                Figure::PerCall { aim_us },
                || {
                    black_box(
                        balancer
                            .pick_here(&facts(), &members, black_box(&candidates), None)
                            .expect("a choice"),
                    );
                },
            );
        }
    }
}

fn price(timer: &Timer, engine: &Engine) {
    let policy = shipped("openai-pricing", PolicyKind::Pricer, serde_json::json!({}));
    let Ok(Policy::Pricer(pricer)) = load_alone(engine, &policy) else {
        panic!("it is a pricer")
    };
    let counts = TokenCounts {
        input: 120_000,
        cached: 100_000,
        output: 2000,
        reasoning: 800,
        cache_write: 0,
    };
    timer.time(
        "price/openai-pricing",
        Figure::PerCall {
            aim_us: Some(PRICE_AIM_US),
        },
        || {
            black_box(pricer.price(&facts(), black_box(&counts)).expect("a price"));
        },
    );
}

fn rewrite(timer: &Timer, engine: &Engine) {
    let set = serde_json::json!({"set": {"x-team": ["platform"], "openai-beta": ["a"], "user-agent": ["tollgate"]}});
    let policy = shipped("standard-headers", PolicyKind::Rewriter, set);
    let Ok(Policy::Rewriter(rewriter)) = load_alone(engine, &policy) else {
        panic!("it is a rewriter")
    };
    let mut headers = HeaderMap::new();
    for name in [
        "accept",
        "content-type",
        "user-agent",
        "originator",
        "session-id",
        "x-client-request-id",
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static("a value of some length"),
        );
    }
    timer.time(
        "rewrite/standard-headers",
        Figure::PerCall { aim_us: None },
        || {
            rewriter
                .edit_request_here(&facts(), black_box(&mut headers))
                .expect("edits")
                .expect("nothing refused");
        },
    );
    let Some(wanting) = wanting_policy() else {
        println!("rewrite/three-wanted-headers: left out, its policy is not built (make examples)");
        return;
    };
    let Ok(Policy::Rewriter(rewriter)) = load_alone(engine, &wanting) else {
        panic!("it is a rewriter")
    };
    timer.time(
        "rewrite/three-wanted-headers",
        Figure::PerCall {
            aim_us: Some(THREE_HEADERS_AIM_US),
        },
        || {
            rewriter
                .edit_request_here(&facts(), black_box(&mut headers))
                .expect("edits")
                .expect("nothing refused");
        },
    );
}

/// A rewriter that wants to see three fields: built by `make examples`; left out where that was not.
fn wanting_policy() -> Option<PolicyConfig> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/policies/wasm32-wasip2/policy/tag_sessions.wasm");
    path.exists().then(|| PolicyConfig {
        source: config::PolicySource::File(path),
        ..shipped("tag-sessions", PolicyKind::Rewriter, serde_json::json!({}))
    })
}

fn main() {
    let engine = Engine::of_the_process(MEMORY).expect("an engine");
    let timer = Timer::from_command_line();
    pick(&timer, &engine);
    price(&timer, &engine);
    rewrite(&timer, &engine);
}
