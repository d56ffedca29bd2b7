//! How a step of the demo ends.

/// The result of a step. A failure names the step and its expectation.
pub(crate) type Outcome<T> = Result<T, String>;
