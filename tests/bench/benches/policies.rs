//! What a call of each shipped policy costs, warm, through the engine that the gateway uses.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use tollgate::config::{self, PolicyConfig, PolicyKind};
use tollgate::policy::{Engine, Facts, Members, Policy, load_alone};
use tollgate::values::candidate::Candidate;
use tollgate::values::clock::Millis;
use tollgate::values::counts::TokenCounts;

const MEMORY: usize = 16 * 1024 * 1024;

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
        now: Millis(1_767_225_600_000),
        seed: 12345,
        ..Facts::default()
    }
}

fn candidates(count: usize) -> Vec<Candidate> {
    let candidate = |index: usize| Candidate {
        usable: index % 7 != 3,
        five_hour_used: index as f64,
        five_hour_cap: 99.0,
        five_hour_reset: Some(120.0),
        weekly_used: (index * 13 % 90) as f64,
        weekly_cap: 99.0,
        weekly_reset: Some(4000.0),
        ..Candidate::default()
    };
    (0..count).map(candidate).collect()
}

fn pick(criterion: &mut Criterion) {
    let engine = Engine::of_the_process(MEMORY).expect("an engine");
    let mut group = criterion.benchmark_group("pick");
    for name in ["least-used", "round-robin", "random", "fallback"] {
        let policy = shipped(name, PolicyKind::Balancer, serde_json::json!({}));
        let Ok(Policy::Balancer(balancer)) = load_alone(&engine, &policy) else { panic!("{name} is a balancer") };
        for count in [2, 8, 64] {
            let members =
                Members::new((0..count).map(|index| (format!("credential-{index}"), "plus".to_owned())).collect());
            let candidates = candidates(count);
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher
                    .iter(|| balancer.pick_here(&facts(), &members, black_box(&candidates), None).expect("a choice"));
            });
        }
    }
    group.finish();
}

fn price(criterion: &mut Criterion) {
    let engine = Engine::of_the_process(MEMORY).expect("an engine");
    let policy = shipped("openai-pricing", PolicyKind::Pricer, serde_json::json!({}));
    let Ok(Policy::Pricer(pricer)) = load_alone(&engine, &policy) else { panic!("it is a pricer") };
    let counts = TokenCounts { input: 120_000, cached: 100_000, output: 2000, reasoning: 800, cache_write: 0 };
    criterion.bench_function("price/openai-pricing", |bencher| {
        bencher.iter(|| pricer.price(&facts(), black_box(&counts)).expect("a price"));
    });
}

fn rewrite(criterion: &mut Criterion) {
    let engine = Engine::of_the_process(MEMORY).expect("an engine");
    let set = serde_json::json!({"set": {"x-team": ["platform"], "openai-beta": ["a"], "user-agent": ["tollgate"]}});
    let policy = shipped("standard-headers", PolicyKind::Rewriter, set);
    let Ok(Policy::Rewriter(rewriter)) = load_alone(&engine, &policy) else { panic!("it is a rewriter") };
    let mut headers = HeaderMap::new();
    for name in ["accept", "content-type", "user-agent", "originator", "session-id", "x-client-request-id"] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static("a value of some length"));
    }
    criterion.bench_function("rewrite/standard-headers", |bencher| {
        bencher.iter(|| rewriter.edit_request_here(&facts(), black_box(&mut headers)).expect("edits"));
    });
    let Some(wanting) = wanting_policy() else { return };
    let Ok(Policy::Rewriter(rewriter)) = load_alone(&engine, &wanting) else { panic!("it is a rewriter") };
    criterion.bench_function("rewrite/three-wanted-headers", |bencher| {
        bencher.iter(|| rewriter.edit_request_here(&facts(), black_box(&mut headers)).expect("edits"));
    });
}

/// A rewriter that wants to see three fields: built by `make examples`; left out where that was not.
fn wanting_policy() -> Option<PolicyConfig> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/policies/wasm32-wasip2/policy/tag_sessions.wasm");
    path.exists().then(|| PolicyConfig {
        source: config::PolicySource::File(path),
        ..shipped("tag-sessions", PolicyKind::Rewriter, serde_json::json!({}))
    })
}

criterion_group!(benches, pick, price, rewrite);
criterion_main!(benches);
