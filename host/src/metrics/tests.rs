use std::time::Duration;

use super::*;
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::exchange::money::NanoUsd;
use crate::values::exchange::{ClientTransport, ExchangeEnd, UpstreamAttempt};
use crate::values::histogram::DurationHistogram;

fn row(model: &str) -> LedgerRow {
    let attempt = |outcome| UpstreamAttempt {
        credential: "a".to_owned(),
        outcome,
    };
    LedgerRow {
        request_id: "r".to_owned(),
        started_at: Timestamp(0),
        finished_at: Timestamp(1500),
        client: ClientAddress::Unix,
        user: Some("alice".to_owned()),
        credential: Some("a".to_owned()),
        service: "ocm".to_owned(),
        model: Some(model.to_owned()),
        requested_model: Some("gpt-5".to_owned()),
        service_tier: None,
        transport: ClientTransport::Http,
        prewarm: false,
        previous_response_id: None,
        method: Method::POST,
        path: "/v1/responses".to_owned(),
        status: 200,
        end: ExchangeEnd::Complete,
        attempts: vec![
            attempt(AttemptOutcome::Status(429)),
            attempt(AttemptOutcome::Status(200)),
        ],
        session: None,
        home: None,
        response_id: None,
        counts: Some(TokenCounts {
            input: 70,
            cached: 40,
            cache_write: 5,
            output: 30,
            reasoning: 20,
        }),
        cost: Some(ResponseCost::Priced {
            amount: NanoUsd(2_500_000_000),
            context_window: 272_000,
        }),
        priced_by: None,
        week_start_unix: None,
        ttfb_ms: Some(40),
        duration_ms: 1500,
    }
}

fn text_of(rows: &[LedgerRow]) -> String {
    let metrics = Metrics::default();
    rows.iter().for_each(|row| metrics.record(row));
    metrics.to_text(&ObservedMetrics::default())
}

#[track_caller]
fn check(text: &str, line: &str) {
    assert!(
        text.lines().any(|found| found == line),
        "no line {line:?} in\n{text}"
    );
}

#[test]
fn a_request_is_counted_under_all_its_names() {
    let text = text_of(&[row("gpt-5.4")]);
    let labels = r#"service="ocm",user="alice",credential="a",http_response_status_code="200",end="complete""#;
    check(&text, &format!("tollgate_requests_total{{{labels}}} 1"));
    check(
        &text,
        r#"tollgate_upstream_errors_total{credential="a",error_type="429"} 1"#,
    );
    check(
        &text,
        r#"tollgate_cost_usd_total{user="alice",credential="a",gen_ai_response_model="gpt-5.4"} 2.5"#,
    );
    let labels =
        r#"service="ocm",http_request_method="POST",http_response_status_code="200",le="2.5""#;
    check(
        &text,
        &format!("http_server_request_duration_seconds_bucket{{{labels}}} 1"),
    );
}

#[test]
fn token_usage_follows_opentelemetry_and_counts_no_token_twice() {
    let text = text_of(&[row("gpt-5.4"), row("gpt-5.4")]);
    let labels = |token_type: &str| {
        let names = r#"gen_ai_operation_name="chat",gen_ai_provider_name="openai""#;
        let models = r#"gen_ai_request_model="gpt-5",gen_ai_response_model="gpt-5.4""#;
        format!(r#"{names},{models},gen_ai_token_type="{token_type}""#)
    };
    let (input, output) = (labels("input"), labels("output"));
    check(
        &text,
        &format!("gen_ai_client_token_usage_sum{{{input}}} 140.0"),
    );
    check(
        &text,
        &format!("gen_ai_client_token_usage_count{{{output}}} 2"),
    );
    for (bound, count) in [("16", 0), ("64", 2), ("6.7108864e+07", 2), ("+Inf", 2)] {
        check(
            &text,
            &format!("gen_ai_client_token_usage_bucket{{{output},le=\"{bound}\"}} {count}"),
        );
    }
    let sum: f64 = text
        .lines()
        .filter(|line| line.starts_with("gen_ai_client_token_usage_sum"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    assert_eq!(sum, 200.0, "input and output alone");
    for (name, count) in [
        ("tollgate_cached_input_tokens_total", 80),
        ("tollgate_cache_write_input_tokens_total", 10),
        ("tollgate_reasoning_output_tokens_total", 40),
    ] {
        check(
            &text,
            &format!(r#"{name}{{gen_ai_response_model="gpt-5.4"}} {count}"#),
        );
    }
}

#[test]
fn a_request_without_a_response_has_no_status_label() {
    let text = text_of(&[LedgerRow {
        status: 0,
        ..row("gpt-5.4")
    }]);
    check(
        &text,
        r#"http_server_request_duration_seconds_count{service="ocm",http_request_method="POST"} 1"#,
    );
}

#[test]
fn unknown_methods_share_one_label() {
    let rows = ["BREW", "PROPFIND"].map(|method| LedgerRow {
        method: method.parse().expect("a method"),
        ..row("gpt-5.4")
    });
    let labels = r#"service="ocm",http_request_method="_OTHER",http_response_status_code="200""#;
    check(
        &text_of(&rows),
        &format!("http_server_request_duration_seconds_count{{{labels}}} 2"),
    );
}

#[test]
fn operations_have_the_names_of_the_convention() {
    for (path, expected) in [
        ("/v1/responses", "chat"),
        ("/backend-api/codex/responses/compact", "chat"),
        ("/v1/responses/resp_1", "chat"),
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings/", "embeddings"),
        ("/v1/images/generations", "generate_content"),
        ("", "generate_content"),
    ] {
        assert_eq!(operation_label(path), expected, "{path}");
    }
}

#[test]
fn models_beyond_the_limit_are_counted_as_other() {
    let rows: Vec<LedgerRow> = (0..200)
        .map(|number| row(&format!("model-{number}")))
        .collect();
    let text = text_of(&rows);
    let models = text
        .lines()
        .filter(|line| line.starts_with("tollgate_cost_usd_total"))
        .count();
    // The model that all of them asked for is one of the 64, and has no cost.
    assert_eq!(models, MODELS_MAX);
    check(
        &text,
        r#"tollgate_cost_usd_total{user="alice",credential="a",gen_ai_response_model="other"} 342.5"#,
    );
}

#[test]
fn observed_metrics_are_part_of_the_text() {
    let histogram = DurationHistogram::default();
    for micros in [3, 700] {
        histogram.record(Duration::from_micros(micros));
    }
    let mut observed = ObservedMetrics::default();
    observed.durations(
        "tollgate_policy_call_duration",
        "Calls",
        [(vec![("policy", "p".to_owned())], &histogram)],
    );
    observed.gauge("tollgate_websockets", "Open", [(vec![], 4.0)]);
    let text = Metrics::default().to_text(&observed);
    check(
        &text,
        r#"tollgate_policy_call_duration_seconds_bucket{policy="p",le="5e-06"} 1"#,
    );
    check(
        &text,
        r#"tollgate_policy_call_duration_seconds_bucket{policy="p",le="+Inf"} 2"#,
    );
    check(&text, "tollgate_websockets 4.0");
}
