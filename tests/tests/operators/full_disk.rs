//! A ledger that cannot take more: nothing is lost in silence.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Client, Mounted, Rig, over_both, rows, turn, wait_for_rows};

/// A ledger of a few dozen rows.
const LEDGER_BYTES: u64 = 96 * 1024;
/// More requests than it has room for.
const REQUESTS: usize = 400;

fn small(mut config: Value, full: &str) -> Value {
    config["limits"] = json!({
        "ledger_bytes": LEDGER_BYTES,
        "ledger_full": full,
        "settle_queue": 8,
        "commit_timeout": "200ms",
        "drain_timeout": "2s",
    });
    config
}

fn code(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    Some(body["error"]["code"].as_str()?.to_owned())
}

/// The request ids in the ledger; each is there once.
fn recorded(rig: &Rig) -> BTreeSet<String> {
    let all = rows(&rig.ledger());
    let ids: BTreeSet<String> = all
        .iter()
        .map(|row| row.text("request_id").expect("an id").to_owned())
        .collect();
    assert_eq!(ids.len(), all.len(), "a request is recorded twice");
    ids
}

over_both!(a_full_ledger_in_refuse_mode_answers_503_and_loses_no_completed_response);
async fn a_full_ledger_in_refuse_mode_answers_503_and_loses_no_completed_response() {
    let mut rig = Rig::new().await;
    let config = small(rig.team(&["a"], json!({})), "refuse");
    let client = rig.start(config).await.token("token-alice");
    let mut seen = BTreeSet::new();
    let mut refused = 0;
    for number in 0..REQUESTS {
        let mut body = turn("full");
        body["stream"] = json!(number % 2 == 0);
        let answer = client.turn(&body).await;
        match answer.status {
            StatusCode::OK if answer.whole => drop(seen.insert(answer.request_id())),
            // The one whose row found the ledger full.
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(code(&answer.text()).as_deref(), Some("ledger_unavailable"));
                assert!(answer.header("retry-after").is_some());
                refused += 1;
            }
            status => panic!("{status}: {}", answer.text()),
        }
        if refused == 20 {
            break;
        }
    }
    assert_eq!(
        refused,
        20,
        "the ledger is not full after {REQUESTS} requests, {} of them served",
        seen.len()
    );
    assert!(seen.len() > 10);
    let asked = rig.upstream.turns().len();
    assert!(
        asked <= seen.len() + 8,
        "requests were sent to upstream while the ledger was full"
    );
    rig.stop().await;
    let lost: Vec<_> = seen.difference(&recorded(&rig)).cloned().collect();
    assert!(lost.is_empty(), "seen whole and not recorded: {lost:?}");
}

over_both!(a_full_ledger_in_serve_mode_keeps_serving_and_logs_further_rows);
async fn a_full_ledger_in_serve_mode_keeps_serving_and_logs_further_rows() {
    let rig = Rig::new().await;
    let config = small(rig.team(&["a"], json!({})), "serve");
    let program = rig.spawn(&config).await;
    let client = program.client().token("token-alice");
    let mut served = BTreeSet::new();
    for number in 0..REQUESTS {
        let mut body = turn("full");
        body["stream"] = json!(number % 2 == 0);
        let answer = client.turn(&body).await;
        assert_eq!(
            answer.status,
            StatusCode::OK,
            "request {number}: {}",
            answer.text()
        );
        assert!(answer.whole, "request {number}");
        served.insert(answer.request_id());
    }
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(20)).await.success());
    let log = std::fs::read_to_string(rig.path("gateway.log")).expect("a log");
    let lost: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("row not stored in the ledger"))
        .collect();
    let recorded = recorded(&rig);
    assert!(
        recorded.len() < REQUESTS,
        "the ledger is not full after {REQUESTS} rows"
    );
    for id in &served {
        let in_log = lost
            .iter()
            .filter(|line| line.contains(id.as_str()))
            .count();
        let in_ledger = usize::from(recorded.contains(id));
        assert_eq!(
            in_log + in_ledger,
            1,
            "{id}: {in_ledger} in the ledger, {in_log} in the log"
        );
    }
    // The log names everything that was lost: which user, and how much.
    assert!(
        lost.iter()
            .all(|line| line.contains("alice") && line.contains("1200")),
        "{}",
        lost[0]
    );
}

