//! The upstream of the bench as a separate process: binds a free port, announces it in the ready
//! file, and serves.

use std::{io, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use tokio::net::TcpListener;
use tollgate_bench::{
    answers::{Answers, StreamPlan},
    ready, upstream,
};

/// Replies to the requests of the bench with precomputed bytes.
#[derive(Parser)]
struct UpstreamArguments {
    /// Where to write the address once it listens
    #[arg(long)]
    ready_file: PathBuf,
    /// Deltas in each event stream
    #[arg(long, default_value_t = 2000)]
    deltas: usize,
    /// Events per write in bursts
    #[arg(long, default_value_t = 16)]
    burst: usize,
    /// Microseconds between two writes of a stream
    #[arg(long, default_value_t = 1000)]
    pace_us: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments = UpstreamArguments::parse();
    let plan = StreamPlan {
        deltas: arguments.deltas,
        burst: arguments.burst,
    };
    let answers = Arc::new(Answers::new(plan));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    ready::announce(&arguments.ready_file, listener.local_addr()?)?;
    upstream::serve(listener, answers, Duration::from_micros(arguments.pace_us)).await;
    Ok(())
}
