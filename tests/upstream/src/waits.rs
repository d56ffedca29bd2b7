//! What tests wait with: counters that only grow, and gates that hold a reply.

pub(crate) mod count;
pub(crate) mod gate;
