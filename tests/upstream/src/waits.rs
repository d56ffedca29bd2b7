//! What tests wait with: counters that only grow, and gates that hold a reply.

pub(crate) mod count;
pub(crate) mod gate;

use std::time::Duration;

/// How long any wait in this crate lasts before it panics with what was seen instead.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
