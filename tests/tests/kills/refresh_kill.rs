//! Refreshing across processes: several gateways on one auth.json, and gateways and refreshing processes that are
//! killed at any instant. No refresh token is ever shown twice: that would revoke the login.

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
    Chance, Client, Program, Rig, ask_socket, read_json, replace_file, turn, unix_in,
};

/// A change of a file shows by then, on a slow machine too.
const SOON: Duration = Duration::from_secs(6);

/// The seed of the instants.
const SEED: &str = "REFRESH_KILL_SEED";

/// The credential `a`, whose access token has expired, its login, and a configuration with it alone.
async fn scene() -> (Rig, Login, Value) {
    let rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    replace_file(&rig.credential_file("a"), login.renew_with(-60).to_string());
    let config = rig.config(json!({ "credentials": [credential] }));
    (rig, login, config)
}

/// Puts an access token that has expired into the file, and nothing else: the refresh token stays the one that was
/// written there. Nobody refreshes meanwhile. Answers what is in the file now.
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

/// Starts gateways on the same credentials, each in a folder of its own.
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
async fn eight_gateways_on_one_file_use_no_token_twice_and_all_serve() {
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

/// When the tokens were made that this gateway knows, of those that [`start_several`] started.
async fn known(rig: &Rig, number: usize) -> Value {
    let socket = rig.path(&format!("data-{number}")).join("admin.sock");
    let status = ask_socket(&socket, Method::GET, "/status").await.json();
    status["services"][0]["credentials"][0]["refreshed_at"].clone()
}

/// Two gateways on one file ask for tokens, and none that they get helps. They ask a few times, and not in turns, each
/// because of what the other was given.
async fn check_useless_tokens(spoil: impl FnOnce(&Login)) {
    let (rig, login, config) = scene().await;
    spoil(&login);
    let gateways = start_several(&rig, &config, 2).await;
    for request in 0..10 {
        for gateway in &gateways {
            let status = gateway.client().turn(&turn("one")).await.status;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            // What one of them was given, the other gets to know.
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
async fn two_gateways_on_one_file_do_not_refresh_in_turns_where_upstream_refuses_every_token() {
    let refusal = || Reply::error(401, "invalid_request_error", "expired");
    check_useless_tokens(|login| drop(login.account().always(refusal()).clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_on_one_file_do_not_refresh_in_turns_where_tokens_have_expired_when_they_are_given()
 {
    check_useless_tokens(|login| drop(login.lifetime(Duration::ZERO).clone())).await;
}

// Gateways that are killed

/// So many gateways are killed, one after another, and each in the middle of the refreshes of so many credentials.
const ROUNDS: usize = 200;
const CREDENTIALS: usize = 2;

/// From an expiry to the kill, in microseconds: a refresh may be over by the end of it.
const BEFORE_KILL: std::ops::Range<u64> = 0..80_000;

/// What is killed in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// The gateway. What refreshes for it goes on.
    Gateway,
    /// The gateway, and the processes by which it refreshes.
    All,
}

/// When that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// So long after each expiry as chance says.
    ByChance,
    /// While the token endpoint has every token and holds its answer.
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

/// A credential of many, and its login.
struct Account {
    tag: String,
    login: Login,
    file: PathBuf,
    journal: PathBuf,
}

/// So many credentials whose access tokens have expired, each for a user of its own.
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
        users.push(json!({ "name": tag, "token": format!("token-{tag}"), "credential": tag }));
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
    /// Between the journal's first note and its end.
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

/// What is left of a refresh when its gateway has been killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It is served without anybody's help.
    Good,
    /// The process that refreshed it was killed, and had noted that it would show the token: it may be spent.
    MayBeSpent,
    /// That process was killed after it had shown the token, and before there was an answer.
    Spent,
}

/// All are served by a gateway that has just started, or somebody must log in first where a token may be spent. No token is
/// shown twice. Answers how often somebody had to log in.
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
            // A state shows what was known then. A request waits for what becomes of it.
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

/// Each token expires, and then the gateway is killed: so much later as chance says.
async fn expire_and_wait(accounts: &[Account], chance: &mut Chance) -> Vec<Value> {
    let mut spans: Vec<Duration> = accounts
        .iter()
        .map(|_| chance.within(BEFORE_KILL))
        .collect();
    spans.sort();
    let kill_at = Instant::now() + spans[spans.len() - 1];
    let mut expired = Vec::new();
    for (account, span) in accounts.iter().zip(spans.into_iter().rev()) {
        // The instants are what is tested.
        sleep((kill_at - span).saturating_duration_since(Instant::now())).await;
        expired.push(expire(&account.file, &account.login));
    }
    sleep(kill_at.saturating_duration_since(Instant::now())).await;
    expired
}

/// Each token expires, and the token endpoint has all of them and answers none until the gate opens.
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

/// One round. Answers what is left of each refresh.
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
async fn a_kill_at_any_instant_of_a_refresh_never_costs_a_login_but_where_it_took_the_refreshing_process()
 {
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
    println!("{ROUNDS} kills: {stages:?}; {logins} times somebody had to log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_after_a_killed_one_waits_for_its_refresh_and_serves_with_it() {
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

// Refreshing processes that are killed

/// The processes by which this gateway refreshes.
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

/// Waits until the gateway refreshes. Answers the process by which it does.
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
    // SAFETY: kill has no memory to be unsafe with. The process is the gateway's child, which it reaps when it has
    // ended; ids are not given again so soon.
    unsafe { libc::kill(id, libc::SIGKILL) };
}

/// A new login is written over the file. It is served soon.
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
async fn a_token_whose_refreshing_process_was_killed_is_not_shown_again_until_somebody_logs_in() {
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

/// So often all processes that refresh are killed, each in its own time.
const CHILD_ROUNDS: usize = 3;

/// In each, so many credentials are refreshed.
const CHILDREN: usize = 8;

/// From the beginning of a refreshing process to its kill, in microseconds.
const CHILD_LIFE: std::ops::Range<u64> = 0..50_000;

/// Kills each process by which the gateway refreshes, so long after its beginning as chance says, until each credential
/// has been refreshed or has not. Answers how many were killed.
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

/// Whether the first refresh of a credential whose token had expired is over.
fn is_over(credential: &Value) -> bool {
    let has_new_token = credential["expires_at"].as_u64() > Some(unix_in(0) * 1000);
    has_new_token
        || !credential["refresh_failure"].is_null()
        || credential["state"] == "login_needed"
}

/// The next gateway serves the credential, or somebody must log in and it serves then. Answers whether that was so: a
/// request tells it, for it waits for the refresh that is under way.
async fn recovers(rig: &Rig, program: &Program, account: &Account, round: usize) -> bool {
    let client = account.client(program);
    let answer = client.turn(&turn("one")).await;
    let needs_login = match answer.status {
        StatusCode::OK => false,
        StatusCode::SERVICE_UNAVAILABLE => true,
        status => panic!(
            "round {round}: {} answers {status}: {}",
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
async fn a_refreshing_process_that_is_killed_at_any_instant_never_shows_a_token_twice() {
    let mut chance = Chance::seeded(SEED);
    let (mut kills, mut logins) = (0, 0);
    for round in 0..CHILD_ROUNDS {
        let (rig, accounts, config) = many(CHILDREN).await;
        let program = rig.spawn(&config).await;
        kills += kill_each(&rig, &program, &mut chance).await;
        program.kill();
        // It does not wait as after a failure: it knows of none.
        let program = rig.spawn(&config).await;
        for account in &accounts {
            logins += usize::from(recovers(&rig, &program, account, round).await);
        }
        program.kill();
    }
    println!(
        "{kills} of {} killed, after {logins} somebody had to log in",
        CHILD_ROUNDS * CHILDREN
    );
    assert!(kills > 0, "no process was killed: the test shows nothing");
}
