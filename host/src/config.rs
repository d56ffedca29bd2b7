//! Floor 1: the configuration. This module owns the file format, its checks and its resolved form.
//! It does not know what the gateway does with a configuration. A [`Config`] holds only values that
//! can be used as they are, and a configuration that cannot be used is reported with all its
//! problems at once.

pub mod duration;
mod jsonc;
mod model;
mod path;
mod problem;
mod raw;
mod resolve;
mod shipped;
mod size;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::Value;

pub use model::{
    AcmeChallenge, AcmeConfig, AdminConfig, CertificateKeyType, ClientAuthentication,
    ClientAuthenticationMode, ClientCertificate, Config, CredentialConfig, CredentialSource,
    DialHost, DialTarget, EnvironmentProxies, ExternalAccount, HttpProxy, KeepAliveTimes,
    KeyExchange, ListenAddress, ListenConfig, ListenOptions, LogConfig, LogOutput, NameIndication,
    OutboundCarrier, OutboundConfig, OutboundProtocol, POLICY_MEMORY, POLICY_TIMEOUT, PemContent,
    PemSource, PolicyConfig, PolicyId, PolicySource, PoolConfig, ProxyAddress, ProxyHeader,
    ProxyLogin, ProxyProtocol, ProxyTls, ProxyVerification, ReverseRole, ServiceConfig,
    SocketOptions, SocksProxy, SocksVersion, Tls12Suite, TlsConfig, TlsVersion, TrustConfig,
    TrustStore, TrustedProxies, UpstreamEndpoints, UpstreamRoute, UserConfig, WindowCaps,
};
pub use path::ConfigPath;
pub use problem::ConfigProblem;
pub use raw::{LogFormat, LogLevel, OnFailure, PolicyKind};
pub use shipped::ShippedPolicy;
pub use validate::{SchemaError, SchemaValidator};

use problem::ProblemReport;
use raw::RawConfig;

use crate::files::read_bounded;
use crate::values::limits::CONFIG_FILE_BYTES;

/// The configuration that the gateway uses without a file: the first example of the OCM document.
pub const DEFAULT_CONFIG: &str =
    r#"{"services": [{"type": "ocm", "listen": "127.0.0.1", "listen_port": 8080}]}"#;

/// Top-level keys of sing-box that Tollgate ignores.
const IGNORED_KEYS: [&str; 8] = [
    "dns",
    "route",
    "inbounds",
    "ntp",
    "experimental",
    "endpoints",
    "http_clients",
    "network_namespaces",
];

/// A configuration and what its operator should know about it.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The resolved form: defaults filled in, references checked.
    pub config: Config,
    /// What was ignored or is risky.
    pub warnings: Vec<ConfigProblem>,
}

/// A configuration that cannot be used, with every reason.
#[derive(Debug)]
pub struct ConfigError {
    /// Everything that is wrong with it.
    pub problems: Vec<ConfigProblem>,
    /// What was ignored or is risky.
    pub warnings: Vec<ConfigProblem>,
    /// What could be resolved in spite of the problems, for further checks.
    pub rest: Option<Box<Config>>,
}

impl ConfigError {
    fn without_path(message: impl Into<String>) -> Self {
        Self {
            problems: vec![ConfigProblem::without_path(message)],
            warnings: Vec::new(),
            rest: None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ConfigProblem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// Reads the configuration in the file at `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
    let bytes = read_bounded(path, CONFIG_FILE_BYTES)
        .map_err(|reason| ConfigError::without_path(format!("cannot read it: {reason}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        ConfigError::without_path(format!(
            "expected UTF-8, found another encoding at byte {offset}"
        ))
    })?;
    parse(&text)
}

/// Reads the configuration `text`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<LoadedConfig, ConfigError> {
    let mut value =
        jsonc::parse(text).map_err(|error| ConfigError::without_path(error.to_string()))?;
    let mut report = ProblemReport::default();
    let endpoints = endpoint_types(&value);
    remove_ignored_keys(&mut value, &mut report);
    remove_unset(&mut value);
    let validator = validator();
    let malformed = validator.problems(&ConfigPath::root(), &value);
    if !malformed.is_empty() {
        // Without what has the wrong form, the rest can be checked in the same run.
        for problem in &malformed {
            problem.path.remove_from(&mut value);
        }
        if !validator.problems(&ConfigPath::root(), &value).is_empty() {
            return Err(ConfigError {
                problems: malformed,
                warnings: report.warnings,
                rest: None,
            });
        }
    }
    let raw: RawConfig = serde_json::from_value(value).map_err(|_| {
        ConfigError::without_path(
            "expected a configuration as in the schema that `tollgate config-schema` prints",
        )
    })?;
    let config = resolve::resolve(&raw, &endpoints, &mut report);
    let warnings = independent(report.warnings, &malformed);
    let resolved = independent(report.problems, &malformed);
    let problems: Vec<ConfigProblem> = malformed.into_iter().chain(resolved).collect();
    match config {
        Some(config) if problems.is_empty() => Ok(LoadedConfig { config, warnings }),
        rest => Err(ConfigError {
            problems,
            warnings,
            rest: rest.map(Box::new),
        }),
    }
}

