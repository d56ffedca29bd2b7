//! How far the gateway is from its end.

/// What the gateway does with connections and requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatewayPhase {
    /// It accepts connections and requests.
    Running,
    /// Another process accepts connections. Requests on those that this process has accepted may
    /// begin and finish.
    Retiring,
    /// It accepts no new ones; in-flight requests may finish.
    Draining,
    /// It aborts what is left.
    Stopping,
}
