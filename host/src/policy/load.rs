//! From a configured policy to one that can be called: read, digest, check, compile, configure, try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::Store;

use super::bindings::balancer::tollgate::policy::types::{Diagnostic, Manifest};
use super::engine::{Engine, Urgency};
use super::fault::Fault;
use super::instance::{Guest, World, last_words, new_store, root_cause};
use super::seat::{Known, Seat, Setting};
use super::slot::Slot;
use super::{Field, imports, shipped};
use crate::config::{ConfigPath, ConfigProblem, PolicyConfig, PolicySource, SchemaValidator};
use crate::files::read_regular;
use crate::values::hex::hex;
use crate::values::limits::COMPONENT_BYTES;

/// Calls by which a component is tried before it serves: the first is cold.
const TRIES: usize = 4;

/// What a policy's manifest may hold, in bytes over all its texts.
const MANIFEST_BYTES: usize = 256 * 1024;

/// Which component it is: for the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Its own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: String,
}

/// The stages in which a component that is not whole fails.
const READING: &str = "read it";
const USING: &str = "use it";
const COMPILING: &str = "compile it";

/// A policy that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The component is at fault.
    #[error("policy {tag:?}: cannot {stage}: {reason}")]
    Component {
        /// The policy's tag.
        tag: String,
        /// What was tried.
        stage: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Its configuration is at fault, each problem at its place in the file.
    #[error("{}", .0.iter().map(ConfigProblem::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigProblem>),
}

impl LoadError {
    /// Whether it may be that somebody is still writing the component. One that could be run is whole.
    pub fn may_be_half_written(&self) -> bool {
        matches!(
            self,
            Self::Component {
                stage: READING | USING | COMPILING,
                ..
            }
        )
    }

    /// The error as problems of the configuration, for a report of all of them at once.
    pub fn problems(self, policy: &PolicyConfig) -> Vec<ConfigProblem> {
        match (self, &policy.entry_path) {
            (Self::Config(problems), _) => problems,
            (Self::Component { stage, reason, .. }, Some(entry)) => {
                let message = format!("cannot {stage}: {reason}");
                vec![ConfigProblem::new(entry.key("path"), message)]
            }
            (component @ Self::Component { .. }, None) => {
                vec![ConfigProblem::without_path(component.to_string())]
            }
        }
    }
}

/// How a component is loaded.
#[derive(Clone, Copy)]
pub struct Loading<'a> {
    /// The slot that it is for.
    pub slot: &'a Arc<Slot>,
    /// Its number among the slot's generations, from 1 on.
    pub generation: u64,
    /// How urgent it is.
    pub urgency: Urgency,
    /// What it is doing, for whoever wants to know meanwhile.
    pub progress: &'a (dyn Fn(&'static str) + Sync),
}

impl std::fmt::Debug for Loading<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loading")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

impl<'a> Loading<'a> {
    /// The first generation of a slot, at once.
    pub fn first(slot: &'a Arc<Slot>) -> Self {
        Self {
            slot,
            generation: 1,
            urgency: Urgency::AtOnce,
            progress: &|_| (),
        }
    }
}

/// A component's bytes, and their SHA-256.
pub struct Source {
    bytes: Vec<u8>,
    digest: [u8; 32],
}

impl Source {
    /// Reads the component of `policy`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(policy: &PolicyConfig) -> Result<Self, LoadError> {
        let bytes = read(&policy.source).map_err(|reason| failed(policy, READING, reason))?;
        let digest = Sha256::digest(&*bytes).into();
        Ok(Self { bytes, digest })
    }

    /// The component's length in bytes.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The SHA-256 in hexadecimal.
    pub fn digest(&self) -> String {
        hex(&self.digest)
    }
}

fn failed(policy: &PolicyConfig, stage: &'static str, reason: String) -> LoadError {
    LoadError::Component {
        tag: policy.tag.clone(),
        stage,
        reason,
    }
}

