//! How far the gateway is from its end.

/// What the gateway does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// No new connections and requests; those under way go on.
    Draining,
    /// Everything ends now.
    Ending,
}
