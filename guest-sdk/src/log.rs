//! Lines for the gateway's log.

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something is wrong and somebody must act.
    Error,
    /// Something is odd.
    Warn,
    /// Something happened that an operator may want to know.
    Info,
    /// For whoever looks for a fault.
    Debug,
    /// For whoever writes the policy.
    Trace,
}

/// Writes a line to the gateway's log, under the policy's tag. Off wasm it goes to standard error.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    crate::bindings::lifecycle::tollgate::policy::host::log(level as u32, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}
