//! What differs between operating systems: who may use a file, Unix sockets, signals, the process,
//! and the service manager.
//!
//! Owns every call that only some systems have, except the options of TCP sockets, which stand
//! where they are set. Both folders have the same items. Invariant: what a system lacks is an error
//! of the kind [`Unsupported`](std::io::ErrorKind::Unsupported) or, if it only makes something
//! better, does nothing.

mod terms;
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
    is_writable_by_us_only, is_writable_folder, keep_access, may_replace, set_mode, sync_folder,
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
pub(crate) use terms::{FixedFile, ServiceNotice};
