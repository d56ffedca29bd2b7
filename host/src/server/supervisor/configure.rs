//! A changed configuration on the running gateway: what is new in it is loaded and read beforehand, and then taken up at
//! once, without dropping a connection. What cannot change is named, and left as it was.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::{Reply, Supervisor, Work};
use crate::config::{Config, PolicyConfig, ServiceConfig};
use crate::credentials::Credential;
use crate::policy::{LoadError, Slot, Source, Urgency};
use crate::server::StartError;
use crate::server::build::{assemble, certificates, read_credentials, refuse_if_any};
use crate::server::policies::{Entry, LastReload, Progress, Workshop};
use crate::server::usage_files;
use crate::tls::Tls;

/// A configuration, with everything that it names loaded.
pub(super) struct Staged {
    workshop: Workshop,
    /// In its order: what is new, or none where what serves goes on.
    policies: Vec<Option<Entry>>,
    /// By the services' tags.
    services: HashMap<String, (Vec<Arc<Credential>>, Option<Tls>)>,
}

impl Supervisor {
    /// Loads everything that is new in `config`.
    pub(super) fn stage(&mut self, config: Box<Config>, reply: Reply) {
        self.is_staging = true;
        let begun = Instant::now();
        let limits = Arc::new(config.limits.clone());
        let workshop = self.workshop.with_limits(&limits);
        let policies = self.board.policies();
        let known: Vec<Known> = config
            .policies
            .iter()
            .map(|policy| {
                let entry = policies
                    .entries
                    .iter()
                    .find(|entry| entry.config.tag == policy.tag);
                match entry {
                    Some(entry) if entry.config.is_like(policy) => Known::Same,
                    // The same place, with what was counted there and what its calls go to.
                    Some(entry) if goes_on_in_its_slot(&entry.config, policy) => Known::Changed {
                        slot: Arc::clone(&entry.slot),
                        number: entry.numbered + 1,
                    },
                    Some(entry) => Known::New {
                        number: entry.numbered + 1,
                    },
                    None => Known::New { number: 1 },
                }
            })
            .collect();
        drop(policies);
        let credentials: HashMap<String, Vec<Arc<Credential>>> = self
            .served
            .iter()
            .map(|served| {
                (
                    served.config.tag.clone(),
                    served.live.borrow().credentials().to_vec(),
                )
            })
            .collect();
        self.works.spawn(async move {
            let staging = spawn_blocking(move || {
                let staged = stage(&config, workshop, known, &credentials);
                (config, staged)
            });
            match staging.await {
                Ok((config, staged)) => Work::Staged {
                    config,
                    staged,
                    begun,
                    reply,
                },
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
    }

    /// The next configuration, where one waits.
    pub(super) fn stage_next(&mut self) {
        self.is_staging = false;
        if let Some((config, reply)) = self.waiting.pop_front() {
            self.stage(config, reply);
        }
    }

    /// Everything is there: it serves from now on. Answers what was left as it was.
    pub(super) fn take_up(&mut self, config: Config, staged: Staged) -> String {
        let left = self.left(&config);
        self.workshop = staged.workshop;
        let limits = Arc::new(config.limits.clone());
        let anew = *limits != *self.limits;
        let mut before = std::mem::take(&mut self.board.policies().entries);
        let mut entries = Vec::new();
        for (policy, new) in config.policies.iter().zip(staged.policies) {
            let place = before
                .iter()
                .position(|entry| entry.config.tag == policy.tag);
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
            let found = config
                .services
                .iter()
                .find(|service| service.tag == served.config.tag);
            let credentials = match (found, staged.remove(&served.config.tag)) {
                (Some(found), Some((credentials, tls))) => {
                    let listen = served.config.listen;
                    served.config = ServiceConfig {
                        listen,
                        ..found.clone()
                    };
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
            let service = Arc::new(assemble(
                &self.world,
                &served.config,
                &policies,
                &self.limits,
                credentials,
                Some(&before),
            ));
            services.push(Arc::downgrade(&service));
            let elsewhere = before.endpoints() != service.endpoints();
            served.kept = self.keeping.keep(
                &service,
                std::mem::take(&mut served.kept),
                anew || elsewhere,
            );
            served.live.send_replace(service);
        }
        drop(policies);
        *self
            .board
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner) = services;
        // The thread that writes them ends with the gateway alone.
        let _ = self.views.send(usage_files::wanted(
            self.served.iter().map(|served| &served.config),
        ));
        self.watch_files();
        if left.is_empty() {
            "the configuration is taken up".to_owned()
        } else {
            format!(
                "the configuration is taken up, but for what needs a start: {}",
                left.join(", ")
            )
        }
    }

    pub(super) fn note_configured(&self, done: &Result<String, String>, took: Duration) {
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
            match self
                .served
                .iter()
                .find(|served| served.config.tag == service.tag)
            {
                None => differs(&format!("services[{place}] (a new one)"), true),
                Some(served) => {
                    differs(
                        &format!("services[{place}].listen"),
                        served.config.listen != service.listen,
                    );
                }
            }
        }
        for served in &self.served {
            let gone = !config
                .services
                .iter()
                .any(|service| service.tag == served.config.tag);
            differs(
                &format!("service {:?} (one that goes)", served.config.tag),
                gone,
            );
        }
        // Beside those of the start, what a policy's place is made with.
        macro_rules! fixed {
            ($($name:ident),* $(,)?) => { $(
                differs(concat!("limits.", stringify!($name)), self.fixed.limits.$name != config.limits.$name);
            )* };
        }
        fixed!(
            connections,
            settle_queue,
            ledger_bytes,
            ledger_full,
            sessions,
            session_lifetime,
            auth_addresses,
            client_stall_timeout,
            drain_timeout,
            policy_threads,
            policy_queue,
            policy_slow_after,
            policy_cache_bytes,
            policy_faults,
            policy_fault_window,
            policy_quarantine,
            policy_quarantine_max,
            policy_probation_calls,
            policy_log_lines,
            policy_record_bytes,
            policy_record_files,
        );
        left
    }
}

/// What is known of a policy of a new configuration.
enum Known {
    /// It is as it was.
    Same,
    /// It serves in the same place, otherwise.
    Changed {
        slot: Arc<Slot>,
        number: u64,
    },
    New {
        number: u64,
    },
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
            Known::New { number } => workshop
                .slot(policy)
                .and_then(|slot| load_new(&workshop, policy, &slot, number))
                .map(Some),
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
    Ok(Staged {
        workshop,
        policies,
        services,
    })
}

fn load_new(
    workshop: &Workshop,
    policy: &PolicyConfig,
    slot: &Arc<Slot>,
    number: u64,
) -> Result<Entry, LoadError> {
    let source = Source::read(policy)?;
    let loaded = workshop.load(
        policy,
        &source,
        slot,
        number,
        Urgency::BesideService,
        &Progress::new(),
    )?;
    Ok(Entry::new(policy.clone(), Arc::clone(slot), loaded))
}
