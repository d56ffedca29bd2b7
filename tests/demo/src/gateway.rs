//! The real gateway as a child process. Invariant: it never outlives the demo.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::outcome::Outcome;
use crate::scene::Scene;

const READY_WAIT_MAX: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(20);
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(30);
/// Above the gateway's own drain timeout of 30 s.
const STOP_WAIT_MAX: Duration = Duration::from_secs(40);

/// A process of the gateway that accepts requests.
pub(crate) struct Gateway {
    /// The URL of its service, `http://ADDRESS`.
    pub(crate) url: String,
    program: PathBuf,
    child: Child,
}

impl Gateway {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(scene: &Scene) -> Outcome<Self> {
        let program = program()?;
        let output = File::create(scene.output_path())
            .map_err(|error| format!("cannot write its output: {error}"))?;
        let errors = output
            .try_clone()
            .map_err(|error| format!("cannot write its output: {error}"))?;
        let child = Command::new(&program)
            .arg("run")
            .arg("-c")
            .arg(scene.config_path())
            .arg("--ready-file")
            .arg(scene.ready_path())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // In its own process group: the demo handles Ctrl-C.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut gateway = Gateway {
            url: String::new(),
            program,
            child,
        };
        let address = gateway
            .wait_until_ready(&scene.ready_path())
            .await
            .map_err(|failure| format!("tollgate run: {failure}{}", scene.log_tails()))?;
        gateway.url = format!("http://{address}");
        Ok(gateway)
    }

    /// Returns the output of `tollgate usage --by KEY`.
    pub(crate) async fn usage(&self, config: &Path, by: &str) -> Outcome<String> {
        let name = format!("tollgate usage --by {by}");
        let mut command = Command::new(&self.program);
        command
            .arg("usage")
            .arg("-c")
            .arg(config)
            .args(["--by", by])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_WAIT_MAX, command.output())
            .await
            .map_err(|_| format!("{name}: no end within {COMMAND_WAIT_MAX:?}"))?
            .map_err(|error| format!("{name}: {error}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!(
                "{name}: expected exit code 0, found {}: {}",
                output.status,
                errors.trim()
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until it ends, which it should not do by itself. Returns that failure.
    pub(crate) async fn wait_for_exit(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("the gateway ended by itself with {status}"),
            Err(error) => format!("cannot wait for the gateway: {error}"),
        }
    }

    /// Stops it by SIGTERM and waits for its end.
    pub(crate) async fn stop(mut self) -> Outcome<()> {
        let Some(pid) = self.child.id() else {
            return Err("the gateway was gone before it was asked to stop".to_owned());
        };
        let pid = libc::pid_t::try_from(pid).map_err(|_| format!("{pid} is no process id"))?;
        // SAFETY: kill touches no memory of ours. The child has not been waited for, so the id is
        // still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let waited = tokio::time::timeout(STOP_WAIT_MAX, self.child.wait()).await;
        let status: ExitStatus = waited
            .map_err(|_| format!("the gateway did not stop within {STOP_WAIT_MAX:?} of SIGTERM"))?
            .map_err(|error| format!("cannot wait for the gateway: {error}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!(
                "after SIGTERM: expected exit code 0, found {status}"
            ))
        }
    }

    async fn wait_until_ready(&mut self, file: &Path) -> Outcome<String> {
        let deadline = Instant::now() + READY_WAIT_MAX;
        while Instant::now() < deadline {
            if let Ok(text) = fs::read(file) {
                return address_in(&text);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("ended with {status} before it was ready"));
            }
            tokio::time::sleep(READY_POLL).await;
        }
        Err(format!("no ready file within {READY_WAIT_MAX:?}"))
    }
}

/// Returns `TOLLGATE_BIN`, or the `tollgate` beside this program.
fn program() -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os("TOLLGATE_BIN") {
        return Ok(PathBuf::from(named));
    }
    let demo = std::env::current_exe()
        .map_err(|error| format!("cannot tell where this program is: {error}"))?;
    let beside = demo.with_file_name("tollgate");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(format!(
        "no gateway at {}: build it (cargo build -p tollgate) or set TOLLGATE_BIN",
        beside.display()
    ))
}

/// Returns the address of the only service in a ready file.
fn address_in(text: &[u8]) -> Outcome<String> {
    let ready: Value =
        serde_json::from_slice(text).map_err(|error| format!("ready file: not JSON: {error}"))?;
    let address = ready["services"][0]["address"].as_str();
    address
        .map(str::to_owned)
        .ok_or_else(|| format!("ready file: services[0].address: expected text, found {ready}"))
}
