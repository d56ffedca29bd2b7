//! What is looked at when somebody asks for metrics: how everything is at that moment.

use crate::metrics::Seen;
use crate::policy::FaultKind;
use crate::server::policies::PolicyStatus;
use crate::server::status::Board;
use crate::values::clock::Timestamp;

/// All metrics, as text.
pub(super) fn text(board: &Board) -> String {
    let mut seen = Seen::default();
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    seen.gauge(
        "tollgate_build_info",
        "The version that runs",
        [(build, 1.0)],
    );
    services(board, &mut seen);
    ledger(board, &mut seen);
    policies(board, &mut seen);
    board.world.metrics.text(&seen)
}

fn services(board: &Board, seen: &mut Seen) {
    let now = Timestamp::now();
    let (mut used, mut caps, mut resets, mut usable, mut in_flight, mut sockets) = (
        Vec::new(),
        Vec::new(),
        Vec::new(),
        Vec::new(),
        Vec::new(),
        Vec::new(),
    );
    for service in board.services() {
        let tag = service.tag().to_owned();
        sockets.push((vec![("service", tag.clone())], service.sockets() as f64));
        for (health, _) in service.health(now) {
            let labels = || {
                vec![
                    ("service", tag.clone()),
                    ("credential", health.credential.clone()),
                ]
            };
            usable.push((labels(), f64::from(u8::from(health.usable))));
            in_flight.push((labels(), f64::from(health.in_flight)));
            for (name, window) in [("five_hour", &health.five_hour), ("weekly", &health.weekly)] {
                let of_window = || [labels(), vec![("window", name.to_owned())]].concat();
                caps.push((of_window(), window.cap / 100.0));
                used.extend(window.used.map(|used| (of_window(), used / 100.0)));
                resets.extend(window.resets_at.map(|at| (of_window(), at as f64 / 1e3)));
            }
        }
    }
    seen.gauge(
        "tollgate_credential_used_ratio",
        "The used part of a credential's window",
        used,
    );
    seen.gauge(
        "tollgate_credential_cap_ratio",
        "The part of a window at which the credential pauses",
        caps,
    );
    let help = "When a window starts anew, in Unix seconds";
    seen.gauge("tollgate_credential_reset_timestamp_seconds", help, resets);
    seen.gauge(
        "tollgate_credential_usable",
        "Whether a request can be sent with it now",
        usable,
    );
    seen.gauge(
        "http_client_active_requests",
        "Requests and responses under way to upstream",
        in_flight,
    );
    seen.gauge("tollgate_websockets", "WebSockets that are open", sockets);
}

fn ledger(board: &Board, seen: &mut Seen) {
    let Some(ledger) = board.world.ledger.upgrade() else {
        return;
    };
    seen.gauge(
        "tollgate_ledger_queue",
        "Requests whose rows are not committed yet",
        [(vec![], ledger.waiting() as f64)],
    );
    let failing = f64::from(u8::from(ledger.is_failing()));
    seen.gauge(
        "tollgate_ledger_failing",
        "Whether the ledger cannot be written",
        [(vec![], failing)],
    );
    seen.durations(
        "tollgate_ledger_commit_duration",
        "A commit of rows",
        [(vec![], ledger.commit_time())],
    );
}

fn policies(board: &Board, seen: &mut Seen) {
    let policies = board.policies();
    let status = policies.status();
    let of = |policy: &PolicyStatus| {
        vec![
            ("policy", policy.tag.clone()),
            ("kind", policy.kind.to_owned()),
        ]
    };
    let each = |value: fn(&PolicyStatus) -> f64| {
        status.iter().map(move |policy| (of(policy), value(policy)))
    };
    seen.counter(
        "tollgate_policy_calls",
        "Calls of a policy",
        each(|policy| policy.calls as f64),
    );
    seen.counter(
        "tollgate_policy_refusals",
        "Requests that a policy refused",
        each(|policy| policy.refusals as f64),
    );
    seen.gauge(
        "tollgate_policy_generation",
        "The generation that serves",
        each(|policy| policy.generation as f64),
    );
    seen.gauge(
        "tollgate_policy_instances",
        "Warm instances",
        each(|policy| policy.instances as f64),
    );
    seen.gauge(
        "tollgate_policy_memory_bytes",
        "Their linear memory",
        each(|policy| policy.memory_bytes as f64),
    );
    let quarantined = |policy: &PolicyStatus| f64::from(u8::from(policy.state == "quarantined"));
    seen.gauge(
        "tollgate_policy_quarantined",
        "Whether a policy failed too often",
        each(quarantined),
    );
    let faults = status.iter().flat_map(|policy| {
        FaultKind::ALL.into_iter().map(|kind| {
            let count = policy
                .faults
                .get(kind.as_str())
                .copied()
                .unwrap_or_default();
            (
                [of(policy), vec![("fault", kind.as_str().to_owned())]].concat(),
                count as f64,
            )
        })
    });
    seen.counter(
        "tollgate_policy_faults",
        "Calls of a policy that failed",
        faults,
    );
    let disagreed = status
        .iter()
        .filter_map(|policy| Some((of(policy), policy.shadow.as_ref()?.disagreed as f64)));
    seen.counter(
        "tollgate_policy_shadow_disagreements",
        "Calls where a shadow said something else",
        disagreed,
    );
    let compared = status
        .iter()
        .filter_map(|policy| Some((of(policy), policy.shadow.as_ref()?.compared as f64)));
    seen.counter(
        "tollgate_policy_shadow_compared",
        "Calls that a shadow was asked, too",
        compared,
    );
    let reloads = policies
        .entries
        .iter()
        .zip(&status)
        .flat_map(|(entry, policy)| {
            let outcome = |name: &str, count: u64| {
                (
                    [of(policy), vec![("outcome", name.to_owned())]].concat(),
                    count as f64,
                )
            };
            [
                outcome("ok", entry.reloads.ok),
                outcome("failed", entry.reloads.failed),
                outcome("back", entry.reloads.back),
            ]
        });
    seen.counter(
        "tollgate_policy_reloads",
        "Reloads of a policy by what came of them",
        reloads,
    );
    let times = policies
        .entries
        .iter()
        .zip(&status)
        .map(|(entry, policy)| (of(policy), entry.slot.stats().time()));
    seen.durations("tollgate_policy_call_duration", "A call of a policy", times);
    let configured = board.configured();
    let outcome = |name: &str| vec![("outcome", name.to_owned())];
    let reloads = [
        (outcome("ok"), configured.taken_up as f64),
        (outcome("failed"), configured.refused as f64),
    ];
    seen.counter(
        "tollgate_config_reloads",
        "Changes of the configuration by what came of them",
        reloads,
    );
}
