//! Gateways that are killed during refreshes.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;
use tokio::time::sleep;
use tollgate_tests::upstream::{Gate, TokenReply};
use tollgate_tests::{Chance, Program, Rig, read_json, replace_file, turn};

use super::{
    Account, SEED, SOON, check_family, expire, is_served, kill, many, refreshing, scene,
    wait_for_new_tokens,
};

/// How many gateways are killed one after another, and how many credentials each is refreshing.
const ROUNDS: usize = 200;

const CREDENTIALS: usize = 2;

/// The time from an expiry to the kill, in microseconds: a refresh may have ended by its upper
/// bound.
const BEFORE_KILL: std::ops::Range<u64> = 0..80_000;

/// What is killed in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// The gateway. Its refresh processes continue.
    Gateway,
    /// The gateway and its refresh processes.
    All,
}

/// When the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// At a random time after each expiry.
    ByChance,
    /// While the token endpoint holds its responses to all tokens.
    BeforeTheAnswer,
}

fn of_round(round: usize) -> (Killed, When) {
    match round % 8 {
        0..=3 => (Killed::Gateway, When::ByChance),
        4 => (Killed::Gateway, When::BeforeTheAnswer),
        5 | 6 => (Killed::All, When::ByChance),
        _ => (Killed::All, When::BeforeTheAnswer),
    }
}

/// How far refreshes were when their gateway was killed.
#[derive(Debug, Default)]
struct Stages {
    before: usize,
    /// Between the first write of the journal and its removal.
    within: usize,
    after: usize,
}

impl Stages {
    fn count(&mut self, account: &Account, expired: &Value) {
        let stage = match (
            account.journal.exists(),
            read_json(&account.file) == *expired,
        ) {
            (true, _) => &mut self.within,
            (false, true) => &mut self.before,
            (false, false) => &mut self.after,
        };
        *stage += 1;
    }
}

/// How a refresh ends whose gateway was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The credential works without the operator.
    Good,
    /// The refresh process was killed after it had journaled its intent: the token may be spent.
    MayBeSpent,
    /// The refresh process was killed after it had presented the token and before the response.
    Spent,
}

/// Checks that a new gateway can use all credentials, or needs a login where a token may be spent.
/// No token is presented twice. Returns how many logins were needed.
async fn all_recover(
    rig: &Rig,
    program: &Program,
    accounts: &mut [Account],
    left: &[Left],
    round: usize,
) -> usize {
    let mut logins = 0;
    for (account, left) in accounts.iter_mut().zip(left) {
        let client = account.client(program);
        let needs_login = match left {
            Left::Good => false,
            // A state may be outdated. A request waits for the refresh.
            Left::MayBeSpent | Left::Spent => {
                client.turn(&turn("one")).await.status != StatusCode::OK
            }
        };
        if needs_login {
            rig.wait_for_state(&account.tag, "login_needed").await;
        }
        assert!(
            needs_login || *left != Left::Spent,
            "round {round}: {} keeps using a spent token",
            account.tag
        );
        if needs_login {
            check_family(&account.login, round);
            logins += 1;
            account.login = rig.upstream.login(&format!("account-{}", account.tag));
            replace_file(&account.file, account.login.auth_json().to_string());
            rig.wait_for_credential(&account.tag, SOON, "ready", |found| {
                found["state"] == "ready"
            })
            .await;
        }
        is_served(&client, round).await;
        check_family(&account.login, round);
    }
    logins
}

/// Expires each token, and waits for a random time before the kill.
async fn expire_and_wait(accounts: &[Account], chance: &mut Chance) -> Vec<Value> {
    let mut spans: Vec<Duration> = accounts
        .iter()
        .map(|_| chance.within(BEFORE_KILL))
        .collect();
    spans.sort();
    let kill_at = Instant::now() + spans[spans.len() - 1];
    let mut expired = Vec::new();
    for (account, span) in accounts.iter().zip(spans.into_iter().rev()) {
        // The random moments are the subject of the test.
        sleep((kill_at - span).saturating_duration_since(Instant::now())).await;
        expired.push(expire(&account.file, &account.login));
    }
    sleep(kill_at.saturating_duration_since(Instant::now())).await;
    expired
}

/// Expires each token, and waits until the token endpoint has all of them; it responds once the
/// gate opens.
async fn expire_and_hold(accounts: &[Account], gate: &Gate) -> Vec<Value> {
    let mut expired = Vec::new();
    for account in accounts {
        account
            .login
            .then_for_token(TokenReply::well().behind(gate));
        expired.push(expire(&account.file, &account.login));
    }
    gate.wait_until_reached_times(accounts.len()).await;
    expired
}

/// Runs one round, and returns how each refresh ended.
async fn kill_in_round(
    program: Program,
    accounts: &[Account],
    stages: &mut Stages,
    chance: &mut Chance,
    round: usize,
) -> Vec<Left> {
    let (killed, when) = of_round(round);
    let gate = Gate::new();
    let expired = match when {
        When::ByChance => expire_and_wait(accounts, chance).await,
        When::BeforeTheAnswer => expire_and_hold(accounts, &gate).await,
    };
    if killed == Killed::All {
        refreshing(&program).into_iter().for_each(kill);
    }
    program.kill();
    let left = accounts.iter().zip(&expired).map(|(account, expired)| {
        stages.count(account, expired);
        match (killed, when) {
            (Killed::Gateway, _) => Left::Good,
            (Killed::All, When::BeforeTheAnswer) => Left::Spent,
            (Killed::All, When::ByChance) if account.journal.exists() => Left::MayBeSpent,
            (Killed::All, When::ByChance) => Left::Good,
        }
    });
    let left = left.collect();
    gate.open();
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_during_a_refresh_costs_a_login_only_if_it_hits_the_refresh_process() {
    let mut chance = Chance::seeded(SEED);
    let (rig, mut accounts, config) = many(CREDENTIALS).await;
    let mut stages = Stages::default();
    let mut left = vec![Left::Good; CREDENTIALS];
    let mut logins = 0;
    for round in 0..ROUNDS {
        let program = rig.spawn(&config).await;
        logins += all_recover(&rig, &program, &mut accounts, &left, round).await;
        left = kill_in_round(program, &accounts, &mut stages, &mut chance, round).await;
    }
    let last = rig.spawn(&config).await;
    logins += all_recover(&rig, &last, &mut accounts, &left, ROUNDS).await;
    last.kill();
    println!("{ROUNDS} kills: {stages:?}; {logins} logins needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_after_a_killed_one_waits_for_its_refresh_and_uses_its_tokens() {
    let (rig, login, config) = scene().await;
    let gate = Gate::new();
    login.then_for_token(TokenReply::well().behind(&gate));
    let first = rig.spawn(&config).await;
    gate.wait_until_reached().await;
    first.kill();
    let next = rig.spawn(&config).await;
    let waiting = tokio::spawn({
        let client = next.client();
        async move { is_served(&client, 0).await }
    });
    rig.wait_for_state("a", "refreshing").await;
    assert_eq!(login.post_count(), 1);
    gate.open();
    waiting.await.expect("it is served");
    assert_eq!((login.post_count(), login.rotations()), (1, 1));
    wait_for_new_tokens(&rig.credential_file("a"), &login).await;
    next.kill();
}
