//! Refresh processes that are killed.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use http::StatusCode;
use serde_json::Value;
use tollgate_tests::upstream::{Gate, TokenReply, WAIT_MAX};
use tollgate_tests::{Chance, Client, Program, Rig, replace_file, send_signal, turn, unix_in};

use super::{Account, SEED, SOON, check_family, kill, many, refreshing, scene};

/// Waits until the gateway refreshes, and returns the refresh process.
async fn wait_for_refreshing(program: &Program) -> libc::pid_t {
    let begun = Instant::now();
    loop {
        if let Some(id) = refreshing(program).first() {
            return *id;
        }
        assert!(begun.elapsed() < WAIT_MAX, "no refresh:\n{}", program.log());
        tokio::task::yield_now().await;
    }
}

/// Writes a new login over the file, and waits until it is used.
async fn log_in_again(rig: &Rig, tag: &str, client: &Client) {
    let new = rig.upstream.login(&format!("account-{tag}"));
    replace_file(&rig.credential_file(tag), new.auth_json().to_string());
    rig.wait_for_credential(tag, SOON, "ready", |found| found["state"] == "ready")
        .await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!((new.account().turn_count(), new.post_count()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_refresh_process_was_killed_is_not_presented_again_before_a_login() {
    let (rig, login, config) = scene().await;
    let gate = Gate::new();
    login.then_for_token(TokenReply::well().behind(&gate));
    let first = rig.spawn(&config).await;
    gate.wait_until_reached().await;
    kill(wait_for_refreshing(&first).await);
    let answer = first.client().turn(&turn("one")).await;
    assert_eq!(
        answer.json()["error"]["code"],
        "credentials_unavailable",
        "{}",
        answer.text()
    );
    first.kill();
    gate.open();
    let next = rig.spawn(&config).await;
    rig.wait_for_state("a", "login_needed").await;
    let answer = next.client().turn(&turn("one")).await;
    assert_eq!(
        answer.json()["error"]["code"],
        "credentials_unavailable",
        "{}",
        answer.text()
    );
    assert_eq!((login.post_count(), login.reuses()), (1, 0));
    log_in_again(&rig, "a", &next.client()).await;
    next.kill();
}

/// `systemctl kill` sends its signal to every process of a service.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_process_completes_its_work_whatever_signal_comes() {
    let (rig, login, config) = scene().await;
    let gate = Gate::new();
    login.then_for_token(TokenReply::well().behind(&gate));
    let program = rig.spawn(&config).await;
    gate.wait_until_reached().await;
    let id = wait_for_refreshing(&program).await;
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGQUIT,
        libc::SIGALRM,
    ] {
        send_signal(id.unsigned_abs(), signal);
    }
    gate.open();
    let answer = program.client().turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!((login.post_count(), login.reuses()), (1, 0));
    program.kill();
}

/// How many times all refresh processes are killed, each at its own random time.
const CHILD_ROUNDS: usize = 3;

/// How many credentials are refreshed each time.
const CHILDREN: usize = 8;

/// The time from the start of a refresh process to its kill, in microseconds.
const CHILD_LIFE: std::ops::Range<u64> = 0..50_000;

/// Kills each refresh process of the gateway at a random time after its start, until the refresh of
/// each credential has succeeded or failed. Returns how many were killed.
async fn kill_each(rig: &Rig, program: &Program, chance: &mut Chance) -> usize {
    let mut kill_at = HashMap::new();
    let mut killed = HashSet::new();
    let begun = Instant::now();
    while !rig.credentials().await.iter().all(is_over) {
        assert!(
            begun.elapsed() < WAIT_MAX,
            "refreshes go on:\n{}",
            program.log()
        );
        for id in refreshing(program) {
            let at = kill_at
                .entry(id)
                .or_insert_with(|| Instant::now() + chance.within(CHILD_LIFE));
            if *at <= Instant::now() && killed.insert(id) {
                kill(id);
            }
        }
    }
    killed.len()
}

/// Whether the first refresh of a credential with an expired token has ended.
fn is_over(credential: &Value) -> bool {
    let has_new_token = credential["expires_at"].as_u64() > Some(unix_in(0) * 1000);
    has_new_token
        || !credential["refresh_failure"].is_null()
        || credential["state"] == "login_needed"
}

/// Checks that the next gateway can use the credential, if necessary after a login. Returns whether
/// a login was needed: a request shows that, since it waits for the running refresh.
async fn recovers(rig: &Rig, program: &Program, account: &Account, round: usize) -> bool {
    let client = account.client(program);
    let answer = client.turn(&turn("one")).await;
    let needs_login = match answer.status {
        StatusCode::OK => false,
        StatusCode::SERVICE_UNAVAILABLE => true,
        status => panic!(
            "round {round}: {} gets {status}: {}",
            account.tag,
            answer.text()
        ),
    };
    if needs_login {
        rig.wait_for_state(&account.tag, "login_needed").await;
        log_in_again(rig, &account.tag, &client).await;
    }
    check_family(&account.login, round);
    needs_login
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_process_that_is_killed_at_any_moment_never_presents_a_token_twice() {
    let mut chance = Chance::seeded(SEED);
    let (mut kills, mut logins) = (0, 0);
    for round in 0..CHILD_ROUNDS {
        let (rig, accounts, config) = many(CHILDREN).await;
        let program = rig.spawn(&config).await;
        kills += kill_each(&rig, &program, &mut chance).await;
        program.kill();
        // It does not back off: it knows of no failure.
        let program = rig.spawn(&config).await;
        for account in &accounts {
            logins += usize::from(recovers(&rig, &program, account, round).await);
        }
        program.kill();
    }
    println!(
        "{kills} of {} killed, after {logins} a login was needed",
        CHILD_ROUNDS * CHILDREN
    );
    assert!(kills > 0, "no process was killed: the test shows nothing");
}
