//! Policies on a running gateway: what a reload takes, what it costs those who are served meanwhile, what it leaves in
//! memory, what a start with policies takes, and what a hostile guest costs everybody else.
//!
//! Tollgate alone is measured here, with its own number of threads: there is nobody to compare it with but itself without
//! what is measured. Each reload brings bytes that were never there before, so that each compiles.

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

/// How often the gateway is asked whether a generation serves: so seldom that asking takes nothing from compiling.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// A reload that takes longer failed.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two reloads whose times are taken.
const REST: Duration = Duration::from_millis(50);
/// How often each connection asks while the times of requests are taken: far from what the machine can do.
const PACE: Duration = Duration::from_millis(10);
/// The connections whose every request makes a guest loop.
const HOSTILE_CONNECTIONS: usize = 2;
/// What a gateway does in its first second is not measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// The gateway's name for the component that is reloaded.
const TAG: &str = "bench-prices";

/// Which components are used; each is a file of [`Plan::components`].
const RELOADED: &str = "openai_pricing.wasm";
const HOSTILE: &str = "faulty_balancer.wasm";

/// What is measured, how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The folder with the components.
    pub components: PathBuf,
    /// Reloads whose time is taken, one at a time.
    pub reloads: usize,
    /// Reloads between the two looks at the memory.
    pub reloads_for_memory: usize,
    /// Interleaved rounds of requests without and with what disturbs them.
    pub rounds: usize,
    /// What one such measurement takes.
    pub round: Duration,
    /// Starts whose time is taken.
    pub starts: usize,
}

/// What a reload should take at most, in milliseconds.
const RELOAD_AIM_MS: f64 = 150.0;
/// What a start with cached policies should take at most beyond one without, in milliseconds.
const POLICIES_AIM_MS: f64 = 15.0;
/// How many times longer a request should take at most during reloads (p99).
const RELOADS_RATIO_AIM: f64 = 1.5;
/// How much longer a request should take at most beside a guest that loops, in milliseconds.
const HOSTILE_AIM_MS: f64 = 10.0;

impl Plan {
    /// With the components in this folder, so many reloads whose time is taken, five times as many for what they leave in
    /// memory, and so many rounds.
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
    /// Something could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The process could not be measured.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Requests did not go through.
    #[error("requests: {0}")]
    Load(#[from] LoadError),
    /// A file could not be read or written.
    #[error("{}: {cause}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The gateway did not tell of its policies.
    #[error("the gateway's admin socket: {0}")]
    Admin(String),
    /// The log does not say what the policies took.
    #[error("{}: expected a line \"policies loaded\" with took_us", .0.display())]
    Log(PathBuf),
    /// What was put in the component's place did not serve in time.
    #[error("the component did not serve after {} s", RELOAD_TIMEOUT.as_secs())]
    NotServing,
}

/// The figures.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From the rename of a component's file to its serving, each reload's.
    pub serving: Vec<Duration>,
    /// Requests without reloads and during them, round by round.
    pub reloads: Vec<Pair>,
    /// Requests beside nobody and beside a guest that loops, round by round.
    pub hostile: Vec<Pair>,
    /// Memory before and after, in bytes, and the reloads in between.
    pub memory: Option<(u64, u64, usize)>,
    /// From the start of the process to its readiness, with the policies' code cached.
    pub starts: Vec<Duration>,
    /// What the policies, and the engine that runs them, took of it.
    pub policies: Vec<Duration>,
}

/// The times of the same requests without and with what disturbs them.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Sorted.
    pub without: Vec<Duration>,
    /// Sorted.
    pub with: Vec<Duration>,
}

/// The time that this part of the sorted `times` does not exceed: 1 for the longest.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let place = (times.len() as f64 * part).ceil() as usize;
    times
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl Figures {
    /// The same for programs: times in milliseconds, memory in bytes.
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
            "the policies' part of it",
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
            "the one to the other, times",
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
            "the one less the other",
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

/// A row of the table, with what its median should be at most.
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
            writeln!(out, "   aim: at most {most}{unit}, {verdict}")
        }
        None => writeln!(out),
    }
}

/// Takes every measurement. `progress` is told what is being done.
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
    // Compiles, and keeps what it compiled.
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

/// The pricer is the one that is reloaded, and the other user's pool has a balancer that loops for each of its requests.
fn configure(config: &mut Value, reloaded: &Path, hostile: &Path) {
    config["policies"] = json!([
        {"tag": TAG, "kind": "pricer", "path": reloaded},
        {"tag": "hostile", "kind": "balancer", "path": hostile, "config": {"fault": "loop"}},
    ]);
    // It is not put into quarantine, and loops on and on.
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

/// What the policies took in the last start that wrote this log.
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

/// A component that is another each time.
struct Component {
    bytes: Vec<u8>,
    number: u64,
    file: PathBuf,
}

impl Component {
    /// Puts the next one in the file's place, at once. Answers when.
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

/// A custom section with this in it (component model, binary format): no engine reads it, and the digest is another.
fn custom_section(payload: &[u8; 8]) -> Vec<u8> {
    const NAME: &[u8] = b"bench";
    let length = (1 + NAME.len() + payload.len()) as u8;
    [&[0, length, NAME.len() as u8], NAME, payload].concat()
}

/// A gateway that runs, and where it is asked of itself.
struct Gateway {
    admin: PathBuf,
    running: Running,
}

impl Gateway {
    /// Replaces the component's file; answers after how long it served.
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

    /// Reloads again and again. Answers when it fails.
    async fn reload_on(&mut self, component: &mut Component) -> LiveError {
        loop {
            if let Err(error) = self.reload(component).await {
                return error;
            }
        }
    }

    /// The component's generation.
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
