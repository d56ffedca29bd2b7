//! Reloads: the one task that changes what requests find, and the policies that it loads anew.
//!
//! Refuses to know what happens to a request. Invariant: a change is made of what was loaded, read and tried beforehand, and it
//! is made at once. What fails on the way leaves everything as it was.

mod configure;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, sleep_until};

use self::configure::Staged;
use super::StartError;
use super::build::{Pending, World, assemble};
use super::policies::{Progress, Workshop};
use super::status::Board;
use super::upkeep::{Keeping, Kept};
use super::usage_files::ViewOf;
use crate::config::{Config, PolicyConfig, PolicySource, ServiceConfig};
use crate::pipeline::Service;
use crate::policy::{LoadError, Policy, Rules, Shadow, Slot, Source, Urgency};
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
    pub(super) limits: Arc<Limits>,
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
    /// Policies whose file may have changed while it was being loaded, and who waits for what it is now.
    pub(super) again: Vec<(String, Option<Reply>)>,
    /// What is new in a configuration is being loaded.
    pub(super) is_staging: bool,
    /// Configurations that come after that one. As many as there are commands may wait.
    pub(super) waiting: VecDeque<(Box<Config>, Reply)>,
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
    Loaded {
        tag: String,
        of: PolicyConfig,
        begun: Instant,
        loaded: Result<Found, LoadError>,
        replies: Vec<Reply>,
    },
    Shadow {
        tag: String,
        loaded: Result<Option<Arc<Shadow>>, LoadError>,
    },
    Staged {
        config: Box<Config>,
        staged: Result<Staged, StartError>,
        begun: Instant,
        reply: Reply,
    },
}

/// What was found in a policy's file.
pub(super) enum Found {
    /// What is known already.
    Same,
    New(Policy),
}

/// The queue of commands.
pub(super) fn commands() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS)
}

