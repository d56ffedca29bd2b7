//! From a configured policy to one that can be called: read, digest, check, compile, configure, try.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use wasmtime::Store;

use super::bindings::balancer::tollgate::policy::types::{Diagnostic, Manifest};
use super::engine::Engine;
use super::instance::{Guest, LOAD_TIMEOUT, Seat, Setting, World, last_words, new_store, root_cause};
use super::{Field, imports, shipped};
use crate::config::{PolicyConfig, PolicySource, Problem, Shape};
use crate::files::read_regular;
use crate::values::limits::COMPONENT_BYTES;

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
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Problem>),
}

impl LoadError {
    /// The error as problems of the configuration, for a report of all of them at once.
    pub fn problems(self, policy: &PolicyConfig) -> Vec<Problem> {
        match self {
            Self::Config(problems) => problems,
            Self::Component { stage, reason, .. } if !policy.path_in_config.is_empty() => {
                vec![Problem::new(format!("{}.path", policy.path_in_config), format!("cannot {stage}: {reason}"))]
            }
            component @ Self::Component { .. } => vec![Problem::new("", component.to_string())],
        }
    }
}

/// A policy, and which component it is.
pub(super) struct Loaded<W: World> {
    pub(super) seat: Seat<W>,
    pub(super) stamp: Stamp,
}

pub(super) fn load<W: World>(engine: &Engine, policy: &PolicyConfig) -> Result<Loaded<W>, LoadError> {
    let failed = |stage: &'static str| {
        let tag = policy.tag.clone();
        move |reason: String| LoadError::Component { tag, stage, reason }
    };
    let bytes = read(&policy.source).map_err(failed("read it"))?;
    let digest: [u8; 32] = Sha256::digest(&*bytes).into();
    imports::check(&bytes, W::KIND).map_err(failed("use it"))?;
    let component = engine.compile(digest, &bytes).map_err(|error| failed("compile it")(format!("{error:#}")))?;
    let pre = engine
        .linker()
        .instantiate_pre(&component)
        .and_then(W::pre)
        .map_err(|error| failed("link it")(format!("{error:#}")))?;

    let tag: Arc<str> = policy.tag.as_str().into();
    let mut store = new_store(engine, tag.clone(), LOAD_TIMEOUT, policy.memory);
    store.set_epoch_deadline(LOAD_TIMEOUT.as_millis() as u64);
    let said =
        |error: wasmtime::Error, store: &Store<Guest>| format!("{}{}", root_cause(&error), last_words(store.data()));
    let world = W::instantiate(&pre, &mut store).map_err(|error| failed("instantiate it")(said(error, &store)))?;
    let manifest = world.describe(&mut store).map_err(|error| failed("describe it")(said(error, &store)))?;
    let fields = fields(&manifest).map_err(failed("use it"))?;

    let place = place(policy);
    check_config(&manifest, policy, &place)?;
    let config = policy.config.to_string();
    world
        .configure(&mut store, &config)
        .map_err(|error| failed("configure it")(said(error, &store)))?
        .map_err(|diagnostics| LoadError::Config(problems(&place, diagnostics)))?;
    world.prepare(&mut store).map_err(|error| failed("try it")(said(error, &store)))?;

    let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let stamp = Stamp { name: manifest.name.clone(), version: manifest.version.clone(), digest: hex };
    let setting = Setting { tag, config, timeout: policy.timeout, memory: policy.memory };
    Ok(Loaded { seat: Seat::new(engine.clone(), pre, setting, manifest, fields), stamp })
}

fn place(policy: &PolicyConfig) -> String {
    if policy.path_in_config.is_empty() {
        format!("policy {:?}", policy.tag)
    } else {
        format!("{}.config", policy.path_in_config)
    }
}

fn read(source: &PolicySource) -> Result<Vec<u8>, String> {
    match source {
        PolicySource::Shipped(name) => {
            shipped::component(name).map(<[u8]>::to_vec).ok_or_else(|| "it is not in this binary".to_owned())
        }
        PolicySource::File(path) => {
            read_regular(path, COMPONENT_BYTES).map_err(|reason| format!("{}: {reason}", path.display()))
        }
    }
}

fn fields(manifest: &Manifest) -> Result<Vec<Field>, String> {
    let texts = [&manifest.name, &manifest.version, &manifest.config_schema];
    let lists = [&manifest.strings, &manifest.request_headers, &manifest.response_headers];
    let size: usize = texts.into_iter().chain(lists.into_iter().flatten()).map(String::len).sum();
    if size > MANIFEST_BYTES {
        return Err(format!("its manifest: expected at most {MANIFEST_BYTES} bytes, found {size}"));
    }
    if manifest.name.is_empty() {
        return Err("its manifest: name: missing".to_owned());
    }
    manifest
        .strings
        .iter()
        .map(|name| Field::named(name).ok_or_else(|| format!("its manifest: strings: unknown string {name:?}")))
        .collect()
}

fn check_config(manifest: &Manifest, policy: &PolicyConfig, place: &str) -> Result<(), LoadError> {
    if manifest.config_schema.is_empty() {
        return Ok(());
    }
    let failed = |reason: String| LoadError::Component { tag: policy.tag.clone(), stage: "use it", reason };
    let schema = serde_json::from_str(&manifest.config_schema)
        .map_err(|error| failed(format!("the schema of its configuration is no JSON: {error}")))?;
    let shape = Shape::new(schema).map_err(|error| failed(format!("the schema of its configuration: {error}")))?;
    let problems = shape.problems(place, &policy.config);
    if problems.is_empty() { Ok(()) } else { Err(LoadError::Config(problems)) }
}

fn problems(place: &str, diagnostics: Vec<Diagnostic>) -> Vec<Problem> {
    let problem = |diagnostic: Diagnostic| {
        Problem::new(format!("{place}{}", diagnostic.pointer.replace('/', ".")), diagnostic.message)
    };
    if diagnostics.is_empty() {
        return vec![Problem::new(place, "refused by the policy, which does not say why")];
    }
    diagnostics.into_iter().map(problem).collect()
}
