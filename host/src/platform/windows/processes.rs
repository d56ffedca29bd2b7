//! This process and its threads.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tokio::process::Command;

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Without effect: sockets are not limited.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail")]
pub(crate) fn raise_file_limit() -> io::Result<()> {
    Ok(())
}

/// Without effect: the thread keeps its priority.
pub(crate) fn lower_thread_priority() {}

/// Returns the elapsed time, which is at least the CPU time that this thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    BEGIN.elapsed()
}

/// The flag with which a process does not get the console's events (`CreateProcess`).
const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;

/// Keeps the events of the console from a process that is started.
pub(crate) fn in_own_group(command: &mut Command) -> &mut Command {
    command.creation_flags(CREATE_NEW_PROCESS_GROUP)
}

/// Not known: no process succeeds another.
pub(crate) fn parent_process() -> Option<u32> {
    None
}
