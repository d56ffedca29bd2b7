//! The order of a run: a warm-up, then interleaved rounds of each measure.
//!
//! Runs a process only while a measure needs it. For CPU time the forwarders run through all rounds
//! and stay warm. For memory each is restarted every time: what the allocator keeps from an earlier
//! load would hide the cost.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    answers::{Answers, Shape},
    forwarder::{Forwarder, Running, Site, StartError},
    load::{Clients, IdleStreams, LoadError, Tally, sockets::Sockets},
    process::ProcessError,
    settings::Settings,
};

/// The wait after the last byte, for work that a forwarder still does for the measured requests (a
/// ledger's checkpoint).
const TRAILING_WORK: Duration = Duration::from_millis(100);
/// The wait until the load's tasks have closed their sockets: a forwarder that shuts down would
/// wait for them.
const CLOSING: Duration = Duration::from_millis(100);
/// The size of the warm-up as a fraction of a measurement.
const WARM_UP_DIVISOR: usize = 4;
/// Requests over each connection before the memory of a new forwarder is read, so that one-time
/// set-up is done.
const FIRST_REQUESTS: usize = 20;

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A process could not be measured.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The load failed at a forwarder.
    #[error("{forwarder}: {}: {cause}{}", .shape.name(), quoted(.last_words))]
    Load {
        /// The forwarder that was measured.
        forwarder: Forwarder,
        /// The traffic that was measured.
        shape: Shape,
        /// The error of the load.
        cause: LoadError,
        /// The end of the forwarder's output.
        last_words: String,
    },
    /// A measurement timed out.
    #[error("{forwarder}: {}: not done after {} s{}", .shape.name(), .timeout.as_secs(), quoted(.last_words))]
    Slow {
        /// The forwarder that was measured.
        forwarder: Forwarder,
        /// The traffic that was measured.
        shape: Shape,
        /// The longest time for a round.
        timeout: Duration,
        /// The end of the forwarder's output.
        last_words: String,
    },
}

fn quoted(last_words: &str) -> String {
    match last_words {
        "" => String::new(),
        words => format!("; its output:\n{words}"),
    }
}

/// One measurement of one forwarder.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Microseconds of CPU per request, event or message; KiB per idle stream or socket.
    pub value: f64,
    /// Reads of the client per request, event or message; 0 if nothing is sent.
    pub reads_per_unit: f64,
    /// Wall time of the load.
    pub elapsed: Duration,
}

/// All rounds of one measure with one forwarder, in order.
#[derive(Clone, Debug)]
pub struct Series {
    /// The traffic that was measured.
    pub shape: Shape,
    /// The forwarder that was measured.
    pub forwarder: Forwarder,
    /// One sample per round. The same index is the same round in the series of another forwarder.
    pub samples: Vec<Sample>,
}

/// Takes every measurement of `settings` and reports each step to `progress`.
///
/// # Errors
/// Returns the first [`BenchError`]. All processes have ended by then.
pub async fn run(
    settings: &Settings,
    site: &Site,
    progress: &dyn Fn(&str),
) -> Result<Vec<Series>, BenchError> {
    let upstream = site.start_upstream(settings).await?;
    let bench = Bench {
        settings,
        site,
        progress,
        upstream: upstream.address,
        answers: Arc::new(Answers::new(settings.streams)),
    };
    let (of_memory, of_cpu): (Vec<Shape>, Vec<Shape>) =
        settings.shapes.iter().partition(|shape| shape.is_idle());
    let mut series = match of_cpu.is_empty() {
        true => Vec::new(),
        false => bench.cpu_rounds(&of_cpu).await?,
    };
    for shape in of_memory {
        series.extend(bench.idle_rounds(shape).await?);
    }
    Ok(series)
}

struct Bench<'a> {
    settings: &'a Settings,
    site: &'a Site,
    progress: &'a dyn Fn(&str),
    upstream: SocketAddr,
    answers: Arc<Answers>,
}

