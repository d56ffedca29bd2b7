//! Writes to the gateway's log.

/// The severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A failure that requires action.
    Error,
    /// An unexpected condition that the policy can handle.
    Warn,
    /// An event of interest to the operator.
    Info,
    /// Details that help an operator to find a fault.
    Debug,
    /// Details for the policy's author.
    Trace,
}

/// Writes a line to the gateway's log under the policy's tag. Native builds, such as tests, write
/// to standard error.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    crate::bindings::lifecycle::tollgate::policy::host::log(level as u32, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}
