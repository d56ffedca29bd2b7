//! The value of a limit: its types, and how an operator writes it.

use std::fmt;
use std::time::Duration;

/// What to do with new requests while the ledger cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFull {
    /// Reject them with 503: no response goes unrecorded.
    Refuse,
    /// Forward them. Up to `settle_queue` rows wait in memory; further rows are written to the log.
    Serve,
}

impl LedgerFull {
    /// All choices, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Refuse, Self::Serve];

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Serve => "serve",
        }
    }

    /// What the choice means, for the schema.
    pub fn description(self) -> &'static str {
        match self {
            Self::Refuse => "Requests are rejected with 503.",
            Self::Serve => {
                "Requests are forwarded. Their rows wait in memory, and are written to the log when there is no more room."
            }
        }
    }
}

/// The value of a limit, whatever its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitValue {
    /// A size in bytes, or a count.
    Number(u64),
    /// The length of a wait.
    Duration(Duration),
    /// Whether something is done.
    Switch(bool),
    /// A choice for `limits.ledger_full`.
    LedgerFull(LedgerFull),
}

impl fmt::Display for LimitValue {
    /// Writes the value as an operator writes it in the configuration, without quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Duration(duration) => write_duration(*duration, f),
            Self::Switch(switch) => switch.fmt(f),
            Self::LedgerFull(choice) => f.write_str(choice.as_str()),
        }
    }
}

/// Writes `duration` with the largest unit that gives a whole number; one minute is `60s`.
fn write_duration(duration: Duration, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (seconds, micros) = (duration.as_secs(), duration.subsec_micros());
    match (seconds, micros) {
        (0, micros) if micros % 1000 != 0 => write!(f, "{micros}us"),
        (_, micros) if micros != 0 => write!(f, "{}ms", duration.as_millis()),
        (seconds, _) if seconds != 0 && seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
        (seconds, _) if seconds > 60 && seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
        (seconds, _) => write!(f, "{seconds}s"),
    }
}

/// A type that a limit can have.
pub(super) trait LimitField: Sized {
    fn to_value(&self) -> LimitValue;
    fn from_value(value: LimitValue) -> Option<Self>;
}

macro_rules! limit_field {
    ($type:ty, $variant:ident) => {
        impl LimitField for $type {
            fn to_value(&self) -> LimitValue {
                LimitValue::$variant((*self).into())
            }

            fn from_value(value: LimitValue) -> Option<Self> {
                match value {
                    LimitValue::$variant(value) => value.try_into().ok(),
                    _ => None,
                }
            }
        }
    };
}

limit_field!(u64, Number);
limit_field!(u32, Number);
limit_field!(Duration, Duration);
limit_field!(bool, Switch);
limit_field!(LedgerFull, LedgerFull);
