//! The section `log`.

use schemars::JsonSchema;
use serde::Deserialize;

/// Where and how the log is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawLog {
    /// Whether no log is written.
    pub(in crate::config) disabled: bool,
    /// The lowest level that is written. Default: `info`.
    pub(in crate::config) level: Option<LogLevel>,
    /// A file, `stdout` or `stderr`. Default: `stderr`.
    pub(in crate::config) output: Option<String>,
    /// Whether lines begin with the time. Default: true.
    pub(in crate::config) timestamp: Option<bool>,
    /// The format: `text` or `json`. Default: `text` on a terminal, `json` elsewhere.
    pub(in crate::config) format: Option<LogFormat>,
}

/// A level of the log, which includes the levels after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Every event, however small.
    Trace,
    /// Details for finding faults.
    Debug,
    /// One line per request.
    Info,
    /// What is unusual, but does no harm yet.
    Warn,
    /// The same as `warn`.
    Warning,
    /// What is wrong and needs an operator.
    Error,
    /// The same as `error`.
    Fatal,
    /// The same as `error`.
    Panic,
}

/// How each event of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// One line of text per event.
    Text,
}