/// Returns those of `resolved` that are not there only because something malformed was removed.
/// Those about the file as a whole stay.
fn independent(resolved: Vec<ConfigProblem>, malformed: &[ConfigProblem]) -> Vec<ConfigProblem> {
    let is_independent = |problem: &ConfigProblem| {
        problem.path.is_root()
            || !malformed
                .iter()
                .any(|malformed| malformed.path.overlaps(&problem.path))
    };
    resolved.into_iter().filter(is_independent).collect()
}

/// Returns the JSON Schema of the configuration (draft 2020-12).
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<RawConfig>().to_value()
}

fn validator() -> SchemaValidator {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<RawConfig>()
        .to_value();
    SchemaValidator::new(schema)
        .unwrap_or_else(|error| unreachable!("the schema of our own types: {error}"))
}

/// Removes what sing-box reads as not set: fields that are null, an empty log level, and the empty
/// type of a credential. The configuration of a policy stays as it is: it is the policy's.
fn remove_unset(value: &mut Value) {
    let Some(sections) = value.as_object_mut() else {
        return;
    };
    for (_, section) in sections.iter_mut().filter(|(name, _)| *name != "policies") {
        remove_nulls(section);
    }
    sections.retain(|_, section| !section.is_null());
    remove_if_empty(sections.get_mut("log"), "level");
    for service in items_mut(sections.get_mut("services")) {
        for credential in items_mut(service.get_mut("credentials")) {
            remove_if_empty(Some(credential), "type");
        }
    }
}

/// Removes the field `name` of an object if it is an empty text.
fn remove_if_empty(object: Option<&mut Value>, name: &str) {
    let Some(object) = object.and_then(Value::as_object_mut) else {
        return;
    };
    if object.get(name).and_then(Value::as_str) == Some("") {
        object.shift_remove(name);
    }
}

/// Returns the items of a list, or a single item that is written without the brackets.
fn items_mut(list: Option<&mut Value>) -> &mut [Value] {
    match list {
        None => &mut [],
        Some(Value::Array(items)) => items,
        Some(item) => std::slice::from_mut(item),
    }
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns the types of sing-box's endpoints by their tags: a `detour` could name one.
fn endpoint_types(value: &Value) -> BTreeMap<String, String> {
    let endpoints = match value.get("endpoints") {
        Some(Value::Array(endpoints)) => endpoints.as_slice(),
        Some(endpoint) => std::slice::from_ref(endpoint),
        None => &[],
    };
    let text = |endpoint: &Value, key: &str| Some(endpoint.get(key)?.as_str()?.to_owned());
    endpoints
        .iter()
        .filter_map(|endpoint| Some((text(endpoint, "tag")?, text(endpoint, "type")?)))
        .collect()
}

fn remove_ignored_keys(value: &mut Value, report: &mut ProblemReport) {
    let Some(object) = value.as_object_mut() else {
        return;
    };
    let ignored: Vec<&str> = IGNORED_KEYS
        .into_iter()
        .filter(|key| object.shift_remove(*key).is_some())
        .collect();
    if !ignored.is_empty() {
        let message = format!(
            "sections of sing-box that have no effect here: {}",
            ignored.join(", ")
        );
        report.warning(ConfigPath::root(), message);
    }
}
