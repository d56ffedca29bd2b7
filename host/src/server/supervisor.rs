//! The one task that changes the running gateway: policies are reloaded, configurations applied.
//!
//! Owns the order of changes. Does not know what happens to a request. Invariant: whatever a change
//! needs was loaded, read and tried beforehand, so that it is made at once; a failure on the way
//! leaves everything as it was.

mod commands;
mod configure;
mod loads;
mod policy_files;
mod review;
mod services;
mod settled;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep_until;

pub use self::commands::{AppliedConfiguration, CommandError};
pub(super) use self::commands::{
    COMMAND_QUEUE, CommandSender, ConfigureReply, PolicyCommandDone, PolicyReply, SupervisorCommand,
};
pub(super) use self::configure::StartupSettings;
pub(super) use self::services::{RunningService, RunningServices};

use self::commands::answer;
use self::configure::{ConfigurationChange, KnownParts, exposures, load_change, needs_restart};
use self::loads::{FinishedTask, ShadowLoad};
use self::policy_files::PolicyFiles;
use self::review::{
    PROGRESS_INTERVAL, ReviewResult, log_progress, next_review, review_generations,
};
use self::services::ServiceInputs;
use self::settled::{LoadedComponent, load_settled};
use super::build::SharedResources;
use super::error::reject_problems;
use super::policies::{PendingPolicy, PolicyLoader};
use super::status::GatewayStatus;
use super::upkeep::{RunningTasks, Upkeep};
use super::usage_files::UsageFilesWriter;
use crate::config::{Config, PolicyConfig};
use crate::policy::{
    CompilePriority, ComponentBytes, PolicyGeneration, PolicyLoadError, PolicyShadow, shadow_config,
};
use crate::values::limits::Limits;
use crate::values::phase::GatewayPhase;
use crate::watch::FileWatcher;

/// What the supervisor changes, and what it needs for that.
pub(super) struct SupervisorParts {
    pub(super) status: Arc<GatewayStatus>,
    pub(super) shared: SharedResources,
    pub(super) services: RunningServices,
    pub(super) loader: PolicyLoader,
    pub(super) upkeep: Upkeep,
    pub(super) usage_files: UsageFilesWriter,
    pub(super) startup: StartupSettings,
    pub(super) limits: Arc<Limits>,
    pub(super) watcher: FileWatcher,
}

/// Makes all changes of the running gateway.
pub(super) struct Supervisor {
    status: Arc<GatewayStatus>,
    shared: SharedResources,
    services: RunningServices,
    loader: PolicyLoader,
    upkeep: Upkeep,
    usage_files: UsageFilesWriter,
    startup: StartupSettings,
    limits: Arc<Limits>,
    policy_files: PolicyFiles,
    tasks: JoinSet<FinishedTask>,
    /// Policies to load once more after the load in progress, and the operators who wait for that.
    reload_again: HashMap<String, Vec<PolicyReply>>,
    /// Shadows that are being loaded, by the tags of their policies.
    shadow_loads: HashMap<String, ShadowLoad>,
    is_configuring: bool,
    /// Configurations that wait for the one in progress, at most [`COMMAND_QUEUE`].
    configurations: VecDeque<(Box<Config>, ConfigureReply)>,
}

impl Supervisor {
    pub(super) fn new(parts: SupervisorParts, commands: &CommandSender) -> Self {
        Self {
            policy_files: PolicyFiles::new(&parts.watcher, commands),
            limits: parts.limits,
            status: parts.status,
            shared: parts.shared,
            services: parts.services,
            loader: parts.loader,
            upkeep: parts.upkeep,
            usage_files: parts.usage_files,
            startup: parts.startup,
            tasks: JoinSet::new(),
            reload_again: HashMap::new(),
            shadow_loads: HashMap::new(),
            is_configuring: false,
            configurations: VecDeque::new(),
        }
    }

