//! `tollgate-bench`: the command line, and the only code of this crate that prints.
//!
//! Runs on one thread, because the kernel ends the children with the thread that started them. On
//! Ctrl-C, SIGTERM, an error or a panic the children end with the values that own them.

use std::{fs, io, path::PathBuf, process::ExitCode, thread, time::Duration};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tollgate_bench::{
    answers::{Shape, StreamPlan},
    forwarder::{Forwarder, Site, StartError},
    live::{self, LiveError},
    report::Report,
    rounds::{self, BenchError},
    settings::{LivePlan, Settings},
};

/// Compares Tollgate with a bare hyper proxy and nginx in front of the same upstream: the CPU time
/// of each per request, event and WebSocket message, and its memory per idle stream and socket.
/// Also measures policy reloads on a running Tollgate.
///
/// Build first: `cargo build --release -p tollgate -p tollgate-bench`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The release binary of Tollgate
    #[arg(long, default_value = "target/release/tollgate")]
    tollgate: PathBuf,
    /// JSON merged into Tollgate's config, for example {"limits": {…}}
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json)]
    tollgate_set: serde_json::Value,
    /// Measures to take, separated by commas: json, sse, burst, socket, idle, idle-socket, and live
    /// (policies on a running gateway)
    #[arg(long, value_delimiter = ',', value_parser = measure)]
    only: Vec<Measure>,
    /// Folder of the components for the measure `live`
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "target/policies/wasm32-wasip2/policy"
    )]
    components: PathBuf,
    /// Reloads that are timed; five times as many are made to measure what they leave in memory
    #[arg(long, default_value_t = 200, value_parser = count)]
    reloads: usize,
    /// Interleaved rounds of each measure
    #[arg(long, default_value_t = 5, value_parser = count)]
    rounds: usize,
    /// Client connections that are kept alive
    #[arg(long, default_value_t = 16, value_parser = count)]
    connections: usize,
    /// WebSockets with concurrent turns
    #[arg(long, default_value_t = 32, value_parser = count)]
    sockets: usize,
    /// JSON requests in one measurement
    #[arg(long, default_value_t = 8000, value_parser = count)]
    requests: usize,
    /// Deltas in each event stream and over each socket
    #[arg(long, default_value_t = 2000, value_parser = count)]
    deltas: usize,
    /// Events in each write of upstream in the measure burst
    #[arg(long, default_value_t = 16, value_parser = count)]
    burst: usize,
    /// Microseconds between two writes of upstream in a stream; 0 for no pause
    #[arg(long, default_value_t = 1000)]
    pace_us: u64,
    /// Streams or sockets that are open at once, at most what the limit of open files allows
    #[arg(long, default_value_t = 1000, value_parser = count)]
    idle_streams: usize,
    /// Milliseconds of silence before memory is measured
    #[arg(long, default_value_t = 1500)]
    idle_settle_ms: u64,
    /// Timeout of one measurement in seconds
    #[arg(long, default_value_t = 60)]
    measurement_timeout_s: u64,
    /// Timeout of the whole run in seconds
    #[arg(long, default_value_t = 1800)]
    run_timeout_s: u64,
    /// A smoke run of a few seconds
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
}

/// A measure that can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Traffic(Shape),
    Live,
}

/// The name of [`Measure::Live`].
const LIVE: &str = "live";

fn measure(name: &str) -> Result<Measure, String> {
    if name == LIVE {
        return Ok(Measure::Live);
    }
    let expected = || Shape::ALL.map(Shape::name).join(", ");
    Shape::named(name)
        .map(Measure::Traffic)
        .ok_or_else(|| format!("expected one of {}, {LIVE}", expected()))
}

/// Large enough for any use, and small enough that the product of two does not overflow.
const COUNT_MAX: usize = 10_000_000;

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=COUNT_MAX) => Ok(count),
        _ => Err(format!("expected 1 to {COUNT_MAX}")),
    }
}

/// Parses JSON. Clap's default parser for this type accepts any text as a JSON string.
fn json(text: &str) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::from_str(text)
}

