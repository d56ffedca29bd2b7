//! The commands that have a file each. They print, but do not choose exit codes.

pub(super) mod check;
pub(super) mod explain;
pub(super) mod generate;
pub(super) mod health;
pub(super) mod policy;
pub(super) mod run;
pub(super) mod status;
pub(super) mod usage;