    /// Makes the changes that `commands` ask for, until the gateway shuts down. `pending` are
    /// policies still being loaded.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<SupervisorCommand>,
        pending: Vec<PendingPolicy>,
    ) {
        for pending in pending {
            self.await_pending(pending);
        }
        self.watch_policy_files();
        let mut phases = self.shared.phases.clone();
        let trouble = Arc::clone(self.loader.trouble());
        let mut progress_logged = Instant::now();
        loop {
            let wake = next_review(&self.status);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.start_command(command),
                    None => return,
                },
                Some(finished) = self.tasks.join_next() => match finished {
                    Ok(finished) => self.finish(finished),
                    Err(error) => {
                        tracing::error!(%error, "configuration change panicked");
                        self.start_next_configuration();
                    }
                },
                () = trouble.notified() => self.review_generations(),
                () = sleep_until(wake.into()) => {
                    self.review_generations();
                    if progress_logged.elapsed() >= PROGRESS_INTERVAL {
                        progress_logged = Instant::now();
                        log_progress(&self.status);
                    }
                }
                _ = phases.wait_for(|phase| *phase != GatewayPhase::Running) => return,
            }
        }
    }

    fn start_command(&mut self, command: SupervisorCommand) {
        match command {
            SupervisorCommand::ReloadPolicy { tag, reply } => self.load_policy(&tag, vec![reply]),
            SupervisorCommand::PolicyFileChanged { tag } => self.load_policy(&tag, Vec::new()),
            SupervisorCommand::RollBackPolicy { tag, reply } => {
                answer(vec![reply], &self.roll_back(&tag));
            }
            SupervisorCommand::ShadowFileChanged { tag } => self.load_shadow(tag),
            SupervisorCommand::Configure { config, reply } => self.configure(config, reply),
        }
    }

    fn finish(&mut self, finished: FinishedTask) {
        match finished {
            FinishedTask::Policy {
                policy,
                started,
                loaded,
                replies,
            } => {
                answer(
                    replies,
                    &self.finish_policy_load(&policy, started.elapsed(), loaded),
                );
                // The file may have changed since this load read it.
                if let Some(replies) = self.reload_again.remove(&policy.tag) {
                    self.load_policy(&policy.tag, replies);
                }
            }
            FinishedTask::Shadow { policy, loaded } => {
                self.finish_shadow_load(&policy, loaded);
                if self.shadow_loads.remove(&policy.tag) == Some(ShadowLoad::Outdated) {
                    self.load_shadow(policy.tag);
                }
            }
            FinishedTask::Configuration {
                change,
                needs_restart,
                started,
                reply,
            } => {
                match change {
                    Ok(change) => self.apply(change, needs_restart, started, reply),
                    Err(error) => {
                        self.status.configuration_rejected(&error.to_string());
                        let error = CommandError::ConfigurationRejected(Arc::new(error));
                        let _ = reply.send(Err(error));
                    }
                }
                self.start_next_configuration();
            }
        }
    }

    /// Waits beside the supervisor for a policy that the start did not wait for.
    fn await_pending(&mut self, pending: PendingPolicy) {
        let PendingPolicy { tag, loaded } = pending;
        let Some(policy) = self.policy_config(&tag) else {
            return;
        };
        self.tasks.spawn(async move {
            let loaded = loaded
                .await
                .unwrap_or_else(|_| Err(PolicyLoadError::panicked(&tag)));
            FinishedTask::Policy {
                policy,
                started: Instant::now(),
                loaded: loaded.map(LoadedComponent::New),
                replies: Vec::new(),
            }
        });
    }

    /// Loads a policy's component beside requests. Without `replies`, only if the file holds
    /// another component.
    fn load_policy(&mut self, tag: &str, replies: Vec<PolicyReply>) {
        let mut policies = self.status.policies();
        let Some(entry) = policies.find_mut(tag) else {
            drop(policies);
            return answer(replies, &Err(CommandError::UnknownPolicy(tag.to_owned())));
        };
        if entry.load_progress().is_some() {
            drop(policies);
            let waiting = self.reload_again.entry(tag.to_owned()).or_default();
            return waiting.extend(replies);
        }
        let progress = entry.begin_load();
        let known = entry.serving_digest().filter(|_| replies.is_empty());
        let (policy, shared) = (entry.config().clone(), Arc::clone(entry.shared()));
        let number = entry.next_number();
        drop(policies);
        let loader = self.loader.clone();
        self.tasks.spawn(async move {
            let started = Instant::now();
            let load = {
                let policy = policy.clone();
                move |source: &ComponentBytes| {
                    let priority = CompilePriority::Background;
                    loader.load(&policy, source, &shared, number, priority, &progress)
                }
            };
            let loaded = load_settled(&policy, known, load).await;
            FinishedTask::Policy {
                policy,
                started,
                loaded,
                replies,
            }
        });
    }

    fn finish_policy_load(
        &self,
        policy: &PolicyConfig,
        took: Duration,
        loaded: Result<LoadedComponent<PolicyGeneration>, PolicyLoadError>,
    ) -> Result<PolicyCommandDone, CommandError> {
        let mut policies = self.status.policies();
        let entry = policies
            .find_mut(&policy.tag)
            .filter(|entry| entry.config().is_equivalent(policy))
            .ok_or(CommandError::ConfigurationChanged)?;
        entry.end_load();
        let done = match loaded {
            Ok(LoadedComponent::Unchanged) => return Ok(PolicyCommandDone::Unchanged),
            Ok(LoadedComponent::New(loaded)) => {
                entry.install(loaded, took);
                let component = entry.current().identity();
                let (generation, took_ms) = (entry.generation(), took.as_millis() as u64);
                tracing::info!(
                    policy = policy.tag,
                    generation,
                    name = component.name,
                    version = component.version,
                    digest = component.digest,
                    took_ms,
                    "policy reloaded"
                );
                Ok(PolicyCommandDone::Reloaded {
                    generation,
                    name: component.name.clone(),
                    version: component.version.clone(),
                    took_ms,
                })
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(
                    policy = policy.tag,
                    error = reason,
                    serves = entry.generation(),
                    "policy reload failed"
                );
                entry.load_failed(reason, took);
                Err(CommandError::NotLoaded(Arc::new(error)))
            }
        };
        // A failure of the first generation changes the reason with which requests fail.
        let is_changed = done.is_ok() || entry.generation() == 0;
        drop(policies);
        if is_changed {
            self.rebuild_services();
        }
        done
    }

    fn roll_back(&self, tag: &str) -> Result<PolicyCommandDone, CommandError> {
        let mut policies = self.status.policies();
        let entry = policies
            .find_mut(tag)
            .ok_or_else(|| CommandError::UnknownPolicy(tag.to_owned()))?;
        entry
            .roll_back()
            .map_err(|_| CommandError::NoPreviousGeneration)?;
        let generation = entry.generation();
        drop(policies);
        tracing::info!(policy = tag, generation, "policy rolled back");
        self.rebuild_services();
        Ok(PolicyCommandDone::RolledBack { generation })
    }

    /// Loads a policy's shadow beside requests, if its file holds another component.
    fn load_shadow(&mut self, tag: String) {
        let policies = self.status.policies();
        let Some(entry) = policies.find(&tag) else {
            return;
        };
        let Some(shadow) = shadow_config(entry.config()) else {
            return;
        };
        let policy = entry.config().clone();
        let known = entry
            .shared()
            .shadow()
            .map(|shadow| shadow.digest().to_owned());
        drop(policies);
        if let Some(load) = self.shadow_loads.get_mut(&tag) {
            *load = ShadowLoad::Outdated;
            return;
        }
        self.shadow_loads.insert(tag, ShadowLoad::Running);
        let loader = self.loader.clone();
        self.tasks.spawn(async move {
            let load = {
                let shadow = shadow.clone();
                move |source: &ComponentBytes| loader.load_shadow(&shadow, source)
            };
            let loaded = load_settled(&shadow, known, load).await;
            FinishedTask::Shadow { policy, loaded }
        });
    }

    fn finish_shadow_load(
        &self,
        policy: &PolicyConfig,
        loaded: Result<LoadedComponent<Arc<PolicyShadow>>, PolicyLoadError>,
    ) {
        let tag = &policy.tag;
        let policies = self.status.policies();
        let Some(entry) = policies
            .find(tag)
            .filter(|entry| entry.config().shadow == policy.shadow)
        else {
            return;
        };
        match loaded {
            Ok(LoadedComponent::Unchanged) => {}
            Ok(LoadedComponent::New(shadow)) => {
                entry.shared().set_shadow(Some(shadow));
                tracing::info!(policy = tag, "shadow reloaded");
            }
            Err(error) => tracing::error!(policy = tag, %error, "shadow reload failed"),
        }
    }

    fn configure(&mut self, config: Box<Config>, reply: ConfigureReply) {
        if self.configurations.len() >= COMMAND_QUEUE {
            let _ = reply.send(Err(CommandError::TooManyConfigurations));
        } else if self.is_configuring {
            // What is new in a configuration depends on the one before it.
            self.configurations.push_back((config, reply));
        } else {
            self.load_configuration(*config, reply);
        }
    }

    fn start_next_configuration(&mut self) {
        self.is_configuring = false;
        if let Some((config, reply)) = self.configurations.pop_front() {
            self.load_configuration(*config, reply);
        }
    }

    /// Loads what is new in `config` beside requests.
    fn load_configuration(&mut self, config: Config, reply: ConfigureReply) {
        self.is_configuring = true;
        let started = Instant::now();
        let needs_restart = needs_restart(&config, &self.startup, &self.services.listeners());
        let credentials = self.services.credentials();
        let certificates = self.services.certificates();
        let known = KnownParts::new(&config, &self.status.policies(), credentials, certificates);
        let loader = self.loader.clone();
        let exposures = reject_problems(exposures(&config, self.services.bound()));
        self.tasks.spawn(async move {
            let load = move || exposures.and_then(|()| load_change(config, &loader, known));
            let loading = spawn_blocking(load);
            match loading.await {
                Ok(change) => FinishedTask::Configuration {
                    change,
                    needs_restart,
                    started,
                    reply,
                },
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
    }

    /// Applies a configuration of which everything is loaded, and replies once its usage files are
    /// open.
    fn apply(
        &mut self,
        change: ConfigurationChange,
        needs_restart: Vec<String>,
        started: Instant,
        reply: ConfigureReply,
    ) {
        let tasks = if *change.limits == *self.limits {
            RunningTasks::Keep
        } else {
            RunningTasks::Restart
        };
        self.loader = change.loader;
        self.limits = change.limits;
        self.upkeep.set_limits(&self.limits);
        let mut policies = self.status.policies();
        let replaced = policies.reconfigure(change.policies);
        let inputs = ServiceInputs {
            shared: &self.shared,
            policies: &policies,
            limits: &self.limits,
        };
        let services = self
            .services
            .reconfigure(change.services, inputs, &self.upkeep, tasks);
        drop(policies);
        drop(replaced);
        self.status.replace_services(services);
        let usage_files_opening = self.usage_files.follow(self.services.configs());
        self.watch_policy_files();
        let took = started.elapsed();
        let restart = (!needs_restart.is_empty()).then(|| needs_restart.join(", "));
        tracing::info!(
            took_ms = took.as_millis() as u64,
            needs_restart = restart,
            "configuration applied"
        );
        self.status.configuration_applied(took);
        tokio::spawn(async move {
            usage_files_opening.done().await;
            let _ = reply.send(Ok(AppliedConfiguration { needs_restart }));
        });
    }

    /// Lets policies fall back from generations that failed too often, and retry suspended ones.
    fn review_generations(&self) {
        if review_generations(&self.status) == ReviewResult::Changed {
            self.rebuild_services();
        }
    }

    /// Lets requests find the current generations.
    fn rebuild_services(&self) {
        let policies = self.status.policies();
        let services = self.services.rebuild(ServiceInputs {
            shared: &self.shared,
            policies: &policies,
            limits: &self.limits,
        });
        drop(policies);
        self.status.replace_services(services);
    }

    fn watch_policy_files(&mut self) {
        let policies: Vec<PolicyConfig> = self
            .status
            .policies()
            .entries()
            .iter()
            .map(|entry| entry.config().clone())
            .collect();
        self.policy_files.watch_only(&policies);
    }

    fn policy_config(&self, tag: &str) -> Option<PolicyConfig> {
        let policies = self.status.policies();
        policies.find(tag).map(|entry| entry.config().clone())
    }
}
