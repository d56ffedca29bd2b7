//! Token refreshes across processes: several gateways on one auth.json, and gateways and refresh
//! processes that are killed at any moment. No refresh token is ever presented twice: that would
//! revoke the login.

#![cfg(target_os = "linux")]

mod gateways;
mod processes;
mod several;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::sleep;
use tollgate_tests::upstream::{Login, WAIT_MAX};
use tollgate_tests::{Client, Program, Rig, read_json, replace_file, turn, user};

/// A change of a file is noticed within this time even on a slow machine.
const SOON: Duration = Duration::from_secs(6);

/// The seed of the random moments.
const SEED: &str = "REFRESH_KILL_SEED";

/// The credential `a` with an expired access token, its login, and a configuration with it only.
async fn scene() -> (Rig, Login, Value) {
    let rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    replace_file(&rig.credential_file("a"), login.renew_with(-60).to_string());
    let config = rig.config(json!({ "credentials": [credential] }));
    (rig, login, config)
}

/// Writes an expired access token into the file and changes nothing else: the refresh token stays.
/// No refresh may be running. Returns the new content.
fn expire(file: &Path, login: &Login) -> Value {
    block_in_place(|| {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(file.with_extension("json.lock"));
        let lock = lock.expect("the folder can be written");
        lock.lock().expect("a file can be locked");
        let mut auth = read_json(file);
        auth["tokens"]["access_token"] = login.renew_with(-60)["tokens"]["access_token"].clone();
        replace_file(file, auth.to_string());
        auth
    })
}

#[track_caller]
fn check_family(login: &Login, round: usize) {
    assert_eq!(
        (login.reuses(), login.is_revoked()),
        (0, false),
        "round {round}: a token was shown twice"
    );
}

async fn is_served(client: &Client, round: usize) {
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.status,
        StatusCode::OK,
        "round {round}: {}",
        answer.text()
    );
}

/// Waits until the file has the newest tokens of the login.
async fn wait_for_new_tokens(file: &Path, login: &Login) {
    let begun = Instant::now();
    while read_json(file)["tokens"] != login.auth_json()["tokens"] {
        assert!(begun.elapsed() < WAIT_MAX, "the file has old tokens");
        sleep(Duration::from_millis(2)).await;
    }
}

/// One of many credentials, and its login.
struct Account {
    tag: String,
    login: Login,
    file: PathBuf,
    journal: PathBuf,
}

/// `count` credentials with expired access tokens, each with its own user.
async fn many(count: usize) -> (Rig, Vec<Account>, Value) {
    let rig = Rig::new().await;
    let (mut accounts, mut credentials, mut users) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let tag = format!("c{number}");
        let (credential, login) = rig.login(&tag);
        let (file, journal) = (
            rig.credential_file(&tag),
            rig.path(&format!("{tag}.json.refresh-journal")),
        );
        replace_file(&file, login.renew_with(-60).to_string());
        users.push(user(&tag, &tag));
        credentials.push(credential);
        accounts.push(Account {
            tag,
            login,
            file,
            journal,
        });
    }
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    (rig, accounts, config)
}

impl Account {
    fn client(&self, program: &Program) -> Client {
        program.client().token(&format!("token-{}", self.tag))
    }
}

/// Returns the refresh processes of this gateway.
fn refreshing(program: &Program) -> Vec<libc::pid_t> {
    let processes = fs::read_dir("/proc").expect("there is /proc");
    let ids = processes.filter_map(|entry| {
        entry
            .ok()?
            .file_name()
            .to_str()?
            .parse::<libc::pid_t>()
            .ok()
    });
    let is_one = |id: &libc::pid_t| {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default();
        // After the name, which is in brackets: its state and its parent.
        let parent = read("stat")
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(program.id()) && read("cmdline").contains("\0refresh-credential\0")
    };
    ids.filter(is_one).collect()
}

fn kill(id: libc::pid_t) {
    // SAFETY: kill has no memory to be unsafe with. The process is the gateway's child, which it
    // reaps when it has ended; ids are not given again so soon.
    unsafe { libc::kill(id, libc::SIGKILL) };
}
