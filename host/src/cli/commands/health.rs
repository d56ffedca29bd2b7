//! `tollgate health`: whether the running gateway serves, for containers that have no HTTP client.

use std::path::PathBuf;

use crate::cli::admin_client::{get, in_runtime};
use crate::cli::configuration::load;
use crate::cli::error::CommandFailure;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct HealthArgs {
    /// The configuration file, which names the data_dir.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Succeed if the gateway responds, even while it shuts down or cannot write its ledger.
    #[arg(long)]
    live: bool,
}

pub(in crate::cli) fn health(args: &HealthArgs) -> Result<(), CommandFailure> {
    let config = load(args.config.as_deref())?.config;
    let path = if args.live { "/healthz" } else { "/readyz" };
    in_runtime(get(&config, path)).map(drop)
}
