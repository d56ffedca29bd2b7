//! A gateway that is killed while policies are reloaded: the next one serves, and what a client saw whole is in the ledger.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use http::{Method, StatusCode};
use rusqlite::{Connection, OpenFlags};
use tokio::process::Command;
use tollgate_tests::{
    Chance, Client, Conduct, OWN, Rig, binary, marked_pricer, policy, rows, turn,
};

const ROUNDS: usize = 8;
/// From ready to the kill, in microseconds.
const LIFE: std::ops::Range<u64> = 20_000..600_000;

/// Sends requests until the gateway is gone. Returns the names of the responses seen whole.
async fn ask_until_it_dies(client: Client, seen: Arc<Mutex<Vec<String>>>) {
    let client = client
        .token("token-alice")
        .header("content-type", "application/json");
    while let Ok(stream) = client
        .try_send(Method::POST, "/v1/responses", turn("one").to_string())
        .await
    {
        let answer = stream.finish().await;
        if !answer.whole {
            return;
        }
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        seen.lock()
            .expect("no holder panics")
            .push(answer.request_id());
    }
}

fn is_whole(ledger: &std::path::Path) {
    let connection = Connection::open_with_flags(ledger, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the ledger opens");
    let said: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("it can be checked");
    assert_eq!(said, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_reloads_leaves_a_gateway_that_starts_and_a_whole_ledger() {
    let mut chance = Chance::seeded("KILL_SEED");
    let rig = Rig::new().await;
    rig.write("own.wasm", marked_pricer(1, Conduct::Fine));
    let config = rig.priced();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for round in 0..ROUNDS {
        let program = rig.spawn(&config).await;
        let clients: Vec<_> = (0..2)
            .map(|_| tokio::spawn(ask_until_it_dies(program.client(), Arc::clone(&seen))))
            .collect();
        let life = tokio::time::sleep(chance.within(LIFE));
        tokio::pin!(life);
        // Each of another component: read, compiled, kept on disk, swapped, whatever the kill falls upon.
        for number in 1.. {
            rig.replace_own(&marked_pricer(
                (round * 1000 + number) as u64,
                Conduct::Fine,
            ));
            tokio::select! {
                () = &mut life => break,
                () = reload(&rig) => {}
            }
        }
        program.kill();
        for client in clients {
            client.await.expect("a client does not panic");
        }
        is_whole(&rig.ledger());
        let rows = rows(&rig.ledger());
        let ids: BTreeSet<&str> = rows
            .iter()
            .map(|row| row.text("request_id").expect("a name"))
            .collect();
        assert_eq!(ids.len(), rows.len(), "round {round}: recorded twice");
        let seen = seen.lock().expect("no holder panics");
        let lost: Vec<_> = seen
            .iter()
            .filter(|id| !ids.contains(id.as_str()))
            .collect();
        assert!(
            lost.is_empty(),
            "round {round}: seen whole and not recorded: {lost:?}"
        );
    }
    let program = rig.spawn(&config).await;
    assert_eq!(policy(&rig.socket(), OWN).await["state"], "serving");
    assert_eq!(
        program
            .client()
            .token("token-alice")
            .turn(&turn("last"))
            .await
            .status,
        StatusCode::OK
    );
    assert!(
        rows(&rig.ledger())
            .iter()
            .all(|row| row.number("cost_nanousd").is_some() || row.text("end") != Some("complete"))
    );
    assert!(
        !seen.lock().expect("no holder panics").is_empty(),
        "nothing was seen whole: the test shows nothing"
    );
    program.kill();
}

/// Reloads as an operator does; the gateway may be gone.
async fn reload(rig: &Rig) {
    let mut command = Command::new(binary());
    command
        .args(["policy", "reload", OWN, "-c"])
        .arg(rig.path("config.json"));
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    // The result does not matter: the next start shows whether the reload was complete.
    let _ = child.await;
}
