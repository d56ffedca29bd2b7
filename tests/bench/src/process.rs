//! A child process: started, watched, measured and always ended.
//!
//! Owns pids and what the kernel reports about them. Invariant: dropping a [`Process`] ends it,
//! with the children that it started. Each leads its own process group, so that its workers are
//! known and no signal reaches another process. Only SIGKILL of the bench skips the destructor; for
//! that case the kernel is asked to send the child SIGTERM when its parent ends.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libc::{SIGKILL, SIGTERM, pid_t};

/// The limit from start to readiness, in which Tollgate compiles its policies at the first start.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The time from SIGTERM to SIGKILL.
const END_TIMEOUT: Duration = Duration::from_secs(4);
const POLL_EVERY: Duration = Duration::from_millis(10);
/// How often readiness is checked. Short, because the time of a start is a figure of the report.
const READY_EVERY: Duration = Duration::from_millis(1);
/// How many bytes of a child's output an error quotes, from the end.
const LAST_WORDS_BYTES: usize = 2000;

/// Why a child does not run or cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The child could not be started.
    #[error("{name}: cannot start: {cause}")]
    Start {
        /// Its name in the bench.
        name: String,
        /// The error of the system.
        cause: io::Error,
    },
    /// The child ended before it was ready.
    #[error("{name}: ended before it was ready ({status}); its output:\n{last_words}")]
    EndedEarly {
        /// Its name in the bench.
        name: String,
        /// Exit code or signal.
        status: String,
        /// The end of its standard output and error.
        last_words: String,
    },
    /// The child did not become ready in time.
    #[error("{name}: not ready after {} s; its output:\n{last_words}", READY_TIMEOUT.as_secs())]
    NotReady {
        /// Its name in the bench.
        name: String,
        /// The end of its standard output and error.
        last_words: String,
    },
    /// The kernel did not report its CPU time or memory.
    #[error("{name}: cannot read its {what}: {cause}")]
    Unmeasured {
        /// Its name in the bench.
        name: String,
        /// CPU time or memory.
        what: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
}