impl Bench<'_> {
    async fn cpu_rounds(&self, shapes: &[Shape]) -> Result<Vec<Series>, BenchError> {
        let mut fleet = Vec::new();
        for forwarder in self.site.forwarders() {
            (self.progress)(&format!("starting {forwarder}"));
            fleet.push((forwarder, self.site.start(forwarder, self.upstream).await?));
        }
        let mut all = Vec::new();
        for &shape in shapes {
            for (forwarder, running) in &fleet {
                (self.progress)(&format!("{}: warm-up of {forwarder}", shape.name()));
                let times = self
                    .settings
                    .exchanges_per_connection(shape)
                    .div_ceil(WARM_UP_DIVISOR);
                self.cpu(*forwarder, running, shape, times).await?;
            }
            let mut series = self.empty_series(shape);
            for round in 1..=self.settings.rounds {
                (self.progress)(&format!(
                    "{}: round {round} of {}",
                    shape.name(),
                    self.settings.rounds
                ));
                for (series, (forwarder, running)) in series.iter_mut().zip(&fleet) {
                    let times = self.settings.exchanges_per_connection(shape);
                    series
                        .samples
                        .push(self.cpu(*forwarder, running, shape, times).await?);
                }
            }
            all.extend(series);
        }
        Ok(all)
    }

    async fn idle_rounds(&self, shape: Shape) -> Result<Vec<Series>, BenchError> {
        let mut series = self.empty_series(shape);
        for round in 1..=self.settings.rounds {
            (self.progress)(&format!(
                "{}: round {round} of {}",
                shape.name(),
                self.settings.rounds
            ));
            for series in &mut series {
                let running = self.site.start(series.forwarder, self.upstream).await?;
                let measurement = self.idle_memory(&running, shape);
                let sample = self
                    .bounded(series.forwarder, &running, shape, measurement)
                    .await?;
                series.samples.push(sample);
            }
        }
        Ok(series)
    }

    fn empty_series(&self, shape: Shape) -> Vec<Series> {
        let empty = |forwarder| Series {
            shape,
            forwarder,
            samples: Vec::new(),
        };
        self.site.forwarders().into_iter().map(empty).collect()
    }

    async fn cpu(
        &self,
        forwarder: Forwarder,
        running: &Running,
        shape: Shape,
        times: usize,
    ) -> Result<Sample, BenchError> {
        self.bounded(
            forwarder,
            running,
            shape,
            self.cpu_time(running, shape, times),
        )
        .await
    }

    /// Runs `measurement` under the timeout, and adds the forwarder and the measure to its
    /// failure.
    async fn bounded(
        &self,
        forwarder: Forwarder,
        running: &Running,
        shape: Shape,
        measurement: impl Future<Output = Result<Sample, Unmeasured>>,
    ) -> Result<Sample, BenchError> {
        let timeout = self.settings.measurement_timeout;
        match tokio::time::timeout(timeout, measurement).await {
            Ok(Ok(sample)) => Ok(sample),
            Ok(Err(Unmeasured::Process(error))) => Err(error.into()),
            Ok(Err(Unmeasured::Load(cause))) => {
                let last_words = running.process.last_words();
                Err(BenchError::Load {
                    forwarder,
                    shape,
                    cause,
                    last_words,
                })
            }
            Err(_) => {
                let last_words = running.process.last_words();
                Err(BenchError::Slow {
                    forwarder,
                    shape,
                    timeout,
                    last_words,
                })
            }
        }
    }

    async fn cpu_time(
        &self,
        running: &Running,
        shape: Shape,
        times: usize,
    ) -> Result<Sample, Unmeasured> {
        let Settings {
            connections,
            sockets,
            ..
        } = *self.settings;
        if shape.is_socket() {
            let mut sockets = Sockets::open(running.address, sockets, shape, &self.answers).await?;
            return self.cpu_time_of(running, sockets.drive(times)).await;
        }
        let mut clients = Clients::connect(running.address, connections, &self.answers).await?;
        self.cpu_time_of(running, clients.drive(shape, times)).await
    }

    async fn cpu_time_of(
        &self,
        running: &Running,
        load: impl Future<Output = Result<Tally, LoadError>>,
    ) -> Result<Sample, Unmeasured> {
        let cpu_before = running.process.cpu_time()?;
        let began = Instant::now();
        let tally = load.await?;
        let elapsed = began.elapsed();
        tokio::time::sleep(TRAILING_WORK).await;
        let spent = running.process.cpu_time()?.saturating_sub(cpu_before);
        Ok(Sample {
            value: spent.as_secs_f64() * 1e6 / tally.units as f64,
            reads_per_unit: tally.reads as f64 / tally.units as f64,
            elapsed,
        })
    }

    async fn idle_memory(&self, running: &Running, shape: Shape) -> Result<Sample, Unmeasured> {
        let mut clients =
            Clients::connect(running.address, self.settings.connections, &self.answers).await?;
        clients.drive(Shape::Json, FIRST_REQUESTS).await?;
        drop(clients);
        tokio::time::sleep(self.settings.idle_settle).await;
        let before = running.process.memory_bytes()?;
        let began = Instant::now();
        let count = self.settings.idle_streams;
        let held = self.hold(running, shape, count).await?;
        let elapsed = began.elapsed();
        tokio::time::sleep(self.settings.idle_settle).await;
        let after = running.process.memory_bytes()?;
        drop(held);
        tokio::time::sleep(CLOSING).await;
        Ok(Sample {
            value: (after as f64 - before as f64) / 1024.0 / count as f64,
            reads_per_unit: 0.0,
            elapsed,
        })
    }

    async fn hold(&self, running: &Running, shape: Shape, count: usize) -> Result<Held, LoadError> {
        if !shape.is_socket() {
            return Ok(Held::Streams(
                IdleStreams::open(running.address, count).await?,
            ));
        }
        let mut sockets = Sockets::open(running.address, count, shape, &self.answers).await?;
        sockets
            .drive(self.settings.exchanges_per_connection(shape))
            .await?;
        Ok(Held::Sockets(sockets))
    }
}

/// Idle streams or sockets, which stay open until this value is dropped.
#[expect(dead_code, reason = "it is held, and that is all")]
enum Held {
    Streams(IdleStreams),
    Sockets(Sockets),
}

/// Why a measurement failed, without the forwarder and the measure.
#[derive(Debug, thiserror::Error)]
enum Unmeasured {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}
