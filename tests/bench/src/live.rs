//! Policies on a running gateway: how long a reload takes, how much it delays requests, what it
//! leaves in memory, how long a start with policies takes, and how much a hostile guest delays the
//! requests of others.
//!
//! Only Tollgate is measured here, with its default number of threads, and compared with itself
//! without the disturbance. Each reload loads new bytes, so that each compiles.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::sleep,
};

use crate::{
    answers::{Answers, Shape},
    forwarder::{OTHER_TOKEN, Running, Site, StartError},
    load::{Clients, LoadError},
    process::ProcessError,
    report::Spread,
    settings::Settings,
};

/// How often the bench checks which generation serves: rarely enough not to slow down the
/// compilation.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// The timeout of a reload.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two timed reloads.
const REST: Duration = Duration::from_millis(50);
/// The interval between requests of a connection while they are timed, far below the machine's
/// capacity.
const PACE: Duration = Duration::from_millis(10);
/// The connections on which every request makes a guest loop.
const HOSTILE_CONNECTIONS: usize = 2;
/// The wait after a start, which is not measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// The tag of the reloaded component.
const TAG: &str = "bench-prices";

/// The components; each is a file in [`Plan::components`].
const RELOADED: &str = "openai_pricing.wasm";
const HOSTILE: &str = "faulty_balancer.wasm";

