//! The demo: two users, the real gateway, and a scripted upstream with three accounts.
//!
//! Owns the order of the tour and its exit code. Invariant: the exit code is 0 only if everything
//! that the tour prints has happened.

mod gateway;
mod ledger;
mod outcome;
mod scene;
mod table;
mod tour;
mod visitor;

use std::io;
use std::process::ExitCode;

use gateway::Gateway;
use outcome::Outcome;
use scene::Scene;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\ndemo: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome<()> {
    let scene = Scene::set().await?;
    let mut gateway = Gateway::start(&scene).await?;
    let toured = stay_for_the_tour(&scene, &mut gateway).await;
    let stopped = gateway.stop().await;
    let outcome = toured
        .and(stopped)
        .map_err(|failure| format!("{failure}{}", scene.log_tails()));
    scene.clear_away()?;
    outcome?;
    println!("The gateway has stopped, and the temporary folder is gone.");
    Ok(())
}

async fn stay_for_the_tour(scene: &Scene, gateway: &mut Gateway) -> Outcome<()> {
    let mut farewell =
        Farewell::listen().map_err(|error| format!("cannot wait for signals: {error}"))?;
    tokio::select! {
        toured = tour::guide(scene, gateway) => toured?,
        () = farewell.said() => return Err("interrupted before the tour was over".to_owned()),
    }
    if std::env::var_os("DEMO_ONCE").is_some_and(|once| once == "1") {
        return Ok(());
    }
    tour::tell_how_to_join(gateway);
    tokio::select! {
        failure = gateway.wait_for_exit() => Err(failure),
        () = farewell.said() => Ok(()),
    }
}

/// Waits for SIGINT or SIGTERM.
struct Farewell {
    interrupt: Signal,
    terminate: Signal,
}

impl Farewell {
    fn listen() -> io::Result<Self> {
        Ok(Farewell {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn said(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
