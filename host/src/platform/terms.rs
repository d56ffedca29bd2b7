//! What the modules of all systems say in the same terms.

/// Why a file cannot be replaced by a rename, although its folder is writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "only Linux tells")
)]
pub(crate) enum FixedFile {
    /// The file itself is a mount point.
    Mounted,
    /// It is marked as immutable or append-only.
    Immutable,
}

/// What the service manager learns (`sd_notify(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceNotice {
    /// All listeners accept connections, or a reload has ended.
    Ready,
    /// The configuration is being read again.
    Reloading,
    /// The gateway is shutting down.
    Stopping,
    /// The process with this id succeeds the gateway's.
    Successor(u32),
    /// The runtime still runs tasks.
    Alive,
}
