//! The table of a pool that balancers get: one row per member, with named columns.
//!
//! Invariant: a table of this release has the columns [`COLUMNS`]. Recorded tables may have others.

use crate::values::credential::candidate::BalancerCandidate;

/// The columns of the table, in the order of [`row`]. The contract describes them.
const COLUMNS: [&str; 13] = [
    USABLE,
    "five-hour-used",
    "five-hour-cap",
    "five-hour-reset",
    "weekly-used",
    "weekly-cap",
    "weekly-reset",
    "limited",
    "in-flight",
    "recent-failures",
    "recent-latency",
    "continues",
    "own-weight",
];

const USABLE: &str = "usable";

/// The table's value for what is not known.
const UNKNOWN: f64 = -1.0;

fn row(candidate: &BalancerCandidate) -> [f64; COLUMNS.len()] {
    [
        f64::from(u8::from(candidate.usable)),
        candidate.five_hour_used,
        candidate.five_hour_cap,
        candidate.five_hour_reset_minutes.unwrap_or(UNKNOWN),
        candidate.weekly_used,
        candidate.weekly_cap,
        candidate.weekly_reset_minutes.unwrap_or(UNKNOWN),
        candidate.limited_minutes,
        f64::from(candidate.in_flight),
        f64::from(candidate.recent_failures),
        candidate.recent_latency_ms.unwrap_or(UNKNOWN),
        f64::from(u8::from(candidate.continues)),
        candidate.own_weight.unwrap_or(UNKNOWN),
    ]
}

/// Returns the table of `candidates`, one row each.
pub(super) fn table(candidates: &[BalancerCandidate]) -> Vec<f64> {
    let mut table = Vec::with_capacity(candidates.len() * COLUMNS.len());
    for candidate in candidates {
        table.extend_from_slice(&row(candidate));
    }
    table
}

/// Returns the names of the columns of this release.
pub(super) fn column_names() -> Vec<String> {
    COLUMNS.map(str::to_owned).to_vec()
}

/// Returns whether the member at `index` is usable by `table`, whose columns are `columns`, or
/// those of this release if `None`. Recorded tables may lack the column: their members count as
/// usable.
pub(super) fn is_usable(table: &[f64], columns: Option<&[String]>, index: usize) -> bool {
    let (width, usable) = match columns {
        None => (COLUMNS.len(), Some(0)),
        Some(columns) => (
            columns.len(),
            columns.iter().position(|name| name == USABLE),
        ),
    };
    usable.and_then(|usable| table.get(index * width + usable)) != Some(&0.0)
}
