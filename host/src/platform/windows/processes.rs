//! This process and its threads.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

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

/// Not known: no process succeeds another.
pub(crate) fn parent_process() -> Option<u32> {
    None
}
