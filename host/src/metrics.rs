//! Metrics for operators: requests, tokens, cost and time, under OpenTelemetry's names if it
//! defines one.
//!
//! Owns the counters and writes them in Prometheus's text format; does not know where the
//! [`ObservedMetrics`] come from, which are read at each scrape. Invariant: the number of series is
//! bounded. Names of users, credentials and services are those of the configuration; names of
//! models come from upstream, and models beyond [`MODELS_MAX`] are counted as `other`.

mod observed;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use http::Method;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use observed::ObservedMetrics;

use crate::values::exchange::counts::TokenCounts;
use crate::values::exchange::money::ResponseCost;
use crate::values::exchange::{AttemptOutcome, LedgerRow};

/// How many models have series with their names.
const MODELS_MAX: usize = 64;

/// The label of models beyond [`MODELS_MAX`].
const OTHER_MODEL: &str = "other";

/// The label of an absent user, credential or model.
const ABSENT: &str = "-";

/// OpenTelemetry's `gen_ai.provider.name` of every upstream.
const PROVIDER: &str = "openai";

/// The content type of the text format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The buckets of durations in seconds: OpenTelemetry's for HTTP, and three longer ones, since
/// responses take minutes.
const DURATION_BUCKETS: [f64; 17] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 120.0,
    600.0,
];

/// The buckets that OpenTelemetry's GenAI conventions prescribe for `gen_ai.client.token.usage`:
/// the powers of four.
const TOKEN_BUCKETS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];

type CounterLabels = Vec<(&'static str, Cow<'static, str>)>;
type CountFamily = Family<CounterLabels, Counter>;
type AmountFamily = Family<CounterLabels, Counter<f64, AtomicU64>>;
type HistogramFamily = Family<CounterLabels, Histogram, fn() -> Histogram>;

/// The counters of the whole gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: CountFamily,
    request_durations: HistogramFamily,
    first_byte_durations: HistogramFamily,
    tokens: HistogramFamily,
    cached_input_tokens: CountFamily,
    cache_write_input_tokens: CountFamily,
    reasoning_output_tokens: CountFamily,
    cost: AmountFamily,
    unpriced: CountFamily,
    upstream_errors: CountFamily,
    /// The models that have series with their names.
    models: Mutex<HashSet<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_durations: Family::new_with_constructor(duration_histogram),
            first_byte_durations: Family::new_with_constructor(duration_histogram),
            tokens: Family::new_with_constructor(token_histogram),
            cached_input_tokens: Family::default(),
            cache_write_input_tokens: Family::default(),
            reasoning_output_tokens: Family::default(),
            cost: Family::default(),
            unpriced: Family::default(),
            upstream_errors: Family::default(),
            models: Mutex::default(),
        };
        metrics.register_requests();
        metrics.register_usage();
        metrics
    }
}

fn duration_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

fn token_histogram() -> Histogram {
    Histogram::new(TOKEN_BUCKETS)
}

