//! A credential as a balancer sees it: numbers, and nothing that could be a secret. It does not
//! know what they are computed from.

/// A member of a pool at the time of a request. Usage and caps are in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BalancerCandidate {
    /// Whether it can be chosen.
    pub usable: bool,
    /// The used part of the 5-hour window.
    pub five_hour_used: f64,
    /// How much of the 5-hour window this credential may use.
    pub five_hour_cap: f64,
    /// The time until the 5-hour window resets.
    pub five_hour_reset_minutes: Option<f64>,
    /// The used part of the weekly window.
    pub weekly_used: f64,
    /// How much of the weekly window this credential may use.
    pub weekly_cap: f64,
    /// The time until the weekly window resets.
    pub weekly_reset_minutes: Option<f64>,
    /// How long upstream rejects it; 0 if it does not.
    pub limited_minutes: f64,
    /// The number of its requests in flight.
    pub in_flight: u32,
    /// The number of attempts with it that failed in the last five minutes.
    pub recent_failures: u32,
    /// The recent time to the response's head.
    pub recent_latency_ms: Option<f64>,
    /// Whether it issued the response that the request continues.
    pub continues: bool,
    /// The weight of its capacity, if it reports one itself.
    pub own_weight: Option<f64>,
}
