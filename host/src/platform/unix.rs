//! Linux, macOS and other Unix systems.

pub(super) mod files;
pub(super) mod processes;
pub(super) mod service_manager;
pub(super) mod signals;
pub(super) mod sockets;
