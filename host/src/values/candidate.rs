//! A credential as a balancer sees it: numbers, and nothing that could be a secret.

/// A member of a pool at the moment of a request. Windows are in percent and minutes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BalancerCandidate {
    /// Whether it may be chosen.
    pub usable: bool,
    /// Used part of the 5-hour window.
    pub five_hour_used: f64,
    /// Where the 5-hour window ends for this credential.
    pub five_hour_cap: f64,
    /// Minutes until the 5-hour window starts anew.
    pub five_hour_reset_minutes: Option<f64>,
    /// Used part of the weekly window.
    pub weekly_used: f64,
    /// Where the weekly window ends for this credential.
    pub weekly_cap: f64,
    /// Minutes until the weekly window starts anew.
    pub weekly_reset_minutes: Option<f64>,
    /// Minutes for which upstream refuses it.
    pub limited_minutes: f64,
    /// Requests under way.
    pub in_flight: u32,
    /// Failed attempts of late.
    pub recent_failures: u32,
    /// Milliseconds to the response head, of late.
    pub recent_latency_ms: Option<f64>,
    /// Whether it made the response that the request continues.
    pub continues: bool,
    /// The weight of its capacity, where it tells that itself.
    pub own_weight: Option<f64>,
}
