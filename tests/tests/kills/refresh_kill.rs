//! Token refreshes across processes: several gateways on one auth.json, and gateways and refresh
//! processes that are killed at any moment. No refresh token is ever presented twice: that would
//! revoke the login.

#![cfg(target_os = "linux")]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;
use tollgate_tests::upstream::{Gate, Login, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{
    Chance, Client, Program, Rig, ask_socket, read_json, replace_file, turn, unix_in, user,
};

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

// Several gateways

const GATEWAYS: usize = 8;
const EXPIRIES: usize = 10;

/// Starts gateways on the same credentials, each with its own data folder.
async fn start_several(rig: &Rig, config: &Value, count: usize) -> Vec<Program> {
    let mut starting = JoinSet::new();
    for number in 0..count {
        let mut config = config.clone();
        config["data_dir"] = json!(rig.path(&format!("data-{number}")));
        let file = rig.write(&format!("config-{number}.json"), config.to_string());
        let (ready, log) = (
            rig.path(&format!("ready-{number}.json")),
            rig.path(&format!("{number}.log")),
        );
        starting.spawn(async move { Program::start(&file, ready, log).await });
    }
    starting.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_gateways_on_one_file_present_no_token_twice_and_all_work() {
    let (rig, login, config) = scene().await;
    let file = rig.credential_file("a");
    let gateways = start_several(&rig, &config, GATEWAYS).await;
    for expiry in 1..=EXPIRIES {
        let mut requests = JoinSet::new();
        for client in gateways.iter().map(Program::client) {
            requests.spawn(async move { is_served(&client, expiry).await });
        }
        requests.join_all().await;
        login.wait_for_posts(expiry).await;
        wait_for_new_tokens(&file, &login).await;
        check_family(&login, expiry);
        assert_eq!(
            (login.post_count(), login.rotations()),
            (expiry, expiry),
            "one refresh for all"
        );
        expire(&file, &login);
    }
    gateways.into_iter().for_each(Program::kill);
}

/// Returns when the tokens that this gateway of [`start_several`] knows were issued.
async fn known(rig: &Rig, number: usize) -> Value {
    let socket = rig.path(&format!("data-{number}")).join("admin.sock");
    let status = ask_socket(&socket, Method::GET, "/status").await.json();
    status["services"][0]["credentials"][0]["refreshed_at"].clone()
}

/// Runs two gateways on one file whose new tokens are all useless. They refresh a few times, and do
/// not take turns because of each other's tokens.
async fn check_useless_tokens(spoil: impl FnOnce(&Login)) {
    let (rig, login, config) = scene().await;
    spoil(&login);
    let gateways = start_several(&rig, &config, 2).await;
    for request in 0..10 {
        for gateway in &gateways {
            let status = gateway.client().turn(&turn("one")).await.status;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            // Each gateway loads the tokens that the other one was issued.
            let begun = Instant::now();
            while known(&rig, 0).await != known(&rig, 1).await && login.post_count() <= 4 {
                assert!(
                    begun.elapsed() < WAIT_MAX,
                    "the file is known to one of them only"
                );
            }
            assert!(
                login.post_count() <= 4,
                "{} refreshes after {request} requests",
                login.post_count()
            );
        }
    }
    check_family(&login, 0);
    gateways.into_iter().for_each(Program::kill);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_file_do_not_refresh_in_turns_if_upstream_rejects_every_token() {
    let refusal = || Reply::error(401, "invalid_request_error", "expired");
    check_useless_tokens(|login| drop(login.account().always(refusal()).clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_file_do_not_refresh_in_turns_if_tokens_have_expired_when_issued() {
    check_useless_tokens(|login| drop(login.lifetime(Duration::ZERO).clone())).await;
}

// Gateways that are killed

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

/// When that is.
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
            "round {round}: {} goes on with what is spent",
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

// Refresh processes that are killed

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

fn kill(id: libc::pid_t) {
    // SAFETY: kill has no memory to be unsafe with. The process is the gateway's child, which it
    // reaps when it has ended; ids are not given again so soon.
    unsafe { libc::kill(id, libc::SIGKILL) };
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
