//! The limits, the priority and the time of this process and its threads.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, getppid, getrlimit, setpriority_process, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::process::Command;

/// The limit on open files where the system sets none.
const FILES_MAX: Option<u64> = if cfg!(target_vendor = "apple") {
    // OPEN_MAX of sys/syslimits.h.
    Some(10_240)
} else {
    None
};

/// The niceness of threads that work in the background.
const NICE: i32 = 10;

/// Raises the limit on open files to what the system allows. The default is often far below.
///
/// # Errors
/// The system rejects the limit.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    // macOS rejects an unlimited number, which is what it gives as its maximum.
    let highest = limit.maximum.or(FILES_MAX);
    let is_lower = limit
        .current
        .is_some_and(|current| highest.is_none_or(|highest| current < highest));
    if is_lower {
        limit.current = highest;
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