impl Supervisor {
    /// Changes what is asked for, until the gateway stops.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        pending: Vec<Pending>,
    ) {
        for Pending { tag, loaded } in pending {
            let of = self
                .board
                .policies()
                .named(&tag)
                .map(|entry| entry.config.clone());
            let Some(of) = of else { continue };
            self.works.spawn(async move {
                let reason = || "loading it panicked".to_owned();
                let panicked = |_| LoadError::Component {
                    tag: tag.clone(),
                    stage: "load it",
                    reason: reason(),
                };
                let loaded = loaded
                    .await
                    .map_err(panicked)
                    .and_then(|loaded| loaded)
                    .map(Found::New);
                Work::Loaded {
                    tag,
                    of,
                    begun: Instant::now(),
                    loaded,
                    replies: Vec::new(),
                }
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
                    Err(error) => {
                        tracing::error!(%error, "a reload panicked");
                        self.stage_next();
                    }
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
            Command::Reload { tag, reply } => self.load(&tag, vec![reply]),
            Command::FileChanged { tag } => self.load(&tag, Vec::new()),
            Command::RollBack { tag, reply } => {
                let done = match self.board.policies().named(&tag) {
                    Some(entry) => entry
                        .roll_back()
                        .map(|()| format!("generation {} serves", entry.generation())),
                    None => Err(unknown(&tag)),
                };
                if let Ok(done) = &done {
                    tracing::info!(policy = tag, done, "policy rolled back");
                    self.publish();
                }
                let _ = reply.send(done);
            }
            Command::ShadowChanged { tag } => {
                let Some(policy) = self
                    .board
                    .policies()
                    .named(&tag)
                    .map(|entry| entry.config.clone())
                else {
                    return;
                };
                let workshop = self.workshop.clone();
                if self
                    .board
                    .policies()
                    .named(&tag)
                    .is_some_and(|entry| shadow_is_known(&policy, &entry.slot))
                {
                    return;
                }
                self.works.spawn(async move {
                    sleep(SETTLE).await;
                    let loading = spawn_blocking(move || workshop.shadow(&policy)).await;
                    let loaded = loading.unwrap_or_else(|error| Err(panicked(&tag, &error)));
                    Work::Shadow { tag, loaded }
                });
            }
            Command::Configure { reply, .. } if self.waiting.len() >= COMMANDS => {
                answer(
                    vec![reply],
                    &Err("too many configurations wait to be taken up".to_owned()),
                );
            }
            // One after the other: what is new in one is told from what the one before made.
            Command::Configure { config, reply } if self.is_staging => {
                self.waiting.push_back((config, reply))
            }
            Command::Configure { config, reply } => self.stage(config, reply),
        }
    }

    /// Loads a policy's file, beside whoever is served. With nobody who waits for it, only where it changed.
    fn load(&mut self, tag: &str, replies: Vec<Reply>) {
        let mut policies = self.board.policies();
        let Some(entry) = policies.named(tag) else {
            drop(policies);
            return answer(replies, &Err(unknown(tag)));
        };
        if entry.progress.is_some() {
            // However often its file changes meanwhile, it is loaded once more.
            if replies.is_empty() && !self.again.iter().any(|(again, _)| again == tag) {
                self.again.push((tag.to_owned(), None));
            }
            self.again.extend(
                replies
                    .into_iter()
                    .map(|reply| (tag.to_owned(), Some(reply))),
            );
            return;
        }
        let progress = Progress::new();
        entry.progress = Some(progress.clone());
        let (policy, slot, number) = (
            entry.config.clone(),
            Arc::clone(&entry.slot),
            entry.numbered + 1,
        );
        let known = (entry.generation() > 0 && replies.is_empty())
            .then(|| entry.current.stamp().digest.clone());
        drop(policies);
        let (tag, workshop) = (tag.to_owned(), self.workshop.clone());
        self.works.spawn(async move {
            let begun = Instant::now();
            let load = {
                let policy = policy.clone();
                move |source: &Source| {
                    workshop.load(
                        &policy,
                        source,
                        &slot,
                        number,
                        Urgency::BesideService,
                        &progress,
                    )
                }
            };
            let loaded = settled(&policy, known, load).await;
            Work::Loaded {
                tag,
                of: policy,
                begun,
                loaded,
                replies,
            }
        });
    }

    fn over(&mut self, work: Work) {
        match work {
            Work::Loaded {
                tag,
                of,
                begun,
                loaded,
                replies,
            } => {
                answer(replies, &self.loaded(&tag, &of, begun.elapsed(), loaded));
                // Who asked meanwhile asked for what the file is since then.
                let again: Vec<_> = self
                    .again
                    .extract_if(.., |(again, _)| *again == tag)
                    .collect();
                if !again.is_empty() {
                    self.load(
                        &tag,
                        again.into_iter().filter_map(|(_, reply)| reply).collect(),
                    );
                }
            }
            Work::Shadow { tag, loaded } => match loaded {
                Ok(shadow) => {
                    if let Some(entry) = self.board.policies().named(&tag) {
                        entry.slot.set_shadow(shadow);
                    }
                    tracing::info!(policy = tag, "shadow reloaded");
                }
                Err(error) => tracing::error!(policy = tag, %error, "its shadow goes on as it was"),
            },
            Work::Staged {
                config,
                staged,
                begun,
                reply,
            } => {
                let done = staged
                    .map_err(|error| error.to_string())
                    .map(|staged| self.take_up(*config, staged));
                self.note_configured(&done, begun.elapsed());
                let _ = reply.send(done);
                self.stage_next();
            }
        }
    }

    fn loaded(
        &mut self,
        tag: &str,
        of: &PolicyConfig,
        took: Duration,
        loaded: Result<Found, LoadError>,
    ) -> Result<String, String> {
        let mut policies = self.board.policies();
        let Some(entry) = policies.named(tag).filter(|entry| entry.config.is_like(of)) else {
            drop(policies);
            return Err("its configuration changed meanwhile".to_owned());
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
                tracing::error!(
                    policy = tag,
                    error = reason,
                    serves = entry.generation(),
                    "policy not reloaded"
                );
                entry.failed(reason.clone(), took);
                Some(Err(reason))
            }
        };
        let absent = (entry.generation() == 0).then(|| {
            // What requests are told, from now on.
            let reason = entry
                .last
                .as_ref()
                .and_then(|last| last.reason.clone())
                .unwrap_or_default();
            entry.current = Policy::absent(
                &entry.config,
                &entry.slot,
                format!("its component cannot be used: {reason}"),
            );
        });
        drop(policies);
        if matches!(done, Some(Ok(_))) || absent.is_some() {
            self.publish();
        }
        done.unwrap_or_else(|| Ok("its file is what serves already".to_owned()))
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
                tracing::error!(
                    policy,
                    serves,
                    "a generation failed too often: the one before it serves"
                );
            } else if entry.is_proven() {
                let (policy, serves) = (&entry.config.tag, entry.generation());
                tracing::info!(
                    policy,
                    serves,
                    "a generation that had failed too often is good again"
                );
            } else if entry.try_again(now) {
                changed = true;
                let (policy, serves) = (&entry.config.tag, entry.generation());
                tracing::warn!(
                    policy,
                    serves,
                    "a generation that failed too often is tried again"
                );
            }
        }
        if changed {
            self.publish();
        }
    }

    /// When there is something to look after, at the latest.
    fn wake_at(&self) -> Instant {
        let policies = self.board.policies();
        let benched = policies
            .entries
            .iter()
            .filter_map(|entry| entry.benched.as_ref().map(|benched| benched.until));
        benched.fold(Instant::now() + TELL_AGAIN, Instant::min)
    }

    fn tell_progress(&self) {
        for entry in &self.board.policies().entries {
            if let Some((stage, since)) = entry.progress.as_ref().map(Progress::told)
                && since >= TELL_AGAIN
            {
                tracing::info!(
                    policy = entry.config.tag,
                    stage,
                    seconds = since.as_secs(),
                    "policy is being loaded"
                );
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
            let service = Arc::new(assemble(
                &self.world,
                &served.config,
                &policies,
                &self.limits,
                credentials,
                Some(&before),
            ));
            services.push(Arc::downgrade(&service));
            served.live.send_replace(service);
        }
        *self
            .board
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner) = services;
    }

    /// Watches the files of the policies that there are now.
    pub(super) fn watch_files(&mut self) {
        let policies: Vec<PolicyConfig> = self
            .board
            .policies()
            .entries
            .iter()
            .map(|entry| entry.config.clone())
            .collect();
        self.watched.retain(|tag, watched| {
            policies
                .iter()
                .any(|policy| policy.tag == *tag && policy.is_like(&watched.policy))
        });
        for policy in policies {
            if self.watched.contains_key(&policy.tag) {
                continue;
            }
            let mut tasks = Vec::new();
            if let PolicySource::File(path) = &policy.source {
                let tag = policy.tag.clone();
                tasks
                    .push(self.watch_file(path, move || Command::FileChanged { tag: tag.clone() }));
            }
            if let Some(path) = &policy.shadow {
                let tag = policy.tag.clone();
                tasks.push(
                    self.watch_file(path, move || Command::ShadowChanged { tag: tag.clone() }),
                );
            }
            self.watched.insert(
                policy.tag.clone(),
                Watched {
                    policy,
                    _tasks: tasks,
                },
            );
        }
    }

    fn watch_file(
        &self,
        path: &std::path::Path,
        told: impl Fn() -> Command + Send + 'static,
    ) -> Abort {
        let changed = Arc::new(Notify::new());
        self.watch.file(path, &changed);
        let commands = self.commands.downgrade();
        let watching = tokio::spawn(async move {
            loop {
                changed.notified().await;
                let Some(commands) = commands.upgrade() else {
                    return;
                };
                if commands.send(told()).await.is_err() {
                    return;
                }
            }
        });
        Abort(watching.abort_handle())
    }
}

