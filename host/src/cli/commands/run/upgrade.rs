//! An upgrade: a new process, perhaps of a newer version, takes the place of this one without
//! refusing a connection.
//!
//! Both sides are here. The old process starts the new one with a channel as its standard input and
//! sends what it hands over. The new process says that it is ready when it accepts connections. Then
//! the old one gives up its duties, says so, and runs until its requests have ended. Invariant:
//! until the new process is ready, the old one has given up nothing.

use std::env;
use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::files::io_reason;
use crate::platform::{
    BlockingUnixStream, UnixStream, channel_of_stdin, into_stdin, parent_process,
};
use crate::server::Handover;

/// The environment variable that tells a new process who started it for an upgrade.
const PREDECESSOR: &str = "TOLLGATE_PREDECESSOR";

/// What the new process sends when it accepts connections.
const READY: u8 = b'R';

/// What the old process sends when it has given up its duties.
const RELEASED: u8 = b'L';

/// How long the new process waits for what is handed over: the old one has it at hand.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the new process waits until the old one has given up its duties.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a new process that gave up may take until it has ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Variables of the environment that are meant for one process only.
const OWN_VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The process that this one succeeds.
pub(super) struct Predecessor {
    channel: BlockingUnixStream,
}

impl Predecessor {
    /// Returns the process that started this one for an upgrade, if one did, and what it hands
    /// over. Blocks.
    ///
    /// # Errors
    /// What it hands over cannot be received.
    pub(super) fn find() -> io::Result<Option<(Self, Handover)>> {
        let parent = parent_process().map(|parent| parent.to_string());
        // A child of the new process inherits the variable, too: it names another parent.
        if parent.is_none() || env::var(PREDECESSOR).ok() != parent {
            return Ok(None);
        }
        let channel = channel_of_stdin()?;
        channel.set_read_timeout(Some(HANDOVER_TIMEOUT))?;
        let handover = Handover::receive(&channel)?;
        Ok(Some((Self { channel }, handover)))
    }

    /// Tells the old process that this one accepts connections, and waits until it has given up its
    /// duties. If it is gone, it has none.
    pub(super) async fn succeed(self) {
        match timeout(RELEASE_TIMEOUT, self.exchange()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = io_reason(&error), "the old process is gone");
            }
            Err(_) => tracing::warn!("the old process does not give up its duties in time"),
        }
    }

    async fn exchange(self) -> io::Result<()> {
        self.channel.set_nonblocking(true)?;
        let mut channel = UnixStream::from_std(self.channel)?;
        channel.write_all(&[READY]).await?;
        match channel.read_u8().await? {
            RELEASED => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Why an upgrade failed. This process continues.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("process 1 of a container cannot be replaced: start a new container instead")]
    FirstProcess,
    #[error("{}: {}", .0.display(), io_reason(.1))]
    Start(OsString, io::Error),
    #[error("handing over the sockets: {}", io_reason(.0))]
    Handover(#[from] io::Error),
    #[error("the new process ended before it was ready ({0})")]
    Ended(ExitStatus),
    #[error("the new process was not ready within limits.upgrade_ready_timeout")]
    TimedOut,
}

/// How this program was started: the new process is started in the same way. A name or a link then
/// leads to the newer version.
pub(super) struct StartCommand {
    program: OsString,
    arguments: Vec<OsString>,
}

/// A process that succeeds this one, and accepts connections.
pub(super) struct ReadySuccessor {
    id: u32,
    channel: UnixStream,
}

/// A process that is to succeed this one. It is killed when this is dropped.
struct StartingSuccessor {
    child: Child,
    is_ready: bool,
}

impl Drop for StartingSuccessor {
    fn drop(&mut self) {
        if !self.is_ready {
            let _ = self.child.start_kill();
        }
    }
}

impl StartCommand {
    pub(super) fn of_this_process() -> Self {
        let mut arguments = env::args_os();
        let program = arguments.next().unwrap_or_else(|| "tollgate".into());
        Self {
            program,
            arguments: arguments.collect(),
        }
    }

    /// Starts a new process, hands over to it, and waits at most for `limit` until it is ready.
    ///
    /// # Errors
    /// It cannot be started or does not become ready. It is killed.
    pub(super) async fn start_successor(
        &self,
        handover: Handover,
        limit: Duration,
    ) -> Result<ReadySuccessor, UpgradeError> {
        if std::process::id() == 1 {
            return Err(UpgradeError::FirstProcess);
        }
        let (channel, other_end) = BlockingUnixStream::pair()?;
        let mut successor = self.spawn(other_end)?;
        handover.send(&channel)?;
        drop(handover);
        channel.set_nonblocking(true)?;
        let mut channel = UnixStream::from_std(channel)?;
        let ready = timeout(limit, successor.wait_until_ready(&mut channel)).await;
        ready.map_err(|_| UpgradeError::TimedOut)??;
        successor.is_ready = true;
        let id = successor.child.id().unwrap_or_default();
        Ok(ReadySuccessor { id, channel })
    }

    fn spawn(&self, channel: BlockingUnixStream) -> Result<StartingSuccessor, UpgradeError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env(PREDECESSOR, std::process::id().to_string())
            .stdin(into_stdin(channel));
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        let child = command
            .spawn()
            .map_err(|error| UpgradeError::Start(self.program.clone(), error))?;
        tracing::info!(pid = child.id(), "upgrade: starting a new process");
        Ok(StartingSuccessor {
            child,
            is_ready: false,
        })
    }
}

impl StartingSuccessor {
    async fn wait_until_ready(&mut self, channel: &mut UnixStream) -> Result<(), UpgradeError> {
        match channel.read_u8().await {
            Ok(READY) => Ok(()),
            // It closed its end, and so is about to end and to log why.
            Ok(_) | Err(_) => {
                let ended = timeout(END_TIMEOUT, self.child.wait()).await;
                let status = ended.map_err(|_| UpgradeError::TimedOut)??;
                Err(UpgradeError::Ended(status))
            }
        }
    }
}

impl ReadySuccessor {
    /// Returns its process id.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Tells it that this process has given up its duties.
    pub(super) async fn release(mut self) {
        if let Err(error) = self.channel.write_all(&[RELEASED]).await {
            tracing::warn!(error = io_reason(&error), "the new process is gone");
        }
    }
}
