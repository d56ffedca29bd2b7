//! Reloads: policies, and everything else of a configuration, on the running gateway.
//!
//! Owns the one task that changes what requests find; refuses to know what happens to a request. Invariant: a change is
//! made of what was loaded, read and tried beforehand, and it is made at once. What fails on the way leaves everything as
//! it was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, sleep_until};

use super::StartError;
use super::build::{Pending, World, assemble, certificates, read_credentials, refuse_if_any};
use super::keep::{Keeping, Kept};
use super::policies::{Entry, LastReload, Policies, Progress, Workshop};
use super::views::{self, ViewOf};
use crate::config::{Config, PolicyConfig, PolicySource, ServiceConfig};
use crate::credentials::Credential;
use crate::pipeline::Service;
use crate::policy::{LoadError, Policy, Rules, Shadow, Source, Urgency};
use crate::tls::Tls;
use crate::values::limits::Limits;
use crate::values::phase::Phase;
use crate::watch::Watch;

/// A component that cannot be used is looked at so often, and so far apart, before that is told: somebody may be writing
/// it. As long as it changes, it is being written.
const SETTLE_LOOKS: u32 = 4;
const SETTLE: Duration = Duration::from_millis(150);

/// A component that is written for longer than this is not waited for.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Loads that take longer are told of so often.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// Commands that wait.
const COMMANDS: usize = 64;

/// What came of a command, in words.
pub(super) type Reply = oneshot::Sender<Result<String, String>>;

/// What an operator, or a file, asks for.
pub(super) enum Command {
    /// A policy's file is to be loaded again.
    Reload { tag: String, reply: Reply },
    /// A policy is to go back to the generation before.
    RollBack { tag: String, reply: Reply },
    /// A policy's file may have changed.
    FileChanged { tag: String },
    /// The file of its shadow may have.
    ShadowChanged { tag: String },
    /// A configuration is to be taken up.
    Configure { config: Box<Config>, reply: Reply },
}

/// What operators look at.
pub(super) struct Board {
    /// Not held: a gateway has ended when nothing holds a service any more.
    pub(super) services: RwLock<Vec<Weak<Service>>>,
    pub(super) policies: Mutex<Policies>,
    pub(super) world: BoardWorld,
    /// What came of the last change of the configuration.
    pub(super) configured: Mutex<Configured>,
}

/// What the board shows besides.
pub(super) struct BoardWorld {
    pub(super) ledger: Weak<crate::ledger::Ledger>,
    pub(super) metrics: Arc<crate::metrics::Metrics>,
    pub(super) phases: watch::Receiver<Phase>,
}

/// What came of changes of the configuration.
#[derive(Debug, Default, Clone)]
pub(super) struct Configured {
    pub(super) taken_up: u64,
    pub(super) refused: u64,
    pub(super) last: Option<LastReload>,
}

impl Board {
    pub(super) fn policies(&self) -> std::sync::MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn refuse_configuration(&self, reason: &str) {
        tracing::error!(reason, "the configuration is not taken up; the one before it goes on");
        let mut configured = self.configured();
        configured.refused += 1;
        let (serves, reason) = (configured.taken_up, Some(reason.to_owned()));
        configured.last = Some(LastReload::now("failed", serves, reason, Duration::ZERO));
    }