/// What is measured and how often.
#[derive(Clone, Debug)]
pub struct Plan {
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

/// The limit of a reload in milliseconds.
const RELOAD_AIM_MS: f64 = 150.0;
/// The limit of what cached policies add to a start, in milliseconds.
const POLICIES_AIM_MS: f64 = 15.0;
/// The limit of the ratio of request times (p99) during reloads to those without.
const RELOADS_RATIO_AIM: f64 = 1.5;
/// The limit of the delay of a request by a guest that loops, in milliseconds.
const HOSTILE_AIM_MS: f64 = 10.0;

impl Plan {
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

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// A process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The process could not be measured.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A request failed.
    #[error("requests: {0}")]
    Load(#[from] LoadError),
    /// A file could not be read or written.
    #[error("{}: {cause}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The gateway did not report its policies.
    #[error("the gateway's admin socket: {0}")]
    Admin(String),
    /// The log does not contain the time that the policies took.
    #[error("{}: expected a line \"policies loaded\" with took_us", .0.display())]
    Log(PathBuf),
    /// The new component did not serve in time.
    #[error("the component did not serve after {} s", RELOAD_TIMEOUT.as_secs())]
    NotServing,
}

/// The figures.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The time of each reload, from the rename of the component's file until it serves.
    pub serving: Vec<Duration>,
    /// Requests without reloads and during them, round by round.
    pub reloads: Vec<Pair>,
    /// Requests alone and beside a guest that loops, round by round.
    pub hostile: Vec<Pair>,
    /// Memory before and after, in bytes, and the reloads in between.
    pub memory: Option<(u64, u64, usize)>,
    /// The times from the start of the process to its readiness, with the policies' code cached.
    pub starts: Vec<Duration>,
    /// The share of the policies and their engine in these times.
    pub policies: Vec<Duration>,
}

/// The times of the same requests without and with a disturbance.
#[derive(Clone, Debug)]
pub struct Pair {
    /// In ascending order.
    pub without: Vec<Duration>,
    /// In ascending order.
    pub with: Vec<Duration>,
}

/// Returns the quantile `part` of the sorted `times`; 1 for the longest.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let place = (times.len() as f64 * part).ceil() as usize;
    times
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl Figures {
    /// Returns the figures as JSON: times in milliseconds, memory in bytes.
    pub fn json(&self) -> Value {
        let times = |times: &[Duration]| times.iter().map(|time| ms(*time)).collect::<Vec<_>>();
        let pairs = |pairs: &[Pair]| {
            let told = |times: &[Duration]| json!({"p99": ms(quantile(times, 0.99)), "max": ms(quantile(times, 1.0))});
            let pair =
                |pair: &Pair| json!({"without": told(&pair.without), "with": told(&pair.with)});
            pairs.iter().map(pair).collect::<Vec<_>>()
        };
        json!({
            "serving_ms": times(&self.serving),
            "starts_ms": times(&self.starts),
            "starts_policies_ms": times(&self.policies),
            "requests_reloads_ms": pairs(&self.reloads),
            "requests_hostile_ms": pairs(&self.hostile),
            "memory": self.memory.map(|(before, after, reloads)| {
                json!({"before": before, "after": after, "reloads": reloads})
            }),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "Policies on a running gateway, ms{:>31}{:>22}",
            "median", "min - max"
        )?;
        let times = |times: &[Duration]| times.iter().map(|time| ms(*time)).collect::<Vec<_>>();
        let serving = Spread::of(&times(&self.serving));
        write_row(
            out,
            "a new component, file change to serving",
            serving,
            Some((RELOAD_AIM_MS, "")),
        )?;
        let starts = Spread::of(&times(&self.starts));
        let policies = Spread::of(&times(&self.policies));
        write_row(out, "start to readiness, all code cached", starts, None)?;
        write_row(
            out,
            "of which policies",
            policies,
            Some((POLICIES_AIM_MS, "")),
        )?;
        let of = |pairs: &[Pair], figure: &dyn Fn(&Pair) -> f64| {
            Spread::of(&pairs.iter().map(figure).collect::<Vec<_>>())
        };
        let p99 = |times: &[Duration]| ms(quantile(times, 0.99));
        write_row(
            out,
            "request, p99, without reloads",
            of(&self.reloads, &|pair| p99(&pair.without)),
            None,
        )?;
        write_row(
            out,
            "request, p99, during reloads",
            of(&self.reloads, &|pair| p99(&pair.with)),
            None,
        )?;
        let ratio = of(&self.reloads, &|pair| p99(&pair.with) / p99(&pair.without));
        write_row(
            out,
            "ratio of the two",
            ratio,
            Some((RELOADS_RATIO_AIM, " x")),
        )?;
        let longest = |times: &[Duration]| ms(quantile(times, 1.0));
        write_row(
            out,
            "longest request, alone",
            of(&self.hostile, &|pair| longest(&pair.without)),
            None,
        )?;
        write_row(
            out,
            "longest request, beside a guest that loops",
            of(&self.hostile, &|pair| longest(&pair.with)),
            None,
        )?;
        let delay = of(&self.hostile, &|pair| {
            longest(&pair.with) - longest(&pair.without)
        });
        write_row(
            out,
            "difference of the two",
            delay,
            Some((HOSTILE_AIM_MS, "")),
        )?;
        if let Some((before, after, reloads)) = self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let each = (after as f64 - before as f64) / 1024.0 / reloads as f64;
            let (before, after) = (mib(before), mib(after));
            writeln!(
                out,
                "  memory before {reloads} reloads {before:.1} MiB, after {after:.1} MiB: {each:.2} KiB each"
            )?;
        }
        Ok(())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Writes a row of the table, with the limit of its median.
fn write_row(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    spread: Spread,
    aim: Option<(f64, &str)>,
) -> fmt::Result {
    let Spread { median, min, max } = spread;
    let range = format!("{min:.2} - {max:.2}");
    write!(out, "  {name:<48}{median:>13.2}{range:>22}")?;
    match aim {
        Some((most, unit)) => {
            let verdict = if median <= most { "met" } else { "missed" };
            writeln!(out, "   limit: {most}{unit}, {verdict}")
        }
        None => writeln!(out),
    }
}

/// Takes every measurement and reports each step to `progress`.
///
/// # Errors
/// The first [`LiveError`].
pub async fn run(
    plan: &Plan,
    settings: &Settings,
    site: &Site,
    folder: &Path,
    progress: &dyn Fn(&str),
) -> Result<Figures, LiveError> {
    let upstream = site.start_upstream(settings).await?;
    let file = folder.join("reloaded.wasm");
    let component_file = file.clone();
    let mut component = Component {
        bytes: read(&plan.components.join(RELOADED))?,
        number: 0,
        file,
    };
    component.replace()?;
    let hostile = plan.components.join(HOSTILE);
    let change = |level: &str, config: &mut Value| {
        configure(config, &component_file, &hostile);
        config["log"]["level"] = json!(level);
    };
    let start = async |level: &str| -> Result<Running, LiveError> {
        Ok(site
            .start_alone(upstream.address, &|config| change(level, config))
            .await?)
    };
    let mut figures = Figures::default();

    progress("starting");
    // Compiles the policies and caches their code.
    drop(start("warn").await?);
    for number in 1..=plan.starts {
        progress(&format!("start {number} of {}", plan.starts));
        let running = start("info").await?;
        figures.starts.push(running.ready_after);
        drop(running);
        figures.policies.push(policies_took(&site.tollgate_log())?);
    }

    let running = start("warn").await?;
    let mut gateway = Gateway {
        admin: site.admin_socket(),
        running,
    };
    let answers = Arc::new(Answers::new(settings.streams));
    let mut clients =
        Clients::connect(gateway.running.address, settings.connections, &answers).await?;
    clients.pace(Shape::Json, PACE, WARM_UP).await?;
    for number in 1..=plan.reloads {
        progress(&format!("reload {number} of {}", plan.reloads));
        figures.serving.push(gateway.reload(&mut component).await?);
        sleep(REST).await;
    }
    for round in 1..=plan.rounds {
        progress(&format!(
            "requests without and during reloads: round {round} of {}",
            plan.rounds
        ));
        let without = clients.pace(Shape::Json, PACE, plan.round).await?;
        let with = tokio::select! {
            times = clients.pace(Shape::Json, PACE, plan.round) => times?,
            failed = gateway.reload_on(&mut component) => return Err(failed),
        };
        figures.reloads.push(Pair { without, with });
    }
    for round in 1..=plan.rounds {
        progress(&format!(
            "requests alone and beside a guest that loops: round {round} of {}",
            plan.rounds
        ));
        let without = clients.pace(Shape::Json, PACE, plan.round).await?;
        let mut others = Clients::connect_as(
            OTHER_TOKEN,
            gateway.running.address,
            HOSTILE_CONNECTIONS,
            &answers,
        )
        .await?;
        let (with, beside) = tokio::join!(
            clients.pace(Shape::Json, PACE, plan.round),
            others.pace(Shape::Json, PACE, plan.round)
        );
        beside?;
        figures.hostile.push(Pair {
            without,
            with: with?,
        });
    }
    drop(clients);
    let before = gateway.running.process.memory_bytes()?;
    for number in 1..=plan.reloads_for_memory {
        if number % 50 == 0 {
            progress(&format!(
                "reload {number} of {}, for what they leave in memory",
                plan.reloads_for_memory
            ));
        }
        gateway.reload(&mut component).await?;
    }
    sleep(settings.idle_settle).await;
    figures.memory = Some((
        before,
        gateway.running.process.memory_bytes()?,
        plan.reloads_for_memory,
    ));
    Ok(figures)
}

/// Returns a configuration with the reloaded pricer, and with a balancer for the second user that
/// always loops.
fn configure(config: &mut Value, reloaded: &Path, hostile: &Path) {
    config["policies"] = json!([
        {"tag": TAG, "kind": "pricer", "path": reloaded},
        {"tag": "hostile", "kind": "balancer", "path": hostile, "config": {"fault": "loop"}},
    ]);
    // The circuit breaker stays closed, so that every call loops.
    config["limits"]["policy_faults"] = json!(1000);
    config["limits"]["policy_fault_window"] = json!("1s");
    let service = &mut config["services"][0];
    service["pricer"] = json!(TAG);
    service["users"][1]["credential"] = json!("hostile-pool");
    if let Some(credentials) = service["credentials"].as_array_mut() {
        let pool = json!({"tag": "hostile-pool", "type": "balancer", "strategy": "hostile", "credentials": ["a", "b"]});
        credentials.push(pool);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LiveError> {
    fs::read(path).map_err(|cause| LiveError::File {
        path: path.to_owned(),
        cause,
    })
}

/// Returns the time that the policies took in the last start in this log.
fn policies_took(log: &Path) -> Result<Duration, LiveError> {
    let text = String::from_utf8_lossy(&read(log)?).into_owned();
    let took = text.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        if line["message"] == "policies loaded" {
            line["took_us"].as_u64()
        } else {
            None
        }
    });
    took.map(Duration::from_micros)
        .ok_or_else(|| LiveError::Log(log.to_owned()))
}

/// A component whose bytes differ each time.
struct Component {
    bytes: Vec<u8>,
    number: u64,
    file: PathBuf,
}

impl Component {
    /// Replaces the file with the next version, atomically. Returns when.
    fn replace(&mut self) -> Result<Instant, LiveError> {
        self.number += 1;
        let next = self.file.with_extension("next");
        let section = custom_section(&self.number.to_le_bytes());
        fs::write(&next, [self.bytes.as_slice(), &section].concat())
            .and_then(|()| {
                let begun = Instant::now();
                fs::rename(&next, &self.file).map(|()| begun)
            })
            .map_err(|cause| LiveError::File {
                path: self.file.clone(),
                cause,
            })
    }
}

/// Returns a custom section (component model, binary format): no engine reads it, but it changes
/// the digest.
fn custom_section(payload: &[u8; 8]) -> Vec<u8> {
    const NAME: &[u8] = b"bench";
    let length = (1 + NAME.len() + payload.len()) as u8;
    [&[0, length, NAME.len() as u8], NAME, payload].concat()
}

/// A running gateway and its admin socket.
struct Gateway {
    admin: PathBuf,
    running: Running,
}

impl Gateway {
    /// Replaces the component's file. Returns how long it took until it served.
    async fn reload(&mut self, component: &mut Component) -> Result<Duration, LiveError> {
        let before = self.generation().await?;
        let begun = component.replace()?;
        while self.generation().await? == before {
            if begun.elapsed() > RELOAD_TIMEOUT {
                return Err(LiveError::NotServing);
            }
            sleep(ASK_EVERY).await;
        }
        Ok(begun.elapsed())
    }

    /// Reloads repeatedly. Returns when a reload fails.
    async fn reload_on(&mut self, component: &mut Component) -> LiveError {
        loop {
            if let Err(error) = self.reload(component).await {
                return error;
            }
        }
    }

    /// Returns the generation of the component.
    async fn generation(&self) -> Result<u64, LiveError> {
        let failed = |what: &dyn ToString| LiveError::Admin(what.to_string());
        let mut stream = UnixStream::connect(&self.admin)
            .await
            .map_err(|error| failed(&error))?;
        let request = b"GET /api/policies HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        stream
            .write_all(request)
            .await
            .map_err(|error| failed(&error))?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .await
            .map_err(|error| failed(&error))?;
        let answer = String::from_utf8_lossy(&answer);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let policies: Value = serde_json::from_str(body).map_err(|error| failed(&error))?;
        let policies = policies["policies"]
            .as_array()
            .or_else(|| policies.as_array());
        policies
            .and_then(|policies| {
                policies.iter().find(|policy| policy["tag"] == TAG)?["generation"].as_u64()
            })
            .ok_or_else(|| failed(&"no generation of the component"))
    }
}
