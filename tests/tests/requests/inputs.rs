//! Generated inputs: the parsers of what peers send, and sequences of events for a credential.

mod parsers;
mod properties;