impl Arguments {
    fn settings(&self) -> Settings {
        let chosen = |measure: Measure| self.only.is_empty() || self.only.contains(&measure);
        let live = chosen(Measure::Live)
            .then(|| LivePlan::of(self.components.clone(), self.reloads, self.rounds));
        let settings = Settings {
            tollgate: self.tollgate.clone(),
            tollgate_overrides: self.tollgate_set.clone(),
            shapes: Shape::ALL
                .into_iter()
                .filter(|shape| chosen(Measure::Traffic(*shape)))
                .collect(),
            live,
            rounds: self.rounds,
            connections: self.connections,
            sockets: self.sockets,
            requests: self.requests,
            streams: StreamPlan {
                deltas: self.deltas,
                burst: self.burst,
            },
            pace: Duration::from_micros(self.pace_us),
            idle_streams: self.idle_streams,
            idle_settle: Duration::from_millis(self.idle_settle_ms),
            measurement_timeout: Duration::from_secs(self.measurement_timeout_s),
            run_timeout: Duration::from_secs(self.run_timeout_s),
        };
        if self.quick {
            settings.quick()
        } else {
            settings
        }
    }
}

/// Why the program fails.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot prepare: {0}")]
    Prepare(#[from] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("live: {0}")]
    Live(#[from] LiveError),
    #[error("run not done after {} s", .0.as_secs())]
    Slow(Duration),
    #[error("interrupted")]
    Interrupted,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match bench(arguments.settings()).await {
        Ok(report) if arguments.json => println!("{:#}", report.json()),
        Ok(report) => print!("{report}"),
        Err(failure) => {
            eprintln!("tollgate-bench: {failure}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn bench(mut settings: Settings) -> Result<Report, Failure> {
    let asked_streams = settings.idle_streams;
    let open_files = settings.fit_open_files()?;
    let folder = tempfile::Builder::new()
        .prefix("tollgate-bench-")
        .tempdir()?;
    let site = Site::survey(&settings, folder.path(), open_files)?;
    let mut notes = notes(&settings, asked_streams, &site);
    let progress = |text: &str| eprintln!("{text}");
    let figures = async {
        let series = rounds::run(&settings, &site, &progress).await?;
        let live = match &settings.live {
            Some(plan) => Some(live::run(plan, &settings, &site, folder.path(), &progress).await?),
            None => None,
        };
        Ok::<_, Failure>((series, live))
    };
    let (series, live) = tokio::select! {
        figures = figures => figures?,
        () = tokio::time::sleep(settings.run_timeout) => return Err(Failure::Slow(settings.run_timeout)),
        failure = interruption() => return Err(failure),
    };
    notes.push(format!("load average at the end: {}", load_average()));
    Ok(Report::new(&settings, &series, live, notes))
}

/// Resolves when the user or the system asks the program to end.
async fn interruption() -> Failure {
    let (mut interrupt, mut terminate) = match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return Failure::Prepare(error),
    };
    tokio::select! {
        _ = interrupt.recv() => Failure::Interrupted,
        _ = terminate.recv() => Failure::Interrupted,
    }
}

/// Returns what a reader of the figures has to know.
fn notes(settings: &Settings, asked_streams: usize, site: &Site) -> Vec<String> {
    let mut notes = Vec::new();
    if !site.forwarders().contains(&Forwarder::Nginx) {
        notes.push("nginx is left out: not on PATH (apt-get install nginx-light)".to_owned());
    }
    if settings.idle_streams < asked_streams {
        let held = settings.idle_streams;
        notes.push(format!("idle streams and sockets: {held} instead of {asked_streams}, by the limit of open files"));
    }
    let cores = thread::available_parallelism().map_or(0, usize::from);
    notes.push(format!(
        "{cores} cores; load average at the start: {}",
        load_average()
    ));
    notes
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use tollgate_bench::answers::Shape;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn only_keeps_the_order_of_measures() {
        let arguments = Arguments::parse_from(["tollgate-bench", "--only", "idle,json", "--quick"]);
        let settings = arguments.settings();
        assert_eq!(settings.shapes, [Shape::Json, Shape::Idle]);
        assert_eq!(settings.rounds, 1);
        assert!(settings.live.is_none());
        assert!(
            Arguments::parse_from(["tollgate-bench", "--only", "live"])
                .settings()
                .live
                .is_some()
        );
    }
}