    pub(super) fn configured(&self) -> std::sync::MutexGuard<'_, Configured> {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A service that is listened for.
pub(super) struct Served {
    pub(super) config: ServiceConfig,
    pub(super) live: watch::Sender<Arc<Service>>,
    pub(super) tls: watch::Sender<Option<Tls>>,
    pub(super) kept: Vec<Kept>,
    /// The configuration has it no more. It goes on as it was until the gateway is started anew.
    pub(super) gone: bool,
}

/// What cannot change while the gateway runs, as it was when it started.
pub(super) struct Fixed {
    pub(super) data_dir: std::path::PathBuf,
    pub(super) log: crate::config::LogConfig,
    pub(super) admin: Option<crate::config::AdminConfig>,
}

/// The one who changes things.
pub(super) struct Supervisor {
    pub(super) board: Arc<Board>,
    pub(super) world: World,
    pub(super) workshop: Workshop,
    pub(super) served: Vec<Served>,
    pub(super) keeping: Keeping,
    pub(super) watch: Watch,
    pub(super) views: std::sync::mpsc::Sender<Vec<ViewOf>>,
    pub(super) fixed: Fixed,
    pub(super) limits: Arc<Limits>,
    pub(super) commands: mpsc::Sender<Command>,
    /// Who is told when a policy's file changes. Dropping one ends its watching.
    pub(super) watched: HashMap<String, Watched>,
    pub(super) works: JoinSet<Work>,
    /// Policies whose file may have changed while it was being loaded.
    pub(super) again: Vec<String>,
}

/// The files of a policy that are watched.
pub(super) struct Watched {
    policy: PolicyConfig,
    _tasks: Vec<Abort>,
}

/// A task that ends with whoever holds this.
struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What was done beside the supervisor, and is over.
pub(super) enum Work {
    Loaded { tag: String, of: PolicyConfig, begun: Instant, loaded: Result<Found, LoadError>, reply: Option<Reply> },
    Shadow { tag: String, loaded: Result<Option<Arc<Shadow>>, LoadError> },
    Staged { config: Box<Config>, staged: Result<Staged, StartError>, begun: Instant, reply: Reply },
}

/// What was found in a policy's file.
pub(super) enum Found {
    /// What is known already.
    Same,
    New(Policy),
}

/// A configuration, with everything that it names loaded.
pub(super) struct Staged {
    workshop: Workshop,
    /// In its order: what is new, or none where what serves goes on.
    policies: Vec<Option<Entry>>,
    /// By the services' tags.
    services: HashMap<String, (Vec<Arc<Credential>>, Option<Tls>)>,
}

/// The queue of commands.
pub(super) fn commands() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS)
}

