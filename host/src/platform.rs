//! What differs between operating systems: who may use a file, Unix sockets, signals, the process,
//! and the service manager.
//!
//! Owns every call that only some systems have, except the options of TCP sockets, which stand
//! where they are set. Both folders have the same items. Invariant: what a system lacks is an error
//! of the kind [`Unsupported`](std::io::ErrorKind::Unsupported) or, if it only makes something
//! better, does nothing.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

pub(crate) use system::files::{
    AccessOptions, check_attributes, create_private_folder, file_identity, is_socket,
    is_writable_by_us_only, keep_access, may_replace, set_mode, sync_folder,
};
pub(crate) use system::processes::{
    in_own_group, lower_thread_priority, parent_process, raise_file_limit, thread_cpu_time,
};
pub(crate) use system::service_manager::{inherited_sockets, notify, watchdog_interval};
pub(crate) use system::signals::{
    ProcessSignal, all_signals, hang_up, interrupt, terminate, upgrade,
};
pub(crate) use system::sockets::{
    BlockingUnixStream, Descriptor, UnixListener, UnixStream, channel_of_stdin, duplicate,
    into_stdin, is_of_this_user, peek, receive_descriptors, send_descriptors, share_port,
    socket_path, unix_listener,
};

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
pub(crate) enum ServiceState {
    /// All listeners accept connections, or a reload has ended.
    Ready,
    /// The configuration is being read again.
    Reloading,
    /// The gateway is shutting down.
    Stopping,
    /// The process with this id succeeds the gateway's.
    Successor(u32),
    /// The runtime works.
    Alive,
}
