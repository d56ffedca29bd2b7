//! What operators see and do: commands, configuration, admin listener, metrics, log, full disks.

mod admin;
mod canary;
mod cli;
mod config;
mod configure;
mod connect;
mod deploy;
mod docs;
mod drop_in;
mod full_disk;
mod log;
mod metrics;
mod service_manager;
