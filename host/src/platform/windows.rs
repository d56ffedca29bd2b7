//! Windows: no Unix sockets, no successor process, no service manager. Files have the access that
//! their folder gives them.

pub(super) mod files;
pub(super) mod processes;
pub(super) mod service_manager;
pub(super) mod signals;
pub(super) mod sockets;
