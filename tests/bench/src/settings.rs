//! The plan of a run: sizes, counts and limits from the command line.
//!
//! Every count and time of the bench is here or in a named constant; nothing is unlimited.

use std::{io, path::PathBuf, time::Duration};

use crate::answers::{SOCKET_TURNS, Shape, StreamPlan};

/// Descriptors that a forwarder needs in addition to two for each stream.
const DESCRIPTORS_BESIDES: u64 = 512;

/// The plan of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The release binary of Tollgate.
    pub tollgate: PathBuf,
    /// JSON merged into Tollgate's config, object by object.
    pub tollgate_overrides: serde_json::Value,
    /// The shapes that are measured, in order.
    pub shapes: Vec<Shape>,
    /// The plan for policies on a running gateway.
    pub live: Option<LivePlan>,
    /// Interleaved rounds of each measure, after a warm-up.
    pub rounds: usize,
    /// Client connections that are kept alive throughout a measurement.
    pub connections: usize,
    /// WebSockets with concurrent turns.
    pub sockets: usize,
    /// JSON requests of one measurement, over all connections.
    pub requests: usize,
    /// The length of the streams and of the bursts in them.
    pub streams: StreamPlan,
    /// Time between two writes of upstream in a stream.
    pub pace: Duration,
    /// Streams or sockets that are open at once.
    pub idle_streams: usize,
    /// Silence before memory is measured.
    pub idle_settle: Duration,
    /// Timeout of one measurement.
    pub measurement_timeout: Duration,
    /// Timeout of the whole run.
    pub run_timeout: Duration,
}

/// What is measured of policies on a running gateway, and how often.
#[derive(Clone, Debug)]
pub struct LivePlan {
    /// The folder with the components.
    pub components: PathBuf,
    /// Reloads that are timed, one at a time.
    pub reloads: usize,
    /// Reloads between the two measurements of memory.
    pub reloads_for_memory: usize,
    /// Interleaved rounds of requests without and with a disturbance.
    pub rounds: usize,
    /// The duration of one such measurement.
    pub round: Duration,
    /// Starts that are timed.
    pub starts: usize,
}

impl LivePlan {
    /// Returns a plan with the components in this folder, `reloads` timed reloads, five times as
    /// many for what they leave in memory, and `rounds` rounds.
    pub fn of(components: PathBuf, reloads: usize, rounds: usize) -> Self {
        Self {
            components,
            reloads,
            reloads_for_memory: reloads.saturating_mul(5),
            rounds,
            round: Duration::from_secs(4),
            starts: 10,
        }
    }

    /// A smoke run of seconds.
    #[must_use]
    pub fn quick(self) -> Self {
        let (reloads, round) = (self.reloads.min(10), Duration::from_secs(1));
        Self {
            reloads,
            reloads_for_memory: 20,
            rounds: 1,
            round,
            starts: 2,
            ..self
        }
    }
}

impl Settings {
    /// Returns the plan of a smoke run of a few seconds, whose figures only show that the bench
    /// works.
    #[must_use]
    pub fn quick(mut self) -> Self {
        self.rounds = 1;
        self.requests = self.requests.min(400);
        self.sockets = self.sockets.min(16);
        self.streams.deltas = self.streams.deltas.min(200);
        self.idle_streams = self.idle_streams.min(50);
        self.idle_settle = self.idle_settle.min(Duration::from_millis(200));
        self.live = self.live.map(LivePlan::quick);
        self
    }

    /// Returns how many answers of `shape` a connection or socket receives in one measurement.
    pub fn exchanges_per_connection(&self, shape: Shape) -> usize {
        match shape {
            Shape::Json => self.requests.div_ceil(self.connections),
            Shape::Sse => 1,
            // A burst has many events in one tick, so more streams are needed for the same amount
            // of work.
            Shape::Burst => 4,
            Shape::Socket => SOCKET_TURNS,
            Shape::IdleSocket => 1,
            Shape::Idle => 0,
        }
    }

    /// Raises this process's limit of open files as far as allowed (children inherit it) and keeps
    /// the number of idle streams below it. Returns the limit.
    ///
    /// # Errors
    /// The system reports an error.
    pub fn fit_open_files(&mut self) -> io::Result<u64> {
        let limit = raise_open_files()?;
        let streams_max = limit.saturating_sub(DESCRIPTORS_BESIDES) / 2;
        self.idle_streams = self
            .idle_streams
            .min(usize::try_from(streams_max).unwrap_or(usize::MAX));
        Ok(limit)
    }
}

fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid value to read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}
