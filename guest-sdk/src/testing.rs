//! Pools and requests for testing a policy natively, without wasm.

use crate::balancer::{Balancer, Candidates, Decision, PoolLayout, Weights};
use crate::bindings::lifecycle::tollgate::policy::types;
use crate::request::Request;

/// A pool member for tests. Figures that are not set are those of a fresh, usable credential.
#[derive(Debug, Clone)]
pub struct Member {
    tag: String,
    plan: String,
    row: Vec<f64>,
}

/// Creates a fresh, usable member with plan `plus`.
pub fn member(tag: &str) -> Member {
    let row = vec![
        1.0, 0.0, 99.0, -1.0, 0.0, 99.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0,
    ];
    Member {
        tag: tag.to_owned(),
        plan: "plus".to_owned(),
        row,
    }
}

impl Member {
    /// Sets the plan, `plus` until then.
    pub fn plan(mut self, plan: &str) -> Self {
        self.plan = plan.to_owned();
        self
    }

    /// Sets the column of that name.
    ///
    /// # Panics
    /// Panics if there is no such column.
    pub fn with(mut self, column: &str, value: f64) -> Self {
        let place = PoolLayout::column_names()
            .iter()
            .position(|name| name == column);
        let place = place.unwrap_or_else(|| panic!("unknown column {column:?}"));
        self.row[place] = value;
        self
    }

    /// Marks the member as unusable.
    pub fn unusable(self) -> Self {
        self.with("usable", 0.0)
    }
}

/// Creates a request without strings, at the start of 1970.
pub fn request() -> Request {
    Request::from(types::Request {
        strings: Vec::new(),
        transport: 0,
        attempt: 0,
        now_ms: 0.0,
        seed: 0.0,
        sequence: 0.0,
    })
}

/// Configures `P` with `config` (JSON) and calls it to pick among `members` for a session whose
/// home is `home`.
///
/// # Panics
/// Panics if the policy rejects the configuration.
pub fn pick<P: Balancer>(
    config: &str,
    members: &[Member],
    home: Option<usize>,
    request: &Request,
) -> Decision {
    let config = crate::config::parse(config).unwrap_or_else(|error| panic!("config: {error}"));
    let mut weights = Weights::default();
    let policy = P::new(config, &mut weights).unwrap_or_else(|error| panic!("config: {error}"));
    let named = members
        .iter()
        .map(|member| (member.tag.clone(), member.plan.clone()))
        .collect();
    let pool = PoolLayout::new(&PoolLayout::column_names(), named, &weights);
    let table: Vec<f64> = members
        .iter()
        .flat_map(|member| member.row.clone())
        .collect();
    let home = home.map_or(-1, |home| home as i32);
    let candidates = Candidates::new(&pool, &table, home).unwrap_or_else(|error| panic!("{error}"));
    policy.pick(request, &candidates)
}