/// A disk of which a ledger of a few rows takes the half.
const DISK_BYTES: usize = 1 << 20;

over_both!(a_full_disk_loses_no_completed_response_and_requests_succeed_once_it_has_space);
async fn a_full_disk_loses_no_completed_response_and_requests_succeed_once_it_has_space() {
    let mut rig = Rig::new().await;
    let Some(disk) = Mounted::new(&rig.path("data"), DISK_BYTES) else {
        return;
    };
    let mut config = rig.team(&["a"], json!({}));
    config["limits"] =
        json!({ "ledger_full": "refuse", "settle_queue": 8, "commit_timeout": "200ms" });
    let client = rig.start(config).await.token("token-alice");
    let mut seen = BTreeSet::new();
    let before = client.turn(&turn("before")).await;
    assert!(before.whole);
    seen.insert(before.request_id());
    let filler = disk.fill();
    let mut refused = 0;
    for number in 0..REQUESTS {
        let mut body = turn("full");
        body["stream"] = json!(number % 2 == 0);
        let answer = client.turn(&body).await;
        match answer.status {
            StatusCode::OK if answer.whole => drop(seen.insert(answer.request_id())),
            // The one whose row found the disk full.
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(code(&answer.text()).as_deref(), Some("ledger_unavailable"));
                refused += 1;
            }
            status => panic!("{status}: {}", answer.text()),
        }
        if refused == 20 {
            break;
        }
    }
    assert_eq!(
        refused,
        20,
        "the disk is not full for the ledger: {} were served",
        seen.len()
    );
    fs::remove_file(filler).expect("it is there");
    let begun = Instant::now();
    loop {
        let answer = client.turn(&turn("after")).await;
        if answer.status == StatusCode::OK && answer.whole {
            seen.insert(answer.request_id());
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{}: {}",
            answer.status,
            answer.text()
        );
        // No event reports that the ledger has checked the disk again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.stop().await;
    let lost: Vec<_> = seen.difference(&recorded(&rig)).cloned().collect();
    assert!(lost.is_empty(), "seen whole and not recorded: {lost:?}");
}

over_both!(a_full_queue_refuses_the_next_request_and_serves_it_after_the_first_has_ended);
async fn a_full_queue_refuses_the_next_request_and_serves_it_after_the_first_has_ended() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["limits"] = json!({ "settle_queue": 1 });
    let client = rig.start(config).await.token("token-alice");
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let first = client.start_turn(&turn("first")).await;
    for _ in 0..3 {
        let refused = client.turn(&turn("second")).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code(&refused.text()).as_deref(), Some("overloaded"));
        assert!(refused.header("retry-after").is_some());
    }
    gate.open();
    let first = first.finish().await;
    assert!(first.whole);
    let served = client.turn(&turn("second")).await;
    assert_eq!(served.status, StatusCode::OK, "{}", served.text());
    assert_eq!(rig.upstream.turns().len(), 2);
    let all = wait_for_rows(&rig.ledger(), 2).await;
    assert!(all.iter().all(|row| row.text("end") == Some("complete")));
    rig.stop().await;
}

over_both!(queue_capacity_is_released_before_the_response_is_complete);
async fn queue_capacity_is_released_before_the_response_is_complete() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["limits"] = json!({ "settle_queue": 1 });
    let client = rig.start(config).await.token("token-alice");
    for number in 0..2000 {
        let mut body = turn("one after the other");
        body["stream"] = json!(number % 2 == 0);
        let answer = client.turn(&body).await;
        assert_eq!(
            answer.status,
            StatusCode::OK,
            "request {number}: {}",
            answer.text()
        );
    }
    rig.stop().await;
}

over_both!(rejected_requests_use_no_queue_capacity);
async fn rejected_requests_use_no_queue_capacity() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["limits"] = json!({ "settle_queue": 1, "request_body_bytes": 1000 });
    let open = rig.start(config).await;
    let client = open.token("token-alice");
    for _ in 0..3 {
        assert_eq!(
            Client::new(open.address())
                .turn(&turn("anonymous"))
                .await
                .status,
            StatusCode::UNAUTHORIZED
        );
        assert_eq!(client.get("/elsewhere").await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(client.turn(&turn("served")).await.status, StatusCode::OK);
    let rows = wait_for_rows(&rig.ledger(), 1).await;
    assert_eq!(rows[0].text("session"), Some("served"));
    rig.stop().await;
}
