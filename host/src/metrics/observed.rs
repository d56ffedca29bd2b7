//! Metrics that are read at the time of a scrape: the state of credentials, policies and the
//! ledger.
//!
//! Owns how such figures become families of the text format; does not know what they measure.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::values::histogram::DurationHistogram;

/// The buckets of durations that take microseconds, in seconds.
const CALL_BUCKETS: [f64; 10] = [1e-6, 2e-6, 5e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0];

type SampleLabels = Vec<(&'static str, String)>;

/// The figures of one scrape.
#[derive(Debug, Default)]
pub(crate) struct ObservedMetrics {
    registry: Registry,
}

impl ObservedMetrics {
    /// Adds a family of figures that rise and fall: each value with its labels.
    pub(crate) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (SampleLabels, f64)>,
    ) {
        let family: Family<SampleLabels, Gauge<f64, AtomicU64>> = Family::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register(name, help, family);
    }

    /// Adds a family of figures that only rise.
    pub(crate) fn counter(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (SampleLabels, f64)>,
    ) {
        let family: Family<SampleLabels, Counter<f64, AtomicU64>> = Family::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    /// Adds a family of durations: each histogram with its labels.
    pub(crate) fn durations<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (SampleLabels, &'a DurationHistogram)>,
    ) {
        let samples = values
            .into_iter()
            .map(|(labels, histogram)| DurationSample::new(labels, histogram))
            .collect();
        self.registry
            .register_with_unit(name, help, Unit::Seconds, DurationFamily(samples));
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Our histograms as they were at the scrape.
#[derive(Debug)]
struct DurationFamily(Vec<DurationSample>);

#[derive(Debug)]
struct DurationSample {
    labels: SampleLabels,
    sum_seconds: f64,
    count: u64,
    /// Each bucket's upper bound, and how many durations are in it but in none before.
    buckets: Vec<(f64, u64)>,
}

impl DurationSample {
    fn new(labels: SampleLabels, histogram: &DurationHistogram) -> Self {
        let mut before = 0;
        let mut buckets = Vec::with_capacity(CALL_BUCKETS.len() + 1);
        for bound in CALL_BUCKETS {
            // Other threads count meanwhile: what is cumulative must not fall, nor exceed the count
            // below.
            let at_most = histogram
                .at_most(Duration::from_secs_f64(bound))
                .max(before);
            buckets.push((bound, at_most - before));
            before = at_most;
        }
        let count = histogram.count().max(before);
        buckets.push((f64::INFINITY, count - before));
        Self {
            labels,
            sum_seconds: histogram.sum().as_secs_f64(),
            count,
            buckets,
        }
    }
}

impl EncodeMetric for DurationFamily {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        for sample in &self.0 {
            let (sum, count) = (sample.sum_seconds, sample.count);
            encoder
                .encode_family(&sample.labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &sample.buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
