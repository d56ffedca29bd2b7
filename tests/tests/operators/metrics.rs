//! `/metrics`: the counts agree with the requests, the names are valid in Prometheus, and the
//! number of series is limited.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Reply, Standing};
use tollgate_tests::{
    Authority, Client, Metrics, Rig, Row, component, turn, unix_in, wait_for_rows,
};

/// A team on a fallback pool, with an admin listener, and alice's client.
async fn team(tags: &[&str]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(tags, json!({ "strategy": "fallback" }));
    config["admin"] = json!({ "listen_port": 0 });
    let client = rig.start_polled(config).await.token("token-alice");
    (rig, client)
}

async fn scraped(rig: &Rig) -> Metrics {
    let answer = rig.admin().get("/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    Metrics::parse(&answer.text())
}

/// All families: a new one must be added here.
pub(crate) const FAMILIES: [(&str, &str); 35] = [
    ("tollgate_build_info", "gauge"),
    ("tollgate_requests_total", "counter"),
    ("http_server_request_duration_seconds", "histogram"),
    ("tollgate_time_to_first_byte_seconds", "histogram"),
    ("gen_ai_client_token_usage", "histogram"),
    ("tollgate_cached_input_tokens_total", "counter"),
    ("tollgate_cache_write_input_tokens_total", "counter"),
    ("tollgate_reasoning_output_tokens_total", "counter"),
    ("tollgate_cost_usd_total", "counter"),
    ("tollgate_unpriced_total", "counter"),
    ("tollgate_upstream_errors_total", "counter"),
    ("tollgate_credential_used_ratio", "gauge"),
    ("tollgate_credential_cap_ratio", "gauge"),
    ("tollgate_credential_reset_timestamp_seconds", "gauge"),
    ("tollgate_credential_usable", "gauge"),
    ("http_client_active_requests", "gauge"),
    ("tollgate_websockets", "gauge"),
    ("tollgate_ledger_queue", "gauge"),
    ("tollgate_ledger_failing", "gauge"),
    ("tollgate_ledger_commit_duration_seconds", "histogram"),
    ("tollgate_tls_certificate_expiry_timestamp_seconds", "gauge"),
    ("tollgate_tls_failing", "gauge"),
    ("tollgate_tls_reloads_total", "counter"),
    ("tollgate_policy_calls_total", "counter"),
    ("tollgate_policy_refusals_total", "counter"),
    ("tollgate_policy_generation", "gauge"),
    ("tollgate_policy_instances", "gauge"),
    ("tollgate_policy_memory_bytes", "gauge"),
    ("tollgate_policy_quarantined", "gauge"),
    ("tollgate_policy_faults_total", "counter"),
    ("tollgate_policy_shadow_disagreements_total", "counter"),
    ("tollgate_policy_shadow_compared_total", "counter"),
    ("tollgate_policy_reloads_total", "counter"),
    ("tollgate_policy_call_duration_seconds", "histogram"),
    ("tollgate_config_reloads_total", "counter"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_there_and_well_formed_before_and_after_traffic() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["admin"] = json!({ "listen_port": 0 });
    config["policies"] = json!([{
        "tag": "mine", "kind": "pricer", "path": "builtin:openai-pricing", "shadow": component("openai-pricing"),
    }]);
    config["services"][0]["pricer"] = json!("mine");
    let certificate = Authority::new().sign(&["localhost"]);
    let mut secure = rig.config(json!({
        "tag": "secure",
        "credentials": [rig.oauth("b")],
        "tls": { "enabled": true, "certificate": certificate.pem, "key": certificate.key },
    }));
    let services = config["services"].as_array_mut().expect("a list");
    services.push(secure["services"][0].take());
    let client = rig.start_polled(config).await.token("token-alice");
    // Parsing checks each line.
    scraped(&rig).await;
    client.turn(&turn("one")).await;
    rig.account("a")
        .then(Reply::server_error(500))
        .then(Reply::ok().model("of-no-price"));
    client.turn(&turn("one")).await;
    client.turn(&turn("one")).await;
    wait_for_rows(&rig.ledger(), 3).await;
    let found = scraped(&rig).await;
    let mut expected = FAMILIES.to_vec();
    expected.sort_unstable();
    assert_eq!(found.families().collect::<Vec<_>>(), expected);
    rig.stop().await;
}

/// Checks the counters of requests by user, credential and outcome.
fn check_requests(found: &Metrics) {
    for (user, credential, status, end, count) in [
        ("alice", "a", "200", "complete", 3.0),
        ("alice", "a", "400", "failed", 1.0),
        ("alice", "b", "200", "complete", 1.0),
        ("bob", "b", "200", "complete", 1.0),
    ] {
        let labels = [
            ("service", "ocm"),
            ("user", user),
            ("credential", credential),
            ("http_response_status_code", status),
            ("end", end),
        ];
        assert_eq!(
            found.value("tollgate_requests_total", &labels),
            count,
            "{labels:?}"
        );
    }
    assert_eq!(
        found
            .values("tollgate_requests_total", &[])
            .iter()
            .sum::<f64>(),
        6.0
    );
}

/// Checks the counters of tokens and of cost against the rows.
fn check_tokens_and_cost(found: &Metrics, rows: &[Row]) {
    let sum = |column: &str| {
        rows.iter()
            .filter_map(|row| row.number(column))
            .sum::<i64>() as f64
    };
    for (token_type, column) in [("input", "input_tokens"), ("output", "output_tokens")] {
        let labels = [
            ("gen_ai_operation_name", "chat"),
            ("gen_ai_provider_name", "openai"),
            ("gen_ai_request_model", "gpt-5.4"),
            ("gen_ai_response_model", "gpt-5.4"),
            ("gen_ai_token_type", token_type),
        ];
        assert_eq!(
            found.value("gen_ai_client_token_usage_sum", &labels),
            sum(column),
            "{token_type}"
        );
        assert_eq!(
            found.value("gen_ai_client_token_usage_count", &labels),
            5.0,
            "{token_type}"
        );
    }
    // Every token once: no further token type is in the family.
    assert_eq!(
        found
            .values("gen_ai_client_token_usage_sum", &[])
            .iter()
            .sum::<f64>(),
        sum("input_tokens") + sum("output_tokens")
    );
    for (name, column) in [
        ("tollgate_cached_input_tokens_total", "cached_tokens"),
        (
            "tollgate_cache_write_input_tokens_total",
            "cache_write_tokens",
        ),
        ("tollgate_reasoning_output_tokens_total", "reasoning_tokens"),
    ] {
        let labels = [("gen_ai_response_model", "gpt-5.4")];
        assert_eq!(found.value(name, &labels), sum(column), "{name}");
    }
    let cost: f64 = found.values("tollgate_cost_usd_total", &[]).iter().sum();
    assert!((cost - sum("cost_nanousd") / 1e9).abs() < 1e-9, "{cost}");
}

/// Checks the counters of upstream's errors and the histograms of times.
fn check_errors_and_times(found: &Metrics) {
    for (error, count) in [("400", 1.0), ("429", 1.0)] {
        let labels = [("credential", "a"), ("error_type", error)];
        assert_eq!(
            found.value("tollgate_upstream_errors_total", &labels),
            count,
            "{error}"
        );
    }
    for (status, count) in [("200", 5.0), ("400", 1.0)] {
        let labels = [
            ("service", "ocm"),
            ("http_request_method", "POST"),
            ("http_response_status_code", status),
        ];
        assert_eq!(
            found.value("http_server_request_duration_seconds_count", &labels),
            count,
            "{status}"
        );
    }
    assert_eq!(
        found.value(
            "tollgate_time_to_first_byte_seconds_count",
            &[("service", "ocm")]
        ),
        6.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_agree_with_what_was_sent_and_recorded() {
    let (mut rig, client) = team(&["a", "b"]).await;
    let limited = Reply::usage_limit_reached().resets_in_seconds(600);
    for _ in 0..3 {
        assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    }
    rig.account("a")
        .then(Reply::error(400, "invalid_request_error", "no"));
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::BAD_REQUEST
    );
    rig.account("a").then(limited);
    assert_eq!(client.turn(&turn("moves")).await.status, StatusCode::OK);
    let unknown = Client::new(client.address()).token("token-unknown");
    assert_eq!(
        unknown.turn(&turn("two")).await.status,
        StatusCode::UNAUTHORIZED
    );
    let bob = Client::new(client.address()).token("token-bob");
    assert_eq!(bob.turn(&turn("two")).await.status, StatusCode::OK);

    let rows = wait_for_rows(&rig.ledger(), 6).await;
    let found = scraped(&rig).await;
    check_requests(&found);
    check_tokens_and_cost(&found, &rows);
    check_errors_and_times(&found);
    let policy = |name: &str, policy: &str| found.value(name, &[("policy", policy)]);
    assert_eq!(policy("tollgate_policy_calls_total", "openai-pricing"), 5.0);
    for name in [
        "tollgate_policy_call_duration_seconds_count",
        "tollgate_policy_calls_total",
    ] {
        let told = rig.policy("fallback").await["calls"]
            .as_f64()
            .expect("a count");
        assert_eq!(policy(name, "fallback"), told, "{name}");
    }
    assert_eq!(found.value("tollgate_ledger_queue", &[]), 0.0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_reported_in_their_current_state() {
    let (mut rig, client) = team(&["a"]).await;
    let at = unix_in(3600);
    rig.account("a").set_standing(
        Standing::new("plus")
            .five_hour_used(42.0)
            .five_hour_resets_at(at)
            .weekly_used(7.0),
    );
    client.turn(&turn("one")).await;
    let socket = client.socket().await.expect("a socket");
    let found = scraped(&rig).await;
    let of = |window: &'static str| [("service", "ocm"), ("credential", "a"), ("window", window)];
    assert_eq!(
        found.value("tollgate_credential_used_ratio", &of("five_hour")),
        0.42
    );
    assert_eq!(
        found.value("tollgate_credential_used_ratio", &of("weekly")),
        0.07
    );
    assert_eq!(
        found.value("tollgate_credential_cap_ratio", &of("weekly")),
        0.99
    );
    let resets = found.value(
        "tollgate_credential_reset_timestamp_seconds",
        &of("five_hour"),
    );
    assert!((resets - at as f64).abs() <= 1.0, "{resets} and {at}");
    assert_eq!(
        found.value("tollgate_credential_usable", &of("weekly")[..2]),
        1.0
    );
    assert_eq!(
        found.value("tollgate_websockets", &[("service", "ocm")]),
        1.0
    );
    drop(socket);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_limited_in_number_and_accept_any_text() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["admin"] = json!({ "listen_port": 0 });
    let odd = "a \"quoted\\ name\nof two lines";
    config["services"][0]["users"][0]["name"] = json!(odd);
    let client = rig.start(config).await.token("token-alice");
    let of_model = |model: String| -> Value {
        let mut body = turn("one");
        body["model"] = json!(model);
        body
    };
    for number in 0..100 {
        client
            .turn(&of_model(format!("model \"{number}\"\n")))
            .await;
    }
    client.turn(&of_model("x".repeat(100_000))).await;
    wait_for_rows(&rig.ledger(), 101).await;
    let found = scraped(&rig).await;
    for (name, label) in [
        ("gen_ai_client_token_usage_count", "gen_ai_request_model"),
        ("gen_ai_client_token_usage_count", "gen_ai_response_model"),
        (
            "tollgate_cached_input_tokens_total",
            "gen_ai_response_model",
        ),
        ("tollgate_unpriced_total", "gen_ai_response_model"),
    ] {
        let models = found.labels(name, label);
        assert!(
            models.len() <= 66 && models.contains("other"),
            "{}: {models:?}",
            models.len()
        );
        assert!(models.iter().all(|model| model.len() <= 256), "{name}");
    }
    assert!(
        found
            .labels("tollgate_requests_total", "user")
            .contains(odd)
    );
    rig.stop().await;
}
