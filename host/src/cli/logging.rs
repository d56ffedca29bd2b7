//! The log: text on a terminal, JSON elsewhere.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};
use crate::files::io_reason;
use crate::platform::AccessOptions;

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("log.output: cannot open {}: {}", path.display(), io_reason(error))]
    Open { path: PathBuf, error: io::Error },
    /// The process has a log already.
    #[error("log: {0}")]
    Started(#[from] TryInitError),
}

/// Starts the log of this process.
///
/// # Errors
/// The log file cannot be opened.
pub(super) fn start(config: &LogConfig) -> Result<(), LogError> {
    if config.disabled {
        return Ok(());
    }
    let (writer, is_terminal) = writer(&config.output)?;
    let format = config.format.unwrap_or(if is_terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let base = fmt::layer().with_writer(writer).with_ansi(is_terminal);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match (format, config.timestamp) {
        (LogFormat::Text, true) => Box::new(base),
        (LogFormat::Text, false) => Box::new(base.without_time()),
        (LogFormat::Json, true) => Box::new(base.json().flatten_event(true)),
        (LogFormat::Json, false) => Box::new(base.json().flatten_event(true).without_time()),
    };
    // Only our own events: those of libraries may contain secrets.
    let filter = Targets::new().with_target("tollgate", level(config.level));
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(())
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn | LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Fatal | LogLevel::Panic => LevelFilter::ERROR,
    }
}

/// Opens what the log is written to. Returns it, and whether it is a terminal.
fn writer(output: &LogOutput) -> Result<(BoxMakeWriter, bool), LogError> {
    Ok(match output {
        LogOutput::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
        LogOutput::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        LogOutput::File(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .private()
                .open(path);
            let file = file.map_err(|error| LogError::Open {
                path: path.clone(),
                error,
            })?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    })
}
