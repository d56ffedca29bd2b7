//! The real binary as a process: its start, its signals and its end.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clients::client::Client;

/// The longest start of the real binary: a debug build compiles its policies first.
const READY_MAX: Duration = Duration::from_secs(60);

/// The real binary, killed when this is dropped.
pub struct Program {
    child: Child,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    log: PathBuf,
}

impl Program {
    /// Starts `tollgate run` and waits for its ready file. Its output goes to `log`.
    pub async fn start(config: &str, ready: PathBuf, log: PathBuf) -> Self {
        Self::start_trusting(config, ready, log, None).await
    }

    /// As [`Program::start`], with upstream's certificates checked against those in the file
    /// `trusted`.
    pub async fn start_trusting(
        config: &str,
        ready: PathBuf,
        log: PathBuf,
        trusted: Option<&str>,
    ) -> Self {
        let mut command = Command::new(binary());
        command.stdin(Stdio::null());
        Self::start_as(command, config, ready, log, trusted).await
    }

    /// As [`Program::start_trusting`], by `command`, to which the arguments of the binary are
    /// added.
    pub async fn start_as(
        mut command: Command,
        config: &str,
        ready: PathBuf,
        log: PathBuf,
        trusted: Option<&str>,
    ) -> Self {
        let _ = fs::remove_file(&ready);
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        if let Some(file) = trusted {
            command
                .env("SSL_CERT_FILE", file)
                .env_remove("SSL_CERT_DIR");
        }
        let child = command
            .args(["run", "-c", config, "--ready-file"])
            .arg(&ready)
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .expect("the binary runs");
        let mut program = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: None,
            log,
        };
        (program.address, program.admin) = program.wait_until_ready(&ready).await;
        program
    }

    async fn wait_until_ready(&mut self, ready: &Path) -> (SocketAddr, Option<SocketAddr>) {
        let begun = Instant::now();
        loop {
            if let Ok(text) = fs::read(ready) {
                let ready: Value =
                    serde_json::from_slice(&text).expect("the ready file is written whole");
                let address = ready["services"][0]["address"]
                    .as_str()
                    .expect("a service has an address");
                let admin = ready["admin"]
                    .as_str()
                    .map(|admin| admin.parse().expect("an address"));
                return (address.parse().expect("an address"), admin);
            }
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                panic!("the gateway ended at once, {status}:\n{}", self.log());
            }
            assert!(
                begun.elapsed() < READY_MAX,
                "the gateway is not ready:\n{}",
                self.log()
            );
            // The ready file is the only signal.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns a client of its first service.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Returns a client of its admin listener.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn admin(&self) -> Client {
        Client::new(self.admin.expect("an admin listener"))
    }

    /// Returns its output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no memory to be unsafe with, and the child is not reaped yet.
        unsafe { libc::kill(pid, signal) };
    }

    /// Kills it at once and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits for its end, at most for `limit`.
    pub async fn wait(mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return status;
            }
            assert!(
                begun.elapsed() < limit,
                "the gateway does not end:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the path of the gateway's binary: `TOLLGATE_BIN`, or the one beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TOLLGATE_BIN") {
        return PathBuf::from(path);
    }
    let this = std::env::current_exe().expect("a test knows where it is");
    let folders = this.ancestors().skip(1).take(3);
    let found = folders
        .map(|folder| folder.join("tollgate"))
        .find(|path| path.is_file());
    found.expect("the gateway is built: cargo build -p tollgate")
}
