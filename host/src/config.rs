//! Floor 1: the configuration. Owns its file format, its checks and its resolved form; refuses to know what the
//! gateway does with it. A [`Config`] holds only what can be used as it is.

pub mod duration;
pub mod raw;
pub mod resolve;
pub mod shape;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Uri;
use http::{HeaderName, HeaderValue};
use schemars::generate::SchemaSettings;
use serde_json::Value;

pub use raw::{LogFormat, LogLevel, OnFailure, PolicyKind};
pub use shape::{ConfigProblem, SchemaValidator};

use crate::files::read_bounded;
use crate::values::limits::{CONFIG_FILE_BYTES, Limits};
use crate::values::secret::SecretString;

/// Top-level keys of sing-box that Tollgate skips.
const SKIPPED_KEYS: [&str; 8] = [
    "dns",
    "route",
    "inbounds",
    "ntp",
    "experimental",
    "endpoints",
    "certificate",
    "certificate_providers",
];

/// A configuration whose every field can be used as it is.
#[derive(Debug)]
pub struct Config {
    /// The log.
    pub log: LogConfig,
    /// The services, at least one.
    pub services: Vec<ServiceConfig>,
    /// Every policy that is in use or configured, shipped ones included. [`PolicyId`] is an index into it.
    pub policies: Vec<PolicyConfig>,
    /// The folder of the ledger.
    pub data_dir: PathBuf,
    /// The listener for operators.
    pub admin: Option<AdminConfig>,
    /// The bounds.
    pub limits: Limits,
}

/// The listener for operators.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminConfig {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What operators show; always there where the address is not loopback.
    pub token: Option<SecretString>,
}

/// A policy's place in [`Config::policies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyId(pub usize);

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// No log at all.
    pub disabled: bool,
    /// The least level that is written.
    pub level: LogLevel,
    /// Where it is written.
    pub output: LogOutput,
    /// Whether lines begin with the time.
    pub timestamp: bool,
    /// Its form; none: by whether the output is a terminal.
    pub format: Option<LogFormat>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            disabled: false,
            level: LogLevel::Info,
            output: LogOutput::Stderr,
            timestamp: true,
            format: None,
        }
    }
}

/// Where the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// A service.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Its name.
    pub tag: String,
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// TLS towards clients, where they speak it.
    pub tls: Option<TlsConfig>,
    /// The users. None: everybody who reaches the service.
    pub users: Vec<UserConfig>,
    /// The credentials.
    pub credentials: Vec<CredentialConfig>,
    /// What a user may be given: each credential as a pool of its own, in the same order, then the configured pools.
    pub pools: Vec<PoolConfig>,
    /// The pool of requests without a user: the first entry of `credentials`.
    pub default_pool: usize,
    /// Where upstream is.
    pub endpoints: UpstreamEndpoints,
    /// The pricing policy.
    pub pricer: PolicyId,
    /// The rewriting policies, in order.
    pub rewriters: Vec<PolicyId>,
}

/// A user.
#[derive(Debug, Clone)]
pub struct UserConfig {
    /// Its name, unique.
    pub name: String,
    /// What its clients send, unique.
    pub token: SecretString,
    /// Its pool: an index into [`ServiceConfig::pools`].
    pub pool: usize,
    /// Whether other gateways may serve it.
    pub allow_external_usage: bool,
}

/// A credential.
#[derive(Debug, Clone)]
pub struct CredentialConfig {
    /// Its name.
    pub tag: String,
    /// What it is.
    pub source: CredentialSource,
    /// Its usage file.
    pub usages_path: Option<PathBuf>,
    /// At how many percent of a window it pauses.
    pub caps: WindowCaps,
    /// How often upstream is asked for its use.
    pub poll_interval: Duration,
}

/// What a credential is.
#[derive(Debug, Clone, PartialEq)]
pub enum CredentialSource {
    /// An auth.json.
    File(PathBuf),
    /// Another gateway.
    External {
        /// Where it listens, without a slash at its end.
        url: Uri,
        /// What it knows this gateway by.
        token: SecretString,
    },
}

/// At how many percent of each window a credential pauses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowCaps {
    /// Of the 5-hour window.
    pub five_hour: f64,
    /// Of the weekly window.
    pub weekly: f64,
}

/// A pool of credentials.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Its name.
    pub tag: String,
    /// Its members: indices into [`ServiceConfig::credentials`].
    pub members: Vec<usize>,
    /// Where the list of its members stands in the file; empty where it is a credential alone.
    pub members_from: String,
    /// Who chooses among them.
    pub balancer: PolicyId,
    /// Whether it is a credential alone, which may be an API key.
    pub single: bool,
    /// Whether all its members are other gateways.
    pub only_external: bool,
}

