//! Policies on a running gateway: how long a reload takes, how much it delays requests, what it
//! leaves in memory, how long a start with policies takes, and how much a hostile guest delays the
//! requests of others.
//!
//! Only Tollgate is measured here, with its default number of threads, and compared with itself
//! without the disturbance. Each reload loads new bytes, so that each compiles.

use std::{
    fs, io,
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
    report::figures::{Figures, Pair},
    settings::{LivePlan, Settings},
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

/// The components; each is a file in [`LivePlan::components`].
const RELOADED: &str = "openai_pricing.wasm";
const HOSTILE: &str = "faulty_balancer.wasm";

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// A process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The process could not be measured.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A request of the load failed.
    #[error("requests: {0}")]
    Load(#[from] LoadError),
    /// A file could not be read or written.
    #[error("{}: {cause}", .path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
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

/// Takes every measurement and reports each step to `progress`.
///
/// # Errors
/// The first [`LiveError`].
pub async fn run(
    plan: &LivePlan,
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

    let gateway = Gateway {
        admin: site.admin_socket(),
        running: start("warn").await?,
    };
    let mut measured = Measured {
        plan,
        settings,
        progress,
        gateway,
        component,
        figures,
    };
    measured.time_requests().await?;
    measured.measure_memory().await?;
    Ok(measured.figures)
}

/// A running gateway, and the figures so far.
struct Measured<'a> {
    plan: &'a LivePlan,
    settings: &'a Settings,
    progress: &'a dyn Fn(&str),
    gateway: Gateway,
    component: Component,
    figures: Figures,
}

impl Measured<'_> {
    /// Times reloads and requests, without a disturbance and with each.
    async fn time_requests(&mut self) -> Result<(), LiveError> {
        let answers = Arc::new(Answers::new(self.settings.streams));
        let address = self.gateway.running.address;
        let mut clients = Clients::connect(address, self.settings.connections, &answers).await?;
        clients.pace(Shape::Json, PACE, WARM_UP).await?;
        self.time_reloads().await?;
        self.time_during_reloads(&mut clients).await?;
        self.time_beside_hostile(&mut clients, &answers).await
    }

    async fn time_reloads(&mut self) -> Result<(), LiveError> {
        for number in 1..=self.plan.reloads {
            (self.progress)(&format!("reload {number} of {}", self.plan.reloads));
            let took = self.gateway.reload(&mut self.component).await?;
            self.figures.serving.push(took);
            sleep(REST).await;
        }
        Ok(())
    }

    async fn time_during_reloads(&mut self, clients: &mut Clients) -> Result<(), LiveError> {
        let (rounds, time) = (self.plan.rounds, self.plan.round);
        for round in 1..=rounds {
            (self.progress)(&format!(
                "requests without and during reloads: round {round} of {rounds}"
            ));
            let without = clients.pace(Shape::Json, PACE, time).await?;
            let with = tokio::select! {
                times = clients.pace(Shape::Json, PACE, time) => times?,
                failed = self.gateway.reload_on(&mut self.component) => return Err(failed),
            };
            self.figures.reloads.push(Pair { without, with });
        }
        Ok(())
    }

    async fn time_beside_hostile(
        &mut self,
        clients: &mut Clients,
        answers: &Arc<Answers>,
    ) -> Result<(), LiveError> {
        let (rounds, time) = (self.plan.rounds, self.plan.round);
        let address = self.gateway.running.address;
        for round in 1..=rounds {
            (self.progress)(&format!(
                "requests alone and beside a guest that loops: round {round} of {rounds}"
            ));
            let without = clients.pace(Shape::Json, PACE, time).await?;
            let mut others =
                Clients::connect_as(OTHER_TOKEN, address, HOSTILE_CONNECTIONS, answers).await?;
            let (with, beside) = tokio::join!(
                clients.pace(Shape::Json, PACE, time),
                others.pace(Shape::Json, PACE, time)
            );
            beside?;
            self.figures.hostile.push(Pair {
                without,
                with: with?,
            });
        }
        Ok(())
    }

    /// Measures the memory before and after many reloads, while no client is connected.
    async fn measure_memory(&mut self) -> Result<(), LiveError> {
        let before = self.gateway.running.process.memory_bytes()?;
        let reloads = self.plan.reloads_for_memory;
        for number in 1..=reloads {
            if number % 50 == 0 {
                (self.progress)(&format!(
                    "reload {number} of {reloads}, for what they leave in memory"
                ));
            }
            self.gateway.reload(&mut self.component).await?;
        }
        sleep(self.settings.idle_settle).await;
        let after = self.gateway.running.process.memory_bytes()?;
        self.figures.memory = Some((before, after, reloads));
        Ok(())
    }
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
