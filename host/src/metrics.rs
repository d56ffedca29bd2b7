//! What is counted for operators: requests, tokens, cost and time, under OpenTelemetry's names where it has some.
//!
//! Owns counters and how they are written (in the text format of Prometheus); refuses to know where what is only
//! looked at comes from. Invariant: the number of series has a bound. Names of users, credentials and services are those of
//! the configuration; names of models are upstream's, and counted under `other` beyond a number of them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::values::exchange::{Outcome, Row};
use crate::values::histogram::Histogram as Spans;
use crate::values::money::Cost;

/// Models that are told apart.
const MODELS_MAX: usize = 64;

/// What further ones are counted under.
const OTHER: &str = "other";

/// Who or what is not there.
const NOBODY: &str = "-";

/// How the text is to be served.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bounds of durations' buckets in seconds: OpenTelemetry's for HTTP, and further ones, since responses take minutes.
const SECONDS: [f64; 17] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 120.0,
    600.0,
];

type Labels = Vec<(&'static str, String)>;
type Decimal = Counter<f64, std::sync::atomic::AtomicU64>;
type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// What is counted. One for the whole gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Durations,
    first_bytes: Durations,
    tokens: Family<Labels, Counter>,
    cost: Family<Labels, Decimal>,
    unpriced: Family<Labels, Counter>,
    upstream_errors: Family<Labels, Counter>,
    models: Mutex<HashSet<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations = || Durations::new_with_constructor(|| Histogram::new(SECONDS));
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            durations: durations(),
            first_bytes: durations(),
            tokens: Family::default(),
            cost: Family::default(),
            unpriced: Family::default(),
            upstream_errors: Family::default(),
            models: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "tollgate_requests",
            "Admitted requests that have ended",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "http_server_request_duration",
            "From a request's head to its end",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "tollgate_time_to_first_byte",
            "From a request's head to the head of its response",
            Unit::Seconds,
            self.first_bytes.clone(),
        );
        let help =
            "Tokens by kind; cached and cache_write are contained in input, reasoning in output";
        registry.register("gen_ai_client_token_usage", help, self.tokens.clone());
        registry.register(
            "tollgate_cost_usd",
            "What responses cost, in USD",
            self.cost.clone(),
        );
        registry.register(
            "tollgate_unpriced",
            "Responses whose cost is not known",
            self.unpriced.clone(),
        );
        let help = "Attempts that upstream refused, or failed";
        registry.register(
            "tollgate_upstream_errors",
            help,
            self.upstream_errors.clone(),
        );
    }

    /// A request has ended.
    pub fn ended(&self, row: &Row) {
        let user = or_nobody(row.user.as_deref());
        let credential = or_nobody(row.credential.as_deref());
        let service = || ("service", row.service.clone());
        let labels = vec![
            service(),
            ("user", user.clone()),
            ("credential", credential.clone()),
            ("http_response_status_code", row.status.to_string()),
            ("end", row.end.as_str().to_owned()),
        ];
        self.requests.get_or_create(&labels).inc();
        self.durations
            .get_or_create(&vec![service()])
            .observe(seconds(row.duration_ms));
        if let Some(ttfb) = row.ttfb_ms {
            self.first_bytes
                .get_or_create(&vec![service()])
                .observe(seconds(ttfb));
        }
        for attempt in &row.attempts {
            if let Some(error) = error_type(attempt.outcome) {
                let labels = vec![
                    ("credential", attempt.credential.clone()),
                    ("error_type", error),
                ];
                self.upstream_errors.get_or_create(&labels).inc();
            }
        }
        self.used(row, &user, &credential);
    }

    fn used(&self, row: &Row, user: &str, credential: &str) {
        let model = self.model(row.model.as_deref());
        if let Some(counts) = &row.counts {
            let kinds = [
                ("input", counts.input),
                ("cached", counts.cached),
                ("cache_write", counts.cache_write),
                ("output", counts.output),
                ("reasoning", counts.reasoning),
            ];
            for (kind, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
                let labels = vec![
                    ("gen_ai_response_model", model.clone()),
                    ("gen_ai_token_type", kind.to_owned()),
                ];
                self.tokens.get_or_create(&labels).inc_by(count);
            }
        }
        let labels = || {
            vec![
                ("user", user.to_owned()),
                ("credential", credential.to_owned()),
                ("gen_ai_response_model", model.clone()),
            ]
        };
        match &row.cost {
            Some(Cost::Priced { amount, .. }) => {
                drop(self.cost.get_or_create(&labels()).inc_by(amount.usd()))
            }
            Some(Cost::Unpriced { .. }) => drop(self.unpriced.get_or_create(&labels()).inc()),
            None => {}
        }
    }

    fn model(&self, model: Option<&str>) -> String {
        let Some(model) = model else {
            return NOBODY.to_owned();
        };
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if models.contains(model) {
            return model.to_owned();
        }
        if models.len() >= MODELS_MAX {
            return OTHER.to_owned();
        }
        models.insert(model.to_owned());
        model.to_owned()
    }

    /// Everything that was counted, and what `seen` has besides, as text.
    pub fn text(&self, seen: &Seen) -> String {
        let mut text = String::new();
        for registry in [&self.registry, &seen.registry] {
            // Writing into a text cannot fail.
            let _ = prometheus_text::encode(&mut text, registry);
        }
        text
    }
}

fn or_nobody(name: Option<&str>) -> String {
    name.unwrap_or(NOBODY).to_owned()
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1e3
}

