//! The limits, the priority and the time of this process and its threads.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, getppid, getrlimit, setpriority_process, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::process::Command;

/// The niceness of threads that work in the background.
const NICE: i32 = 10;

/// Raises the limit on open files to what the system allows. The default is often far below.
///
/// # Errors
/// The system rejects the limit.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}

/// Lowers the priority of this thread, where threads have one. If that is not permitted, it keeps
/// its priority.
pub(crate) fn lower_thread_priority() {
    // On other systems than Linux, the call changes the whole process.
    if cfg!(target_os = "linux") {
        let _ = setpriority_process(None, NICE);
    }
}

/// Returns the CPU time that this thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// Keeps the signals of a terminal from a process that is started.
pub(crate) fn in_own_group(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

/// Returns the id of the process that started this one.
pub(crate) fn parent_process() -> Option<u32> {
    getppid().and_then(|parent| parent.as_raw_nonzero().get().try_into().ok())
}