impl Supervisor {
    /// Changes what is asked for, until the gateway stops.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, pending: Vec<Pending>) {
        for Pending { tag, loaded } in pending {
            let of = self.board.policies().named(&tag).map(|entry| entry.config.clone());
            let Some(of) = of else { continue };
            self.works.spawn(async move {
                let reason = || "loading it panicked".to_owned();
                let panicked = |_| LoadError::Component { tag: tag.clone(), stage: "load it", reason: reason() };
                let loaded = loaded.await.map_err(panicked).and_then(|loaded| loaded).map(Found::New);
                Work::Loaded { tag, of, begun: Instant::now(), loaded, reply: None }
            });
        }
        self.watch_files();
        let mut phases = self.world.phases.clone();
        let trouble = Arc::clone(&self.workshop.trouble);
        let mut told = Instant::now();
        loop {
            let wake = self.wake_at();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                Some(work) = self.works.join_next() => match work {
                    Ok(work) => self.over(work),
                    Err(error) => tracing::error!(%error, "a reload panicked"),
                },
                () = trouble.notified() => self.look_after(),
                () = sleep_until(wake.into()) => {
                    self.look_after();
                    if told.elapsed() >= TELL_AGAIN {
                        told = Instant::now();
                        self.tell_progress();
                    }
                }
                _ = phases.wait_for(|phase| *phase != Phase::Serving) => return,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Reload { tag, reply } => self.load(&tag, Some(reply)),
            Command::FileChanged { tag } => self.load(&tag, None),
            Command::RollBack { tag, reply } => {
                let done = match self.board.policies().named(&tag) {
                    Some(entry) => entry.roll_back().map(|()| format!("generation {} serves", entry.generation())),
                    None => Err(unknown(&tag)),
                };
                if let Ok(done) = &done {
                    tracing::info!(policy = tag, done, "policy rolled back");
                    self.publish();
                }
                let _ = reply.send(done);
            }
            Command::ShadowChanged { tag } => {
                let Some(policy) = self.board.policies().named(&tag).map(|entry| entry.config.clone()) else { return };
                let workshop = self.workshop.clone();
                if self.board.policies().named(&tag).is_some_and(|entry| shadow_is_known(&policy, &entry.slot)) {
                    return;
                }
                self.works.spawn(async move {
                    sleep(SETTLE).await;
                    let loading = spawn_blocking(move || workshop.shadow(&policy)).await;
                    let loaded = loading.unwrap_or_else(|error| Err(panicked(&tag, &error)));
                    Work::Shadow { tag, loaded }
                });
            }
            Command::Configure { config, reply } => self.stage(config, reply),
        }
    }

    /// Loads a policy's file, beside whoever is served. With nobody who waits for it, only where it changed.
    fn load(&mut self, tag: &str, reply: Option<Reply>) {
        let mut policies = self.board.policies();
        let Some(entry) = policies.named(tag) else {
            drop(policies);
            return answer(reply, Err(unknown(tag)));
        };
        if entry.progress.is_some() {
            match reply {
                Some(_) => answer(reply, Err("it is being loaded already".to_owned())),
                None => self.again.push(tag.to_owned()),
            }
            return;
        }
        let progress = Progress::new();
        entry.progress = Some(progress.clone());
        let (policy, slot, number) = (entry.config.clone(), Arc::clone(&entry.slot), entry.numbered + 1);
        let known = (entry.generation() > 0 && reply.is_none()).then(|| entry.current.stamp().digest.clone());
        drop(policies);
        let (tag, workshop) = (tag.to_owned(), self.workshop.clone());
        self.works.spawn(async move {
            let begun = Instant::now();
            let load = {
                let policy = policy.clone();
                move |source: &Source| workshop.load(&policy, source, &slot, number, Urgency::BesideService, &progress)
            };
            let loaded = settled(&policy, known, load).await;
            Work::Loaded { tag, of: policy, begun, loaded, reply }
        });
    }

    fn over(&mut self, work: Work) {
        match work {
            Work::Loaded { tag, of, begun, loaded, reply } => self.loaded(&tag, &of, begun.elapsed(), loaded, reply),
            Work::Shadow { tag, loaded } => match loaded {
                Ok(shadow) => {
                    if let Some(entry) = self.board.policies().named(&tag) {
                        entry.slot.set_shadow(shadow);
                    }
                    tracing::info!(policy = tag, "shadow reloaded");
                }
                Err(error) => tracing::error!(policy = tag, %error, "its shadow goes on as it was"),
            },
            Work::Staged { config, staged, begun, reply } => {
                let done = staged.map_err(|error| error.to_string()).map(|staged| self.take_up(*config, staged));
                self.note_configured(&done, begun.elapsed());
                let _ = reply.send(done);
            }
        }
    }

    fn loaded(
        &mut self,
        tag: &str,
        of: &PolicyConfig,
        took: Duration,
        loaded: Result<Found, LoadError>,
        reply: Option<Reply>,
    ) {
        let mut policies = self.board.policies();
        let Some(entry) = policies.named(tag).filter(|entry| entry.config.is_like(of)) else {
            drop(policies);
            return answer(reply, Err("its configuration changed meanwhile".to_owned()));
        };
        entry.progress = None;
        let done = match loaded {
            Ok(Found::Same) => None,
            Ok(Found::New(policy)) => {
                entry.numbered = policy.conduct().generation;
                entry.take_in(policy, took);
                let stamp = entry.current.stamp();
                let (generation, took_ms) = (entry.generation(), took.as_millis() as u64);
                tracing::info!(
                    policy = tag,
                    generation,
                    name = stamp.name,
                    version = stamp.version,
                    digest = stamp.digest,
                    took_ms,
                    "policy reloaded"
                );
                Some(Ok(format!(
                    "generation {generation} serves: {} {}, after {took_ms} ms",
                    stamp.name, stamp.version
                )))
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(policy = tag, error = reason, serves = entry.generation(), "policy not reloaded");
                entry.failed(reason.clone(), took);
                Some(Err(reason))
            }
        };
        let absent = (entry.generation() == 0).then(|| {
            // What requests are told, from now on.
            let reason = entry.last.as_ref().and_then(|last| last.reason.clone()).unwrap_or_default();
            entry.current =
                Policy::absent(&entry.config, &entry.slot, format!("its component cannot be used: {reason}"));
        });
        drop(policies);
        if matches!(done, Some(Ok(_))) || absent.is_some() {
            self.publish();
        }
        if let Some(done) = done {
            answer(reply, done);
        } else {
            answer(reply, Ok("its file is what serves already".to_owned()));
        }
        if let Some(place) = self.again.iter().position(|again| again == tag) {
            self.again.swap_remove(place);
            self.load(tag, None);
        }
    }

    /// Takes back what failed too often, and tries it again when it is time.
    fn look_after(&mut self) {
        let rules = Rules::of(&self.limits);
        let now = Instant::now();
        let mut changed = false;
        for entry in &mut self.board.policies().entries {
            if entry.take_back(rules, now) {
                changed = true;
                let (policy, serves) = (&entry.config.tag, entry.generation());
                tracing::error!(policy, serves, "a generation failed too often: the one before it serves");
            } else if entry.try_again(now) {
                changed = true;
                let (policy, serves) = (&entry.config.tag, entry.generation());
                tracing::warn!(policy, serves, "a generation that failed too often is tried again");
            }
        }
        if changed {
            self.publish();
        }
    }

    /// When there is something to look after, at the latest.
    fn wake_at(&self) -> Instant {
        let policies = self.board.policies();
        let benched = policies.entries.iter().filter_map(|entry| entry.benched.as_ref().map(|benched| benched.until));
        benched.fold(Instant::now() + TELL_AGAIN, Instant::min)
    }

    fn tell_progress(&self) {
        for entry in &self.board.policies().entries {
            if let Some((stage, since)) = entry.progress.as_ref().map(Progress::told)
                && since >= TELL_AGAIN
            {
                tracing::info!(policy = entry.config.tag, stage, seconds = since.as_secs(), "policy is being loaded");
            }
        }
    }

    /// Requests find what serves now.
    fn publish(&self) {
        let policies = self.board.policies();
        let mut services = Vec::new();
        for served in &self.served {
            let before = Arc::clone(&served.live.borrow());
            if served.gone {
                services.push(Arc::downgrade(&before));
                continue;
            }
            let credentials = before.credentials().to_vec();
            let service =
                Arc::new(assemble(&self.world, &served.config, &policies, &self.limits, credentials, Some(&before)));
            services.push(Arc::downgrade(&service));
            served.live.send_replace(service);
        }
        *self.board.services.write().unwrap_or_else(PoisonError::into_inner) = services;
    }

    /// Loads everything that is new in `config`.
    fn stage(&mut self, config: Box<Config>, reply: Reply) {
        let begun = Instant::now();
        let limits = Arc::new(config.limits.clone());
        let workshop = self.workshop.with_limits(&limits);
        let policies = self.board.policies();
        let known: Vec<Known> = config
            .policies
            .iter()
            .map(|policy| {
                let entry = policies.entries.iter().find(|entry| entry.config.tag == policy.tag);
                match entry {
                    Some(entry) if entry.config.is_like(policy) => Known::Same,
                    // The same place, with what was counted there and what its calls go to.
                    Some(entry) if goes_on_in_its_slot(&entry.config, policy) => {
                        Known::Changed { slot: Arc::clone(&entry.slot), number: entry.numbered + 1 }
                    }
                    _ => Known::New,
                }
            })
            .collect();
        drop(policies);
        let credentials: HashMap<String, Vec<Arc<Credential>>> = self
            .served
            .iter()
            .map(|served| (served.config.tag.clone(), served.live.borrow().credentials().to_vec()))
            .collect();
        self.works.spawn(async move {
            let staging = spawn_blocking(move || {
                let staged = stage(&config, workshop, known, &credentials);
                (config, staged)
            });
            match staging.await {
                Ok((config, staged)) => Work::Staged { config, staged, begun, reply },
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
    }

    /// Everything is there: it serves from now on. Answers what was left as it was.
    fn take_up(&mut self, config: Config, staged: Staged) -> String {
        let left = self.left(&config);
        self.workshop = staged.workshop;
        let limits = Arc::new(config.limits.clone());
        let anew = *limits != *self.limits;
        let mut before = std::mem::take(&mut self.board.policies().entries);
        let mut entries = Vec::new();
        for (policy, new) in config.policies.iter().zip(staged.policies) {
            let place = before.iter().position(|entry| entry.config.tag == policy.tag);
            let known = place.map(|place| before.swap_remove(place));
            entries.push(match (known, new) {
                (Some(mut known), Some(new)) if Arc::ptr_eq(&known.slot, &new.slot) => {
                    known.config = policy.clone();
                    known.progress = None;
                    known.numbered = new.numbered;
                    known.take_in(new.current, Duration::ZERO);
                    known
                }
                (Some(mut known), None) => {
                    known.config = policy.clone();
                    known
                }
                (_, Some(new)) => new,
                (None, None) => unreachable!("what is not known was loaded"),
            });
        }
        self.board.policies().entries = entries;
        self.limits = limits;
        self.keeping.limits = Arc::clone(&self.limits);
        let policies = self.board.policies();
        let mut staged = staged.services;
        let mut services = Vec::new();
        for served in &mut self.served {
            let before = Arc::clone(&served.live.borrow());
            let found = config.services.iter().find(|service| service.tag == served.config.tag);
            let credentials = match (found, staged.remove(&served.config.tag)) {
                (Some(found), Some((credentials, tls))) => {
                    let listen = served.config.listen;
                    served.config = ServiceConfig { listen, ..found.clone() };
                    served.tls.send_replace(tls);
                    credentials
                }
                _ => {
                    served.gone = true;
                    services.push(Arc::downgrade(&before));
                    continue;
                }
            };
            served.gone = false;
            for (credential, config) in credentials.iter().zip(&served.config.credentials) {
                credential.change_terms(config);
            }
            let service =
                Arc::new(assemble(&self.world, &served.config, &policies, &self.limits, credentials, Some(&before)));
            services.push(Arc::downgrade(&service));
            let elsewhere = before.endpoints() != service.endpoints();
            served.kept = self.keeping.keep(&service, std::mem::take(&mut served.kept), anew || elsewhere);
            served.live.send_replace(service);
        }
        drop(policies);
        *self.board.services.write().unwrap_or_else(PoisonError::into_inner) = services;
        // The thread that writes them ends with the gateway alone.
        let _ = self.views.send(views::wanted(&config.services));
        self.watch_files();
        if left.is_empty() {
            "the configuration is taken up".to_owned()
        } else {
            format!("the configuration is taken up, but for what needs a start: {}", left.join(", "))
        }
    }

    fn note_configured(&self, done: &Result<String, String>, took: Duration) {
        match done {
            Err(reason) => self.board.refuse_configuration(reason),
            Ok(done) => {
                let mut configured = self.board.configured();
                configured.taken_up += 1;
                tracing::info!(took_ms = took.as_millis() as u64, "{done}");
                configured.last = Some(LastReload::now("ok", configured.taken_up, None, took));
            }
        }
    }

    /// What of `config` cannot change while the gateway runs.
    fn left(&self, config: &Config) -> Vec<String> {
        let mut left = Vec::new();
        let mut differs = |name: &str, differs: bool| {
            if differs {
                left.push(name.to_owned());
            }
        };
        differs("data_dir", config.data_dir != self.fixed.data_dir);
        differs("log", config.log != self.fixed.log);
        differs("admin", config.admin != self.fixed.admin);
        for (place, service) in config.services.iter().enumerate() {
            match self.served.iter().find(|served| served.config.tag == service.tag) {
                None => differs(&format!("services[{place}] (a new one)"), true),
                Some(served) => {
                    differs(&format!("services[{place}].listen"), served.config.listen != service.listen);
                }
            }
        }
        for served in &self.served {
            let gone = !config.services.iter().any(|service| service.tag == served.config.tag);
            differs(&format!("service {:?} (one that goes)", served.config.tag), gone);
        }
        let (old, new) = (&*self.limits, &config.limits);
        differs("limits.connections", old.connections != new.connections);
        differs("limits.settle_queue", old.settle_queue != new.settle_queue);
        differs("limits.ledger_bytes", old.ledger_bytes != new.ledger_bytes);
        differs("limits.ledger_full", old.ledger_full != new.ledger_full);
        differs("limits.sessions", old.sessions != new.sessions);
        differs("limits.session_lifetime", old.session_lifetime != new.session_lifetime);
        differs("limits.auth_addresses", old.auth_addresses != new.auth_addresses);
        differs("limits.policy_threads", old.policy_threads != new.policy_threads);
        differs("limits.policy_queue", old.policy_queue != new.policy_queue);
        differs("limits.policy_cache_bytes", old.policy_cache_bytes != new.policy_cache_bytes);
        left
    }

    /// Watches the files of the policies that there are now.
    fn watch_files(&mut self) {
        let policies: Vec<PolicyConfig> =
            self.board.policies().entries.iter().map(|entry| entry.config.clone()).collect();
        self.watched
            .retain(|tag, watched| policies.iter().any(|policy| policy.tag == *tag && policy.is_like(&watched.policy)));
        for policy in policies {
            if self.watched.contains_key(&policy.tag) {
                continue;
            }
            let mut tasks = Vec::new();
            if let PolicySource::File(path) = &policy.source {
                let tag = policy.tag.clone();
                tasks.push(self.watch_file(path, move || Command::FileChanged { tag: tag.clone() }));
            }
            if let Some(path) = &policy.shadow {
                let tag = policy.tag.clone();
                tasks.push(self.watch_file(path, move || Command::ShadowChanged { tag: tag.clone() }));
            }
            self.watched.insert(policy.tag.clone(), Watched { policy, _tasks: tasks });
        }
    }

    fn watch_file(&self, path: &std::path::Path, told: impl Fn() -> Command + Send + 'static) -> Abort {
        let changed = Arc::new(Notify::new());
        self.watch.file(path, &changed);
        let commands = self.commands.downgrade();
        let watching = tokio::spawn(async move {
            loop {
                changed.notified().await;
                let Some(commands) = commands.upgrade() else { return };
                if commands.send(told()).await.is_err() {
                    return;
                }
            }
        });
        Abort(watching.abort_handle())
    }
}

/// Whether the shadow that is configured is the one that runs.
fn shadow_is_known(policy: &PolicyConfig, slot: &crate::policy::Slot) -> bool {
    let Some(path) = &policy.shadow else { return true };
    let of_file = PolicyConfig { source: PolicySource::File(path.clone()), ..policy.clone() };
    let known = slot.shadow().map(|shadow| shadow.status().digest);
    Source::read(&of_file).ok().map(|source| source.digest()) == known
}

/// What is known of a policy of a new configuration.
enum Known {
    /// It is as it was.
    Same,
    /// It serves in the same place, otherwise.
    Changed {
        slot: Arc<crate::policy::Slot>,
        number: u64,
    },
    New,
}

/// Whether a policy's place can stay, though what serves there changes.
fn goes_on_in_its_slot(old: &PolicyConfig, new: &PolicyConfig) -> bool {
    old.kind == new.kind && old.record == new.record && old.shadow == new.shadow
}

/// Loads and reads what a configuration names anew. Blocks.
fn stage(
    config: &Config,
    workshop: Workshop,
    known: Vec<Known>,
    credentials: &HashMap<String, Vec<Arc<Credential>>>,
) -> Result<Staged, StartError> {
    let mut problems = Vec::new();
    let mut policies = Vec::new();
    for (policy, known) in config.policies.iter().zip(known) {
        let loaded = match known {
            Known::Same => Ok(None),
            Known::Changed { slot, number } => load_new(&workshop, policy, &slot, number).map(Some),
            Known::New => workshop.slot(policy).and_then(|slot| load_new(&workshop, policy, &slot, 1)).map(Some),
        };
        match loaded {
            Ok(loaded) => policies.push(loaded),
            Err(error) => problems.extend(error.problems(policy)),
        }
    }
    let mut services = HashMap::new();
    let mut collect = |found: Result<(), StartError>| match found {
        Err(StartError::Config(error)) => {
            problems.extend(error.problems);
            Ok(())
        }
        other => other,
    };
    let mut tls = Vec::new();
    collect(certificates(config).map(|found| tls = found))?;
    for (service, tls) in config.services.iter().zip(tls) {
        let known = credentials.get(&service.tag).map_or(&[][..], Vec::as_slice);
        collect(read_credentials(service, known).map(|credentials| {
            services.insert(service.tag.clone(), (credentials, tls));
        }))?;
    }
    refuse_if_any(problems)?;
    Ok(Staged { workshop, policies, services })
}

fn load_new(
    workshop: &Workshop,
    policy: &PolicyConfig,
    slot: &Arc<crate::policy::Slot>,
    number: u64,
) -> Result<Entry, LoadError> {
    let source = Source::read(policy)?;
    let loaded = workshop.load(policy, &source, slot, number, Urgency::BesideService, &Progress::new())?;
    Ok(Entry::new(policy.clone(), Arc::clone(slot), loaded))
}

/// Loads a component when whoever writes it has come to an end. One that is `known` already is not loaded.
async fn settled(
    policy: &PolicyConfig,
    known: Option<String>,
    load: impl Fn(&Source) -> Result<Policy, LoadError> + Clone + Send + 'static,
) -> Result<Found, LoadError> {
    let begun = Instant::now();
    let mut looks = 0;
    let mut last = None;
    loop {
        let looking = {
            let (policy, known, load) = (policy.clone(), known.clone(), load.clone());
            move || {
                let source = match Source::read(&policy) {
                    Ok(source) => source,
                    Err(error) => return (None, Err(error)),
                };
                let digest = source.digest();
                if known.as_ref() == Some(&digest) {
                    return (Some(digest), Ok(Found::Same));
                }
                (Some(digest), load(&source).map(Found::New))
            }
        };
        let (digest, found) =
            spawn_blocking(looking).await.unwrap_or_else(|error| (None, Err(panicked(&policy.tag, &error))));
        let Err(error) = found else { return found };
        // As long as it changes somebody writes it.
        looks = if digest == last { looks + 1 } else { 1 };
        last = digest;
        if looks >= SETTLE_LOOKS || begun.elapsed() >= SETTLE_MAX {
            return Err(error);
        }
        sleep(SETTLE).await;
    }
}

fn panicked(tag: &str, error: &tokio::task::JoinError) -> LoadError {
    LoadError::Component { tag: tag.to_owned(), stage: "load it", reason: error.to_string() }
}

fn unknown(tag: &str) -> String {
    format!("there is no policy {tag:?}")
}

fn answer(reply: Option<Reply>, done: Result<String, String>) {
    if let Some(reply) = reply {
        // Whoever asked may not have waited.
        let _ = reply.send(done);
    }
}