fn error_type(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Status(status) => (status >= 400).then(|| status.to_string()),
        Outcome::Unreachable | Outcome::TimedOut | Outcome::Broken => Some(outcome.name()),
        Outcome::Abandoned | Outcome::Withdrawn => None,
    }
}

/// What is not counted but looked at, at the moment when somebody asks.
#[derive(Debug, Default)]
pub struct Seen {
    registry: Registry,
}

impl Seen {
    /// A figure that goes up and down: each value with its labels.
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>> = Family::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register(name, help, family);
    }

    /// A figure that only goes up.
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family: Family<Labels, Decimal> = Family::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    /// How long something took: for each, its labels.
    pub fn durations<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, &'a Spans)>,
    ) {
        let told = |(labels, spans): (Labels, &Spans)| {
            let mut before = 0;
            let buckets = POLICY_SECONDS.map(|bound| {
                let at_most = spans.at_most(Duration::from_secs_f64(bound));
                let bucket = (bound, at_most.saturating_sub(before));
                before = at_most.max(before);
                bucket
            });
            let count = spans.count().max(before);
            let rest = (f64::INFINITY, count - before);
            ToldSpans {
                labels,
                sum: spans.sum().as_secs_f64(),
                count,
                buckets: [&buckets[..], &[rest]].concat(),
            }
        };
        let told = Told(values.into_iter().map(told).collect());
        self.registry
            .register_with_unit(name, help, Unit::Seconds, told);
    }
}

/// The bounds of buckets for what takes microseconds, in seconds.
const POLICY_SECONDS: [f64; 10] = [1e-6, 2e-6, 5e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0];

/// Histograms of ours, as they were when somebody asked.
#[derive(Debug)]
struct Told(Vec<ToldSpans>);

#[derive(Debug)]
struct ToldSpans {
    labels: Labels,
    sum: f64,
    count: u64,
    buckets: Vec<(f64, u64)>,
}

impl EncodeMetric for Told {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        for told in &self.0 {
            let mut encoder = encoder.encode_family(&told.labels)?;
            encoder.encode_histogram::<NoLabelSet>(told.sum, told.count, &told.buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::clock::Timestamp;
    use crate::values::counts::TokenCounts;
    use crate::values::exchange::{Attempt, End};
    use crate::values::money::NanoUsd;

    fn row(model: &str) -> Row {
        let attempt = |outcome| Attempt {
            credential: "a".to_owned(),
            outcome,
        };
        Row {
            request_id: "r".to_owned(),
            started_at: Timestamp(0),
            finished_at: Timestamp(1500),
            user: Some("alice".to_owned()),
            credential: Some("a".to_owned()),
            service: "ocm".to_owned(),
            model: Some(model.to_owned()),
            service_tier: None,
            transport: "http",
            prewarm: false,
            previous_response_id: None,
            path: "/v1/responses".to_owned(),
            status: 200,
            end: End::Complete,
            attempts: vec![attempt(Outcome::Status(429)), attempt(Outcome::Status(200))],
            session: None,
            home: None,
            response_id: None,
            counts: Some(TokenCounts {
                input: 7,
                output: 3,
                ..TokenCounts::default()
            }),
            cost: Some(Cost::Priced {
                amount: NanoUsd(2_500_000_000),
                context_window: 272_000,
            }),
            priced_by: None,
            week_start_unix: None,
            ttfb_ms: Some(40),
            duration_ms: 1500,
        }
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
        let metrics = Metrics::default();
        metrics.ended(&row("gpt-5.4"));
        let text = metrics.text(&Seen::default());
        let labels = r#"service="ocm",user="alice",credential="a",http_response_status_code="200",end="complete""#;
        check(&text, &format!("tollgate_requests_total{{{labels}}} 1"));
        let input = r#"gen_ai_response_model="gpt-5.4",gen_ai_token_type="input""#;
        check(
            &text,
            &format!("gen_ai_client_token_usage_total{{{input}}} 7"),
        );
        check(
            &text,
            r#"tollgate_upstream_errors_total{credential="a",error_type="429"} 1"#,
        );
        check(
            &text,
            r#"tollgate_cost_usd_total{user="alice",credential="a",gen_ai_response_model="gpt-5.4"} 2.5"#,
        );
        check(
            &text,
            r#"http_server_request_duration_seconds_bucket{service="ocm",le="2.5"} 1"#,
        );
    }

    #[test]
    fn models_beyond_a_number_are_others() {
        let metrics = Metrics::default();
        for number in 0..200 {
            metrics.ended(&row(&format!("model-{number}")));
        }
        let text = metrics.text(&Seen::default());
        let models = text
            .lines()
            .filter(|line| line.starts_with("tollgate_cost_usd_total"))
            .count();
        assert_eq!(models, MODELS_MAX + 1);
        check(
            &text,
            r#"tollgate_cost_usd_total{user="alice",credential="a",gen_ai_response_model="other"} 340.0"#,
        );
    }

    #[test]
    fn what_is_seen_is_told_with_it() {
        let spans = Spans::default();
        [3, 700]
            .into_iter()
            .for_each(|micros| spans.count_in(Duration::from_micros(micros)));
        let mut seen = Seen::default();
        seen.durations(
            "tollgate_policy_call_duration",
            "Calls",
            [(vec![("policy", "p".to_owned())], &spans)],
        );
        seen.gauge("tollgate_websockets", "Open", [(vec![], 4.0)]);
        let text = Metrics::default().text(&seen);
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
}