/// Where upstream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamEndpoints {
    /// The backend of ChatGPT, without a slash at its end.
    pub chatgpt: Uri,
    /// The API, without a slash at its end.
    pub api: Uri,
    /// Where tokens are refreshed.
    pub token: Uri,
}

/// TLS towards clients. The PEM texts are read, and not yet parsed.
#[derive(Clone)]
pub struct TlsConfig {
    /// The certificate chain, in PEM.
    pub certificate: Vec<u8>,
    /// The private key, in PEM.
    pub key: SecretString,
    /// The JSON path of each, for errors.
    pub certificate_from: String,
    /// The JSON path of the key.
    pub key_from: String,
    /// The protocols that are offered, the preferred first.
    pub alpn: Vec<Vec<u8>>,
    /// The least version.
    pub min_version: TlsVersion,
    /// The greatest version.
    pub max_version: TlsVersion,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("alpn", &self.alpn)
            .finish_non_exhaustive()
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246
    V1_2,
    /// RFC 8446
    V1_3,
}

/// A policy.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// Its name in the log and in errors.
    pub tag: String,
    /// Where it stands in the file; empty for a shipped one that the file does not name.
    pub path_in_config: String,
    /// What it decides.
    pub kind: PolicyKind,
    /// Where its component is.
    pub source: PolicySource,
    /// Its configuration.
    pub config: Value,
    /// How long one call may take.
    pub timeout: Duration,
    /// How much memory an instance may have, in bytes.
    pub memory: usize,
    /// For a rewriter: what happens to a request when it fails.
    pub on_failure: OnFailure,
    /// A component that is run beside it.
    pub shadow: Option<PathBuf>,
    /// Where its calls are recorded.
    pub record: Option<PathBuf>,
}

impl PolicyConfig {
    /// A shipped policy, as it is where nothing is said of it.
    pub fn shipped(name: &'static str, kind: PolicyKind, config: Value) -> Self {
        Self {
            tag: name.to_owned(),
            path_in_config: String::new(),
            kind,
            source: PolicySource::Shipped(name),
            config,
            timeout: POLICY_TIMEOUT,
            memory: POLICY_MEMORY,
            on_failure: OnFailure::Refuse,
            shadow: None,
            record: None,
        }
    }

    /// The same in another place: what its files are, and how it is run, is the same, and so is what it decides.
    pub fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.source == other.source
            && self.config == other.config
            && self.timeout == other.timeout
            && self.memory == other.memory
            && self.on_failure == other.on_failure
            && self.shadow == other.shadow
            && self.record == other.record
    }
}

/// How long a policy's call may take by default.
pub const POLICY_TIMEOUT: Duration = Duration::from_millis(5);
/// How much memory a policy's instance may have by default, in bytes.
pub const POLICY_MEMORY: usize = 16 * 1024 * 1024;

/// Where a policy's component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicySource {
    /// In the binary, under that name.
    Shipped(&'static str),
    /// A file.
    File(PathBuf),
}

/// Header fields in a form that a rewriter's configuration takes.
pub(crate) type HeaderFields = Vec<(HeaderName, Vec<HeaderValue>)>;

/// A configuration and what an operator should know about it.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// What was skipped or is risky.
    pub warnings: Vec<ConfigProblem>,
}

/// A configuration that cannot be used: every reason at once.
#[derive(Debug)]
pub struct ConfigError {
    /// What is wrong, each at its place.
    pub problems: Vec<ConfigProblem>,
    /// What was skipped or is risky besides.
    pub warnings: Vec<ConfigProblem>,
    /// The rest of it, where that can be looked at further.
    pub rest: Option<Box<Config>>,
}

