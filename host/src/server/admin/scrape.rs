//! Metrics that are read from the gateway's state when an operator scrapes them. What is counted
//! per request is in `metrics`.

use crate::metrics::ObservedMetrics;
use crate::policy::FaultKind;
use crate::server::policies::{PolicyEntry, PolicyState, PolicyStatus};
use crate::server::status::GatewayStatus;
use crate::values::clock::Timestamp;

type MetricLabels = Vec<(&'static str, String)>;
type MetricSamples = Vec<(MetricLabels, f64)>;

/// Returns all metrics in Prometheus' text format.
pub(super) fn text(status: &GatewayStatus) -> String {
    let mut metrics = ObservedMetrics::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    metrics.gauge("tollgate_build_info", "Running version", [(version, 1.0)]);
    services(status, &mut metrics);
    certificates(status, &mut metrics);
    ledger(status, &mut metrics);
    policies(status, &mut metrics);
    configurations(status, &mut metrics);
    status.metrics().to_text(&metrics)
}

fn services(status: &GatewayStatus, metrics: &mut ObservedMetrics) {
    let now = Timestamp::now();
    let (mut used, mut caps, mut resets) = (
        MetricSamples::new(),
        MetricSamples::new(),
        MetricSamples::new(),
    );
    let (mut usable, mut in_flight, mut sockets) = (
        MetricSamples::new(),
        MetricSamples::new(),
        MetricSamples::new(),
    );
    for service in status.services() {
        let tag = service.tag().to_owned();
        sockets.push((vec![("service", tag.clone())], service.sockets() as f64));
        for (health, _) in service.health(now) {
            let labels = vec![
                ("service", tag.clone()),
                ("credential", health.credential.clone()),
            ];
            usable.push((labels.clone(), f64::from(health.usable)));
            in_flight.push((labels.clone(), f64::from(health.in_flight)));
            for (name, window) in [("five_hour", &health.five_hour), ("weekly", &health.weekly)] {
                let labels = with(&labels, "window", name);
                caps.push((labels.clone(), window.cap / 100.0));
                used.extend(window.used.map(|used| (labels.clone(), used / 100.0)));
                resets.extend(window.resets_at.map(|at| (labels, at as f64 / 1e3)));
            }
        }
    }
    let gauges = [
        (
            "tollgate_credential_used_ratio",
            "Used part of a credential's rate-limit window",
            used,
        ),
        (
            "tollgate_credential_cap_ratio",
            "Part of a window at which the credential is no longer used",
            caps,
        ),
        (
            "tollgate_credential_reset_timestamp_seconds",
            "Unix time at which a window resets",
            resets,
        ),
        (
            "tollgate_credential_usable",
            "Whether the credential can be used now",
            usable,
        ),
        (
            "http_client_active_requests",
            "Requests to upstream in flight",
            in_flight,
        ),
        ("tollgate_websockets", "Open WebSockets", sockets),
    ];
    for (name, help, samples) in gauges {
        metrics.gauge(name, help, samples);
    }
}

fn certificates(status: &GatewayStatus, metrics: &mut ObservedMetrics) {
    let (mut expiry, mut failing, mut reloads) = (
        MetricSamples::new(),
        MetricSamples::new(),
        MetricSamples::new(),
    );
    for certificate in status.certificates() {
        let Some(report) = certificate.report() else {
            continue;
        };
        let labels = vec![("service", certificate.service().to_owned())];
        expiry.extend(
            report
                .expires_at
                .map(|at| (labels.clone(), at as f64 / 1e3)),
        );
        failing.push((labels.clone(), f64::from(report.problem.is_some())));
        for (outcome, count) in [("ok", report.replaced), ("failed", report.rejected)] {
            reloads.push((with(&labels, "outcome", outcome), count as f64));
        }
    }
    metrics.gauge(
        "tollgate_tls_certificate_expiry_timestamp_seconds",
        "Unix time at which a service's certificate expires",
        expiry,
    );
    metrics.gauge(
        "tollgate_tls_failing",
        "Whether the newest certificate of a service cannot be used",
        failing,
    );
    metrics.counter(
        "tollgate_tls_reloads",
        "Replacements of a service's certificate by outcome",
        reloads,
    );
}

fn ledger(status: &GatewayStatus, metrics: &mut ObservedMetrics) {
    let Some(ledger) = status.ledger() else {
        return;
    };
    metrics.gauge(
        "tollgate_ledger_queue",
        "Requests whose rows are not committed yet",
        [(vec![], ledger.waiting() as f64)],
    );
    metrics.gauge(
        "tollgate_ledger_failing",
        "Whether the ledger cannot be written",
        [(vec![], f64::from(ledger.is_failing()))],
    );
    metrics.durations(
        "tollgate_ledger_commit_duration",
        "Duration of a commit",
        [(vec![], ledger.commit_time())],
    );
}

fn policies(status: &GatewayStatus, metrics: &mut ObservedMetrics) {
    let policies = status.policies();
    let entries = policies.entries();
    let reports: Vec<PolicyStatus> = entries.iter().map(PolicyStatus::of).collect();
    policy_calls(&reports, metrics);
    policy_shadows(&reports, metrics);
    policy_reloads(entries, &reports, metrics);
    let durations = entries
        .iter()
        .zip(&reports)
        .map(|(entry, report)| (labels(report), entry.shared().stats().time()));
    metrics.durations(
        "tollgate_policy_call_duration",
        "Duration of a policy's call",
        durations,
    );
}

fn policy_calls(reports: &[PolicyStatus], metrics: &mut ObservedMetrics) {
    metrics.counter(
        "tollgate_policy_calls",
        "Calls of a policy",
        each(reports, |policy| policy.calls as f64),
    );
    metrics.counter(
        "tollgate_policy_refusals",
        "Requests that a policy rejected",
        each(reports, |policy| policy.refusals as f64),
    );
    metrics.gauge(
        "tollgate_policy_generation",
        "Generation that serves",
        each(reports, |policy| policy.generation as f64),
    );
    metrics.gauge(
        "tollgate_policy_instances",
        "Warm instances",
        each(reports, |policy| policy.instances as f64),
    );
    metrics.gauge(
        "tollgate_policy_memory_bytes",
        "Linear memory of the warm instances",
        each(reports, |policy| policy.memory_bytes as f64),
    );
    metrics.gauge(
        "tollgate_policy_quarantined",
        "Whether a policy's circuit breaker is open",
        each(reports, |policy| {
            f64::from(policy.state == PolicyState::BreakerOpen)
        }),
    );
    let faults = reports.iter().flat_map(|policy| {
        FaultKind::ALL.into_iter().map(|kind| {
            let count = policy.faults(kind);
            (with(&labels(policy), "fault", kind.as_str()), count as f64)
        })
    });
    metrics.counter("tollgate_policy_faults", "Failed calls of a policy", faults);
}

fn policy_shadows(reports: &[PolicyStatus], metrics: &mut ObservedMetrics) {
    let shadows = || {
        reports
            .iter()
            .filter_map(|policy| Some((labels(policy), policy.shadow.as_ref()?)))
    };
    metrics.counter(
        "tollgate_policy_shadow_disagreements",
        "Calls for which a shadow gave another result",
        shadows().map(|(labels, shadow)| (labels, shadow.disagreed as f64)),
    );
    metrics.counter(
        "tollgate_policy_shadow_compared",
        "Calls that a shadow repeated",
        shadows().map(|(labels, shadow)| (labels, shadow.compared as f64)),
    );
}

fn policy_reloads(
    entries: &[PolicyEntry],
    reports: &[PolicyStatus],
    metrics: &mut ObservedMetrics,
) {
    let reloads = entries.iter().zip(reports).flat_map(|(entry, report)| {
        let counts = entry.reloads();
        [
            ("ok", counts.ok),
            ("failed", counts.failed),
            ("back", counts.back),
        ]
        .map(|(outcome, count)| (with(&labels(report), "outcome", outcome), count as f64))
    });
    metrics.counter(
        "tollgate_policy_reloads",
        "Reloads of a policy by outcome",
        reloads,
    );
}

fn configurations(status: &GatewayStatus, metrics: &mut ObservedMetrics) {
    let configurations = status.configurations();
    let counts = [
        ("ok", configurations.applied),
        ("failed", configurations.rejected),
    ];
    metrics.counter(
        "tollgate_config_reloads",
        "Reloads of the configuration by outcome",
        counts.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], count as f64)),
    );
}

fn each(
    reports: &[PolicyStatus],
    value: impl Fn(&PolicyStatus) -> f64,
) -> impl Iterator<Item = (MetricLabels, f64)> {
    reports
        .iter()
        .map(move |policy| (labels(policy), value(policy)))
}

fn labels(policy: &PolicyStatus) -> MetricLabels {
    vec![
        ("policy", policy.tag.clone()),
        ("kind", policy.kind.as_str().to_owned()),
    ]
}

fn with(labels: &MetricLabels, name: &'static str, value: &str) -> MetricLabels {
    [labels.as_slice(), &[(name, value.to_owned())]].concat()
}
