//! The cost of a warm call of each shipped policy, through the engine of the gateway.

use std::hint::black_box;
use std::path::Path;

use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate::config::{PolicyConfig, PolicyKind, PolicySource, ShippedPolicy};
use tollgate::policy::{
    PolicyEngine, PolicyGeneration, PoolMembers, RequestFacts, load_standalone,
};
use tollgate::values::clock::Timestamp;
use tollgate::values::credential::candidate::BalancerCandidate;
use tollgate::values::exchange::counts::TokenCounts;
use tollgate_bench::timing::{Figure, Timer};

const MEMORY: usize = 16 * 1024 * 1024;

/// Numbers of candidates, and the limit of a choice among them.
const PICKS: [(usize, Option<f64>); 3] = [(2, None), (8, Some(0.6)), (64, Some(1.5))];
const PRICE_AIM_US: f64 = 0.6;
const THREE_HEADERS_AIM_US: f64 = 1.5;

fn facts() -> RequestFacts<'static> {
    RequestFacts {
        user: "alice",
        session: "0199a0c4-9a52-7d10-b0c9-5d1f0e5a2f11",
        model: "gpt-5.4-2026-03-05",
        service_tier: "priority",
        path: "/v1/responses",
        method: "POST",
        now: Timestamp(1_767_225_600_000),
        seed: 12345,
        ..RequestFacts::default()
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

fn pick(timer: &Timer, engine: &PolicyEngine) {
    for shipped in [
        ShippedPolicy::LeastUsed,
        ShippedPolicy::RoundRobin,
        ShippedPolicy::Random,
        ShippedPolicy::Fallback,
    ] {
        let policy = PolicyConfig::shipped(shipped, serde_json::json!({}));
        let Ok(PolicyGeneration::Balancer(balancer)) = load_standalone(engine, &policy) else {
            panic!("{} is a balancer", shipped.name())
        };
        for (count, aim_us) in PICKS {
            let members = PoolMembers::new(
                (0..count)
                    .map(|index| (format!("credential-{index}"), "plus".to_owned()))
                    .collect(),
            );
            let candidates = candidates(count);
            timer.time(
                &format!("pick/{}/{count}", shipped.name()),
                Figure::PerCall { aim_us },
                || {
                    black_box(
                        balancer
                            .pick_on_this_thread(&facts(), &members, black_box(&candidates), None)
                            .expect("a choice"),
                    );
                },
            );
        }
    }
}

fn price(timer: &Timer, engine: &PolicyEngine) {
    let policy = PolicyConfig::shipped(ShippedPolicy::OpenaiPricing, serde_json::json!({}));
    let Ok(PolicyGeneration::Pricer(pricer)) = load_standalone(engine, &policy) else {
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

fn rewrite(timer: &Timer, engine: &PolicyEngine) {
    let set = serde_json::json!({"set": {"x-team": ["platform"], "openai-beta": ["a"], "user-agent": ["tollgate"]}});
    let policy = PolicyConfig::shipped(ShippedPolicy::StandardHeaders, set);
    let Ok(PolicyGeneration::Rewriter(rewriter)) = load_standalone(engine, &policy) else {
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
                .rewrite_request_on_this_thread(&facts(), black_box(&mut headers))
                .expect("edits")
                .expect("nothing refused");
        },
    );
    let Some(wanting) = wanting_policy() else {
        println!("rewrite/three-wanted-headers: left out, its policy is not built (make examples)");
        return;
    };
    let Ok(PolicyGeneration::Rewriter(rewriter)) = load_standalone(engine, &wanting) else {
        panic!("it is a rewriter")
    };
    timer.time(
        "rewrite/three-wanted-headers",
        Figure::PerCall {
            aim_us: Some(THREE_HEADERS_AIM_US),
        },
        || {
            rewriter
                .rewrite_request_on_this_thread(&facts(), black_box(&mut headers))
                .expect("edits")
                .expect("nothing refused");
        },
    );
}

/// A rewriter that reads three fields; skipped if `make examples` has not built it.
fn wanting_policy() -> Option<PolicyConfig> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/policies/wasm32-wasip2/policy/tag_sessions.wasm");
    path.exists().then(|| {
        let source = PolicySource::File(path);
        PolicyConfig::standalone(
            "tag-sessions",
            PolicyKind::Rewriter,
            source,
            serde_json::json!({}),
        )
    })
}

fn main() {
    let engine = PolicyEngine::of_the_process(MEMORY).expect("an engine");
    let timer = Timer::from_command_line();
    pick(&timer, &engine);
    price(&timer, &engine);
    rewrite(&timer, &engine);
}