impl ConfigError {
    fn whole(message: String) -> Self {
        Self {
            problems: vec![ConfigProblem::new("", message)],
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

/// What the gateway does without a configuration: the first example of the OCM document.
pub const DEFAULT_CONFIG: &str =
    r#"{"services": [{"type": "ocm", "listen": "127.0.0.1", "listen_port": 8080}]}"#;

/// Reads the configuration in the file at `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<LoadedConfig, ConfigError> {
    let bytes = read_bounded(path, CONFIG_FILE_BYTES)
        .map_err(|what| ConfigError::whole(format!("cannot read it: {what}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        ConfigError::whole(format!(
            "expected UTF-8, found another encoding at byte {place}"
        ))
    })?;
    parse(text)
}

/// Reads the configuration `text`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(mut text: String) -> Result<LoadedConfig, ConfigError> {
    if text.trim().is_empty() {
        return Err(ConfigError::whole(
            "expected a JSON object, found an empty file".to_owned(),
        ));
    }
    strip_comments(&mut text)?;
    let mut value: Value = serde_json::from_str(&text).map_err(|error| {
        // Only the place: what stands there may be a secret.
        let (line, column) = (error.line(), error.column());
        ConfigError::whole(format!(
            "line {line} column {column}: expected JSON, found something else"
        ))
    })?;
    let mut warnings = skip_known_keys(&mut value);
    let shape = shape();
    let mut problems = shape.problems("", &value);
    // What is of the wrong form is taken out, so that the rest can be looked at in the same run.
    if !problems.is_empty() {
        problems
            .iter()
            .for_each(|problem| take_out(&mut value, &problem.path));
        if !shape.problems("", &value).is_empty() {
            return Err(ConfigError {
                problems,
                warnings,
                rest: None,
            });
        }
    }
    let raw: raw::RawConfig = serde_json::from_value(value).map_err(|_| {
        ConfigError::whole("expected the shape that `tollgate config-schema` prints".to_owned())
    })?;
    let mut found = Vec::new();
    let config = resolve::resolve(&raw, &mut found, &mut warnings);
    let known: Vec<String> = problems
        .iter()
        .map(|problem| problem.path.clone())
        .collect();
    problems.extend(
        found
            .into_iter()
            .filter(|problem| !follows_from(&problem.path, &known)),
    );
    match config {
        Some(config) if problems.is_empty() => Ok(LoadedConfig { config, warnings }),
        rest => Err(ConfigError {
            problems,
            warnings,
            rest: rest.map(Box::new),
        }),
    }
}

fn strip_comments(text: &mut String) -> Result<(), ConfigError> {
    const END: char = '\u{1}';
    let unended = || ConfigError::whole("expected JSON, found a comment without an end".to_owned());
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        *text = rest.to_owned();
    }
    // A mark behind the end: a comment that has none would swallow it.
    text.push('\n');
    text.push(END);
    json_strip_comments::strip(text).map_err(|_| unended())?;
    if text.pop() != Some(END) {
        return Err(unended());
    }
    if text.trim().is_empty() {
        return Err(ConfigError::whole(
            "expected a JSON object, found only comments".to_owned(),
        ));
    }
    Ok(())
}

/// Takes out what stands at `path`. A list keeps its length, so that other paths stay right: it goes as a whole.
fn take_out(value: &mut Value, path: &str) {
    let mut here = value;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        let (name, indices) = key
            .split_once('[')
            .map_or((key, ""), |(name, rest)| (name, rest));
        let last = keys.peek().is_none() && indices.is_empty();
        let Some(object) = here.as_object_mut() else {
            return;
        };
        if last {
            object.shift_remove(name);
            return;
        }
        let Some(next) = object.get_mut(name) else {
            return;
        };
        here = next;
        for index in indices
            .trim_end_matches(']')
            .split("][")
            .filter(|index| !index.is_empty())
        {
            let Some(item) = index
                .parse::<usize>()
                .ok()
                .and_then(|index| here.get_mut(index))
            else {
                return;
            };
            here = item;
        }
    }
}

/// Whether a problem at `path` may be there only because something at one of `known` was taken out.
fn follows_from(path: &str, known: &[String]) -> bool {
    let within = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    known
        .iter()
        .any(|known| within(path, known) || within(known, path))
}

/// The JSON Schema of the configuration (draft 2020-12).
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator
        .into_root_schema_for::<raw::RawConfig>()
        .to_value()
}

fn shape() -> SchemaValidator {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<raw::RawConfig>()
        .to_value();
    SchemaValidator::new(schema)
        .unwrap_or_else(|error| unreachable!("the schema of our own types: {error}"))
}

fn skip_known_keys(value: &mut Value) -> Vec<ConfigProblem> {
    let Some(object) = value.as_object_mut() else {
        return Vec::new();
    };
    let skipped: Vec<&str> = SKIPPED_KEYS
        .into_iter()
        .filter(|key| object.shift_remove(*key).is_some())
        .collect();
    if skipped.is_empty() {
        return Vec::new();
    }
    vec![ConfigProblem::new(
        "",
        format!(
            "skipped: {} (sing-box's, of no meaning here)",
            skipped.join(", ")
        ),
    )]
}
