//! Policies: the components of the tests, a configuration with one of them, and the state that the
//! gateway reports.

pub(crate) mod component;
pub(crate) mod conduct;
pub(crate) mod pricing;
pub(crate) mod state;
