//! Without a service manager.

use std::io;
use std::time::Duration;

use super::sockets::Descriptor;
use crate::platform::terms::ServiceNotice;

/// Does nothing: there is no service manager.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn notify(_: ServiceNotice) -> io::Result<()> {
    Ok(())
}

/// There is no watchdog.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    None
}

/// No sockets are handed over.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn inherited_sockets() -> io::Result<Vec<(String, Descriptor)>> {
    Ok(Vec::new())
}
