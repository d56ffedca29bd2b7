//! A gateway that is killed: what a client saw whole is in the ledger, once, and the ledger opens
//! again.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::time::sleep;
use tollgate_tests::upstream::{Reply, SocketReply};
use tollgate_tests::{Answer, Client, Event, Rig, Socket, over_both, turn};

const ROUNDS: usize = 50;
/// Clients at a time: half of them ask for streams.
const CLIENTS: usize = 4;
/// From ready to the kill, in microseconds.
const LIFE: std::ops::Range<u64> = 1_000..120_000;

/// The generator SplitMix64. Its seed determines all instants, so a run can be repeated.
struct Chance(u64);

impl Chance {
    fn seeded() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64;
        let configured = std::env::var("KILL_SEED")
            .ok()
            .map(|seed| seed.parse().expect("KILL_SEED is a number"));
        let seed = configured.unwrap_or(now);
        println!("the instants of the kills: KILL_SEED={seed}");
        Self(seed)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }
}

/// What all clients saw whole.
type Seen = Arc<Mutex<Vec<String>>>;

/// Asks again and again until the gateway is gone.
async fn ask_until_it_dies(client: Client, body: Value, seen: Seen) {
    while let Ok(answer) = client
        .try_send(Method::POST, "/v1/responses", body.to_string())
        .await
    {
        let answer = answer.finish().await;
        if answer.status == StatusCode::OK && is_seen_whole(&answer, &body) {
            seen.lock()
                .expect("no holder panics")
                .push(answer.request_id());
        }
        if !answer.whole {
            return;
        }
    }
}

/// Whether the client saw the whole response. A stream is whole with its last event, whatever
/// happens to the connection afterwards.
fn is_seen_whole(answer: &Answer, request: &Value) -> bool {
    if request["stream"] != true {
        return answer.whole;
    }
    let text = answer.text();
    let mut data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.any(|data| {
        serde_json::from_str(data).is_ok_and(|event: Value| event["type"] == "response.completed")
    })
}

/// Sends turn after turn on a socket until the gateway is gone. The ids of the responses seen whole
/// are added to `seen`.
async fn ask_by_socket_until_it_dies(mut socket: Socket, body: Value, seen: Seen) {
    loop {
        socket.create(&body).await;
        loop {
            let Event::Text(text) = socket.next_message().await else {
                return;
            };
            let event: Value = serde_json::from_str(&text).expect("an event is JSON");
            if event["type"] == "response.completed" {
                let id = event["response"]["id"].as_str().expect("an id").to_owned();
                seen.lock().expect("no holder panics").push(id);
                break;
            }
        }
    }
}

/// What stands in this column of the ledger, sorted.
fn recorded(ledger: &Path, column: &str) -> Vec<String> {
    let connection = Connection::open_with_flags(ledger, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the ledger opens");
    connection
        .busy_timeout(Duration::from_secs(5))
        .expect("a time-out can be set");
    let mut query = connection
        .prepare(&format!(
            "SELECT {column} FROM usage WHERE {column} IS NOT NULL ORDER BY {column}"
        ))
        .expect("a ledger");
    let ids = query.query_map([], |row| row.get(0)).expect("a ledger");
    ids.collect::<rusqlite::Result<_>>().expect("rows")
}

#[track_caller]
fn check(ledger: &Path, column: &str, seen: &Seen, round: usize) -> usize {
    let recorded = recorded(ledger, column);
    let twice: Vec<_> = recorded
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .collect();
    assert!(twice.is_empty(), "round {round}: recorded twice: {twice:?}");
    let seen = seen.lock().expect("no holder panics");
    let lost: Vec<_> = seen
        .iter()
        .filter(|id| recorded.binary_search(id).is_err())
        .collect();
    assert!(
        lost.is_empty(),
        "round {round}: seen whole and not recorded: {lost:?}"
    );
    recorded.len()
}

over_both!(a_kill_at_any_instant_loses_no_completed_response);
async fn a_kill_at_any_instant_loses_no_completed_response() {
    let mut chance = Chance::seeded();
    let rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({}));
    // In many pieces, so that a kill falls between them.
    rig.account("a")
        .always(Reply::ok().deltas(8).chunks(&[97, 11, 400]));
    let seen = Seen::default();
    for round in 0..ROUNDS {
        let program = rig.spawn(&config).await;
        if round > 0 {
            // The gateway has opened the ledger again: what was seen before its death is there.
            check(&rig.ledger(), "request_id", &seen, round);
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = program
                    .client()
                    .token("token-alice")
                    .header("content-type", "application/json");
                let mut body = turn(&format!("session-{number}"));
                body["stream"] = json!(number % 2 == 0);
                tokio::spawn(ask_until_it_dies(client, body, Arc::clone(&seen)))
            })
            .collect();
        // The instant of the kill.
        sleep(Duration::from_micros(chance.within(LIFE))).await;
        program.kill();
        for client in clients {
            client.await.expect("a client does not panic");
        }
    }
    let last = rig.spawn(&config).await;
    let rows = check(&rig.ledger(), "request_id", &seen, ROUNDS);
    let seen = seen.lock().expect("no holder panics").len();
    println!("{ROUNDS} kills, {rows} rows, {seen} responses seen whole");
    assert!(
        seen > ROUNDS,
        "only {seen} responses were seen whole: the test shows nothing"
    );
    last.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_instant_of_a_socket_loses_no_completed_response() {
    let mut chance = Chance::seeded();
    let rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({}));
    for tag in ["a", "b"] {
        // In many frames, so that a kill falls between them.
        rig.account(tag)
            .always_socket(SocketReply::ok().deltas(8).fragments(&[97, 11, 400]));
    }
    let seen = Seen::default();
    for round in 0..ROUNDS {
        let program = rig.spawn(&config).await;
        if round > 0 {
            check(&rig.ledger(), "response_id", &seen, round);
        }
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let client = program.client().token("token-alice");
            let client = if number % 2 == 0 {
                client
            } else {
                client.http2()
            };
            let socket = client.socket().await.expect("a socket");
            let body = turn(&format!("session-{number}"));
            clients.push(tokio::spawn(ask_by_socket_until_it_dies(
                socket,
                body,
                Arc::clone(&seen),
            )));
        }
        // The instant of the kill.
        sleep(Duration::from_micros(chance.within(LIFE))).await;
        program.kill();
        for client in clients {
            client.await.expect("a client does not panic");
        }
    }
    let last = rig.spawn(&config).await;
    let rows = check(&rig.ledger(), "response_id", &seen, ROUNDS);
    let seen = seen.lock().expect("no holder panics").len();
    println!("{ROUNDS} kills, {rows} rows, {seen} responses seen whole");
    assert!(
        seen > ROUNDS,
        "only {seen} responses were seen whole: the test shows nothing"
    );
    last.kill();
}