/// Whether the shadow that is configured is the one that runs.
fn shadow_is_known(policy: &PolicyConfig, slot: &Slot) -> bool {
    let Some(path) = &policy.shadow else {
        return true;
    };
    let of_file = PolicyConfig {
        source: PolicySource::File(path.clone()),
        ..policy.clone()
    };
    let known = slot.shadow().map(|shadow| shadow.status().digest);
    Source::read(&of_file).ok().map(|source| source.digest()) == known
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
        let (digest, found) = spawn_blocking(looking)
            .await
            .unwrap_or_else(|error| (None, Err(panicked(&policy.tag, &error))));
        let Err(error) = found else { return found };
        // As long as it changes somebody writes it.
        looks = if digest == last { looks + 1 } else { 1 };
        last = digest;
        if !error.may_be_half_written() || looks >= SETTLE_LOOKS || begun.elapsed() >= SETTLE_MAX {
            return Err(error);
        }
        sleep(SETTLE).await;
    }
}

fn panicked(tag: &str, error: &tokio::task::JoinError) -> LoadError {
    LoadError::Component {
        tag: tag.to_owned(),
        stage: "load it",
        reason: error.to_string(),
    }
}

fn unknown(tag: &str) -> String {
    format!("there is no policy {tag:?}")
}

fn answer(replies: Vec<Reply>, done: &Result<String, String>) {
    for reply in replies {
        // Whoever asked may not have waited.
        let _ = reply.send(done.clone());
    }
}
