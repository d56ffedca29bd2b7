//! A scene of upgrades: the processes of a gateway, one after the other.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::client::Client;
use crate::gateway::Rig;
use crate::gateway::program::Program;

/// The longest wait for a process: a debug build on a busy machine.
const PROCESS_MAX: Duration = Duration::from_secs(60);

/// A gateway whose processes succeed each other.
pub struct UpgradeScene {
    /// The rig of the gateway.
    pub rig: Rig,
    first: Program,
    /// The processes so far, the current one last.
    processes: Vec<u32>,
}

impl UpgradeScene {
    /// Starts the real binary with `config`.
    ///
    /// # Panics
    /// Panics if it does not start.
    pub async fn new(rig: Rig, config: &Value) -> Self {
        let first = rig.spawn(config).await;
        let processes = vec![first.id()];
        Self {
            rig,
            first,
            processes,
        }
    }

    /// Returns the current process.
    ///
    /// # Panics
    /// Never: there is a first process.
    pub fn process(&self) -> u32 {
        *self.processes.last().expect("a process")
    }

    /// Returns a client of the first service.
    pub fn client(&self) -> Client {
        self.first.client()
    }

    /// Returns the address of the first service.
    pub fn address(&self) -> SocketAddr {
        self.client().address()
    }

    /// Returns the output of all processes so far.
    pub fn log(&self) -> String {
        self.first.log()
    }

    /// Sends a signal to the current process.
    pub fn signal(&self, signal: i32) {
        send_signal(self.process(), signal);
    }

    /// Replaces the current process, and waits until its successor has all duties. Returns the old
    /// process.
    ///
    /// # Panics
    /// Panics if there is no successor in time.
    pub async fn upgrade(&mut self) -> u32 {
        let old = self.process();
        let ready = self.rig.path("ready.json");
        fs::remove_file(&ready).expect("the current process wrote it");
        self.signal(libc::SIGUSR2);
        let begun = Instant::now();
        let file = loop {
            if let Ok(text) = fs::read(&ready) {
                break serde_json::from_slice::<Value>(&text).expect("the file is written whole");
            }
            assert!(
                begun.elapsed() < PROCESS_MAX,
                "no successor:\n{}",
                self.log()
            );
            // The ready file is the only signal.
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let process = file["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let process = process.expect("a process id");
        assert_ne!(process, old, "the old process wrote the file");
        self.processes.push(process);
        old
    }

    /// Waits until `text` is in the log.
    ///
    /// # Panics
    /// Panics if it is not in time.
    pub async fn logged(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(
                begun.elapsed() < PROCESS_MAX,
                "no {text:?}:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a process has ended.
    ///
    /// # Panics
    /// Panics if it has not in time.
    pub async fn ended(&self, process: u32) {
        let begun = Instant::now();
        while is_running(process) {
            assert!(
                begun.elapsed() < PROCESS_MAX,
                "it does not end:\n{}",
                self.log()
            );
            // A process that is not a child can only be asked.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the current process, and waits until all have ended.
    ///
    /// # Panics
    /// Panics if they have not in time.
    pub async fn stop(&self) {
        self.signal(libc::SIGTERM);
        for process in &self.processes {
            self.ended(*process).await;
        }
    }
}

impl Drop for UpgradeScene {
    fn drop(&mut self) {
        // The first one is a child, and is killed with its `Program`.
        for process in self.processes.iter().skip(1) {
            if is_running(*process) {
                send_signal(*process, libc::SIGKILL);
            }
        }
    }
}

/// Returns whether a process runs. A process that has ended and is not reaped yet does not.
pub fn is_running(process: u32) -> bool {
    let Ok(state) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return false;
    };
    // After the name, which is in parentheses.
    let state = state.rsplit(") ").next().unwrap_or_default();
    !state.starts_with(['Z', 'X'])
}

/// Sends a signal to a process.
///
/// # Panics
/// Panics if `process` is no process id.
pub fn send_signal(process: u32, signal: i32) {
    let pid = libc::pid_t::try_from(process).expect("a process id");
    // SAFETY: kill has no memory to be unsafe with.
    unsafe { libc::kill(pid, signal) };
}