pub(super) fn load<W: World>(
    engine: &Engine,
    policy: &PolicyConfig,
    source: &Source,
    loading: &Loading<'_>,
) -> Result<Seat<W>, LoadError> {
    let failed = |stage: &'static str| move |reason: String| failed(policy, stage, reason);
    imports::check(&source.bytes, W::KIND).map_err(failed(USING))?;
    (loading.progress)("compiling");
    let component = engine
        .compile(source.digest, &source.bytes, loading.urgency)
        .map_err(|error| failed(COMPILING)(format!("{error:#}")))?;
    (loading.progress)("configuring");
    let pre = engine
        .linker()
        .instantiate_pre(&component)
        .and_then(W::pre)
        .map_err(|error| failed("link it")(format!("{error:#}")))?;

    let mut store = new_store(engine, loading.slot, policy.memory);
    let _watched = engine.watch(&mut store);
    let said = |error: wasmtime::Error, store: &Store<Guest>| {
        format!("{}{}", root_cause(&error), last_words(store.data()))
    };
    let world = W::instantiate(&pre, &mut store)
        .map_err(|error| failed("instantiate it")(said(error, &store)))?;
    let manifest = world
        .describe(&mut store)
        .map_err(|error| failed("describe it")(said(error, &store)))?;
    let fields = fields(&manifest).map_err(failed(USING))?;

    check_config(&manifest, policy)?;
    let config = policy.config.to_string();
    world
        .configure(&mut store, &config)
        .map_err(|error| failed("configure it")(said(error, &store)))?
        .map_err(|diagnostics| LoadError::Config(problems(policy, diagnostics)))?;
    world
        .prepare(&mut store)
        .map_err(|error| failed("prepare it")(said(error, &store)))?;

    (loading.progress)("trying");
    let stamp = Stamp {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        digest: source.digest(),
    };
    let setting = Setting {
        number: loading.generation,
        config,
        timeout: policy.timeout,
        memory: policy.memory,
    };
    Ok(Seat::new(
        loading.slot,
        engine.clone(),
        pre,
        setting,
        Known {
            manifest,
            fields,
            stamp,
        },
    ))
}

/// Tries what was loaded: `call` is made a few times, warm at last. One that is slow then belongs on threads of its own.
///
/// # Errors
/// A call failed by the component's own fault.
pub(super) fn try_out<W: World>(
    seat: &Seat<W>,
    policy: &PolicyConfig,
    mut call: impl FnMut(&Seat<W>) -> Result<(), Fault>,
) -> Result<(), LoadError> {
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let begun = Instant::now();
        match call(seat) {
            Err(fault) if fault.kind().is_misconduct() => {
                return Err(failed(
                    policy,
                    "try it",
                    format!("{} in {}", fault.detail(), fault.call),
                ));
            }
            _ => quickest = quickest.min(begun.elapsed()),
        }
    }
    if quickest > seat.slot().slow_after() {
        seat.found_slow();
    }
    Ok(())
}

/// Returns a problem at `path` below the policy's `config`.
fn problem_in_config(policy: &PolicyConfig, path: &ConfigPath, message: &str) -> ConfigProblem {
    match &policy.entry_path {
        Some(entry) => ConfigProblem::new(entry.key("config").join(path), message),
        None => ConfigProblem::without_path(format!(
            "policy {:?}: {}{message}",
            policy.tag,
            if path.is_root() {
                String::new()
            } else {
                format!("{path}: ")
            }
        )),
    }
}

fn read(source: &PolicySource) -> Result<Vec<u8>, String> {
    match source {
        PolicySource::Shipped(name) => shipped::component(name)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| "it is not in this binary".to_owned()),
        PolicySource::File(path) => read_regular(path, COMPONENT_BYTES)
            .map_err(|reason| format!("{}: {reason}", path.display())),
    }
}

fn fields(manifest: &Manifest) -> Result<Vec<Field>, String> {
    let texts = [&manifest.name, &manifest.version, &manifest.config_schema];
    let lists = [
        &manifest.strings,
        &manifest.request_headers,
        &manifest.response_headers,
    ];
    let size: usize = texts
        .into_iter()
        .chain(lists.into_iter().flatten())
        .map(String::len)
        .sum();
    if size > MANIFEST_BYTES {
        return Err(format!(
            "its manifest: expected at most {MANIFEST_BYTES} bytes, found {size}"
        ));
    }
    if manifest.name.is_empty() {
        return Err("its manifest: name: missing".to_owned());
    }
    manifest
        .strings
        .iter()
        .map(|name| {
            Field::named(name)
                .ok_or_else(|| format!("its manifest: strings: unknown string {name:?}"))
        })
        .collect()
}

fn check_config(manifest: &Manifest, policy: &PolicyConfig) -> Result<(), LoadError> {
    if manifest.config_schema.is_empty() {
        return Ok(());
    }
    let failed = |reason: String| failed(policy, USING, reason);
    let schema = serde_json::from_str(&manifest.config_schema).map_err(|error| {
        failed(format!(
            "the schema of its configuration is no JSON: {error}"
        ))
    })?;
    let validator = SchemaValidator::new(schema)
        .map_err(|error| failed(format!("the schema of its configuration: {error}")))?;
    let problems: Vec<ConfigProblem> = validator
        .problems(&ConfigPath::root(), &policy.config)
        .iter()
        .map(|problem| problem_in_config(policy, &problem.path, &problem.message))
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(LoadError::Config(problems))
    }
}

fn problems(policy: &PolicyConfig, diagnostics: Vec<Diagnostic>) -> Vec<ConfigProblem> {
    let root = ConfigPath::root();
    if diagnostics.is_empty() {
        let message = "refused by the policy, which does not say why";
        return vec![problem_in_config(policy, &root, message)];
    }
    diagnostics
        .iter()
        .map(|found| problem_in_config(policy, &root.pointer(&found.pointer), &found.message))
        .collect()
}
