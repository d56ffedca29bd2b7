//! The log: text on a terminal, JSON elsewhere.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};
use crate::files::io_reason;

/// Starts the log of this process.
///
/// # Errors
/// The log file cannot be opened.
pub(super) fn start(config: &LogConfig) -> Result<(), String> {
    if config.disabled {
        return Ok(());
    }
    let (writer, is_terminal) = writer(&config.output)?;
    let text = match config.format {
        Some(format) => format == LogFormat::Text,
        None => is_terminal,
    };
    let base = fmt::layer().with_writer(writer).with_ansi(is_terminal);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match (text, config.timestamp) {
        (true, true) => Box::new(base),
        (true, false) => Box::new(base.without_time()),
        (false, true) => Box::new(base.json().flatten_event(true)),
        (false, false) => Box::new(base.json().flatten_event(true).without_time()),
    };
    // Only our own events: those of libraries may contain secrets.
    let filter = Targets::new().with_target("tollgate", level(config.level));
    let started = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
    started.map_err(|error| format!("log: {error}"))
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Fatal | LogLevel::Panic => LevelFilter::ERROR,
    }
}

fn writer(output: &LogOutput) -> Result<(BoxMakeWriter, bool), String> {
    Ok(match output {
        LogOutput::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
        LogOutput::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        LogOutput::File(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path);
            let file = file.map_err(|error| {
                format!(
                    "log.output: cannot open {}: {}",
                    path.display(),
                    io_reason(&error)
                )
            })?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    })
}