/// A running child and the processes that it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: pid_t,
    output: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `folder`.
    ///
    /// Call it on the main thread: the kernel ties the child's life to the thread that starts it.
    ///
    /// # Errors
    /// [`ProcessError::Start`].
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self, ProcessError> {
        let output = folder.join(format!("{name}.out"));
        match spawn(&mut command, &output) {
            Ok((child, pid)) => Ok(Self {
                name: name.to_owned(),
                child,
                pid,
                output,
            }),
            Err(cause) => Err(ProcessError::Start {
                name: name.to_owned(),
                cause,
            }),
        }
    }

    /// Waits until `probe` finds that the child is ready.
    ///
    /// # Errors
    /// [`ProcessError::EndedEarly`] or [`ProcessError::NotReady`].
    pub async fn ready<T>(
        &mut self,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T, ProcessError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(found) = probe() {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let (name, last_words) = (self.name.clone(), self.last_words());
                return Err(ProcessError::EndedEarly {
                    name,
                    status: status.to_string(),
                    last_words,
                });
            }
            if Instant::now() >= deadline {
                return Err(ProcessError::NotReady {
                    name: self.name.clone(),
                    last_words: self.last_words(),
                });
            }
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    /// Returns the CPU time, user and system, of the child and its workers, including threads that
    /// have ended.
    ///
    /// Read from the process's CPU-time clock: nanoseconds from the scheduler's sums. The files in
    /// `/proc/PID/task/*/schedstat` have the same figures, but lose those of a thread that ends.
    ///
    /// # Errors
    /// [`ProcessError::Unmeasured`].
    pub fn cpu_time(&self) -> Result<Duration, ProcessError> {
        let sum = || -> io::Result<Duration> { self.members()?.into_iter().map(cpu_time_of).sum() };
        sum().map_err(|cause| self.unmeasured("CPU time", cause))
    }

    /// Returns the memory in bytes: the proportional set size, or the resident one if the kernel
    /// withholds that.
    ///
    /// # Errors
    /// [`ProcessError::Unmeasured`].
    pub fn memory_bytes(&self) -> Result<u64, ProcessError> {
        let memory_of = |pid: pid_t| pss_of(pid).or_else(|_| rss_of(pid));
        let sum = || -> io::Result<u64> { self.members()?.into_iter().map(memory_of).sum() };
        sum().map_err(|cause| self.unmeasured("memory", cause))
    }

    /// Returns the end of the child's standard output and error.
    pub fn last_words(&self) -> String {
        let bytes = fs::read(&self.output).unwrap_or_default();
        let from = bytes.len().saturating_sub(LAST_WORDS_BYTES);
        String::from_utf8_lossy(&bytes[from..]).trim().to_owned()
    }

    fn unmeasured(&self, what: &'static str, cause: io::Error) -> ProcessError {
        ProcessError::Unmeasured {
            name: self.name.clone(),
            what,
            cause,
        }
    }

    /// Returns the child and the processes of its group.
    fn members(&self) -> io::Result<Vec<pid_t>> {
        let mut members: Vec<pid_t> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid == self.pid || group_of(pid) == Some(self.pid))
            .collect();
        members.sort_unstable();
        Ok(members)
    }

    /// Whether the child has ended. Reaps it if so.
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn signal_group(&self, signal: libc::c_int) {
        // SAFETY: kill() has no memory effects. The group's number is our child's pid, which stays
        // taken until the child is collected and while any process is in the group.
        unsafe { libc::kill(-self.pid, signal) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            // SAFETY: kill() has no memory effects; the child is not collected yet, so the pid is
            // its own.
            unsafe { libc::kill(self.pid, SIGTERM) };
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while !self.has_ended() && Instant::now() < deadline {
            thread::sleep(POLL_EVERY);
        }
        // Workers that outlived the child, or the child itself.
        if !self.has_ended() || self.members().is_ok_and(|members| !members.is_empty()) {
            self.signal_group(SIGKILL);
        }
        // A failure cannot be handled here, and SIGKILL was sent.
        self.child.wait().ok();
    }
}

fn spawn(command: &mut Command, output: &Path) -> io::Result<(Child, pid_t)> {
    let file = File::create(output)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0);
    end_with_parent(command);
    let child = command.spawn()?;
    let pid = pid_t::try_from(child.id()).map_err(io::Error::other)?;
    Ok((child, pid))
}

fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl() is called, which is async-signal-safe and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

fn cpu_time_of(pid: pid_t) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the answer.
    match unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } {
        0 => {}
        code => return Err(io::Error::from_raw_os_error(code)),
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, nanoseconds))
}

fn pss_of(pid: pid_t) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn rss_of(pid: pid_t) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    // SAFETY: sysconf() only reads.
    let page =
        u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    text.split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .map(|pages| pages * page)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The fifth field of `/proc/PID/stat`; the second, a name in parentheses, may hold anything.
fn group_of(pid: pid_t) -> Option<pid_t> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    after_name.split(' ').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs, process::Command, thread, time::Instant};

    use super::{END_TIMEOUT, POLL_EVERY, Process};

    #[test]
    fn a_dropped_process_is_gone_with_its_workers() -> Result<(), Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & wait"]);
        let process = Process::start("sh", command, folder.path())?;
        let mut members = process.members()?;
        while members.len() < 2 {
            thread::sleep(POLL_EVERY);
            members = process.members()?;
        }
        assert!(process.memory_bytes()? > 0);
        process.cpu_time()?;
        drop(process);
        let deadline = Instant::now() + END_TIMEOUT;
        while members.iter().any(|&pid| is_alive(pid)) {
            assert!(Instant::now() < deadline, "{members:?} still live");
            thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    /// A process that was killed and not yet reaped counts as ended.
    fn is_alive(pid: libc::pid_t) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }
}