impl Metrics {
    fn register_requests(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "tollgate_requests",
            "Admitted requests that have ended",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "http_server_request_duration",
            "Time from the request's head to the end of the exchange",
            Unit::Seconds,
            self.request_durations.clone(),
        );
        registry.register_with_unit(
            "tollgate_time_to_first_byte",
            "Time from the request's head to the head of the response",
            Unit::Seconds,
            self.first_byte_durations.clone(),
        );
        registry.register(
            "tollgate_upstream_errors",
            "Attempts that failed or that upstream rejected",
            self.upstream_errors.clone(),
        );
    }

    fn register_usage(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "gen_ai_client_token_usage",
            "Number of input and output tokens of a response",
            self.tokens.clone(),
        );
        registry.register(
            "tollgate_cached_input_tokens",
            "Input tokens that were read from a prompt cache; gen_ai_client_token_usage includes them in input",
            self.cached_input_tokens.clone(),
        );
        registry.register(
            "tollgate_cache_write_input_tokens",
            "Input tokens that were written to a prompt cache; gen_ai_client_token_usage includes them in input",
            self.cache_write_input_tokens.clone(),
        );
        registry.register(
            "tollgate_reasoning_output_tokens",
            "Output tokens that were spent on reasoning; gen_ai_client_token_usage includes them in output",
            self.reasoning_output_tokens.clone(),
        );
        registry.register(
            "tollgate_cost_usd",
            "Cost of the priced responses in USD",
            self.cost.clone(),
        );
        registry.register(
            "tollgate_unpriced",
            "Responses without a price",
            self.unpriced.clone(),
        );
    }

    /// Counts an exchange that has ended.
    pub(crate) fn record(&self, row: &LedgerRow) {
        self.record_request(row);
        self.record_attempts(row);
        let model = self.model_label(row.model.as_deref());
        if let Some(counts) = &row.counts {
            self.record_tokens(row, counts, &model);
        }
        if let Some(cost) = &row.cost {
            self.record_cost(row, cost, model);
        }
    }

    fn record_request(&self, row: &LedgerRow) {
        let service = ("service", Cow::from(row.service.clone()));
        let labels = vec![
            service.clone(),
            ("user", or_absent(row.user.as_deref())),
            ("credential", or_absent(row.credential.as_deref())),
            ("http_response_status_code", row.status.to_string().into()),
            ("end", row.end.as_str().into()),
        ];
        self.requests.get_or_create(&labels).inc();
        let mut labels = vec![
            service.clone(),
            ("http_request_method", method_label(&row.method).into()),
        ];
        // As OpenTelemetry prescribes: the label is absent if no status was sent.
        if row.status != 0 {
            labels.push(("http_response_status_code", row.status.to_string().into()));
        }
        self.request_durations
            .get_or_create(&labels)
            .observe(seconds(row.duration_ms));
        if let Some(ttfb_ms) = row.ttfb_ms {
            self.first_byte_durations
                .get_or_create(&vec![service])
                .observe(seconds(ttfb_ms));
        }
    }

    fn record_attempts(&self, row: &LedgerRow) {
        for attempt in &row.attempts {
            let Some(error) = error_type(attempt.outcome) else {
                continue;
            };
            let labels = vec![
                ("credential", attempt.credential.clone().into()),
                ("error_type", error.into()),
            ];
            self.upstream_errors.get_or_create(&labels).inc();
        }
    }

    fn record_tokens(&self, row: &LedgerRow, counts: &TokenCounts, model: &str) {
        let requested = self.model_label(row.requested_model.as_deref());
        let mut labels = vec![
            ("gen_ai_operation_name", operation_label(&row.path).into()),
            ("gen_ai_provider_name", PROVIDER.into()),
            ("gen_ai_request_model", requested.into()),
            ("gen_ai_response_model", model.to_owned().into()),
            ("gen_ai_token_type", "input".into()),
        ];
        self.tokens
            .get_or_create(&labels)
            .observe(counts.input as f64);
        labels.pop();
        labels.push(("gen_ai_token_type", "output".into()));
        self.tokens
            .get_or_create(&labels)
            .observe(counts.output as f64);
        let labels = vec![("gen_ai_response_model", model.to_owned().into())];
        for (family, count) in [
            (&self.cached_input_tokens, counts.cached),
            (&self.cache_write_input_tokens, counts.cache_write),
            (&self.reasoning_output_tokens, counts.reasoning),
        ] {
            family.get_or_create(&labels).inc_by(count);
        }
    }

    fn record_cost(&self, row: &LedgerRow, cost: &ResponseCost, model: String) {
        let labels = vec![
            ("user", or_absent(row.user.as_deref())),
            ("credential", or_absent(row.credential.as_deref())),
            ("gen_ai_response_model", model.into()),
        ];
        match cost {
            ResponseCost::Priced { amount, .. } => {
                self.cost.get_or_create(&labels).inc_by(amount.usd());
            }
            ResponseCost::Unpriced { .. } => {
                self.unpriced.get_or_create(&labels).inc();
            }
        }
    }

    fn model_label(&self, model: Option<&str>) -> String {
        let Some(model) = model else {
            return ABSENT.to_owned();
        };
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if models.contains(model) {
            return model.to_owned();
        }
        if models.len() >= MODELS_MAX {
            return OTHER_MODEL.to_owned();
        }
        models.insert(model.to_owned());
        model.to_owned()
    }

    /// Returns all counters and `observed` in the text format.
    pub(crate) fn to_text(&self, observed: &ObservedMetrics) -> String {
        let mut text = String::new();
        for registry in [&self.registry, observed.registry()] {
            // Writing to a `String` does not fail.
            let _ = prometheus_text::encode(&mut text, registry);
        }
        text
    }
}

fn or_absent(name: Option<&str>) -> Cow<'static, str> {
    match name {
        Some(name) => name.to_owned().into(),
        None => ABSENT.into(),
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1e3
}

/// Returns the method's label: any method outside of RFC 9110 and RFC 5789 is `_OTHER`, as
/// OpenTelemetry prescribes.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::CONNECT => "CONNECT",
        Method::DELETE => "DELETE",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

/// Returns OpenTelemetry's `gen_ai.operation.name` of a request to `path`.
fn operation_label(path: &str) -> &'static str {
    let has = |name: &str| path.split('/').any(|segment| segment == name);
    if has("responses") || has("chat") {
        "chat"
    } else if has("completions") {
        "text_completion"
    } else if has("embeddings") {
        "embeddings"
    } else {
        "generate_content"
    }
}

fn error_type(outcome: AttemptOutcome) -> Option<String> {
    match outcome {
        AttemptOutcome::Status(status) => (status >= 400).then(|| status.to_string()),
        AttemptOutcome::Unreachable | AttemptOutcome::TimedOut | AttemptOutcome::Broken => {
            Some(outcome.name())
        }
        AttemptOutcome::Abandoned | AttemptOutcome::Withdrawn => None,
    }
}

#[cfg(test)]
mod tests;
