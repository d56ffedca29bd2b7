use std::fs;

use rusqlite::Connection;

use super::*;
use crate::values::clock::Timestamp;
use crate::values::exchange::client_address::ClientAddress;
use crate::values::exchange::counts::TokenCounts;
use crate::values::exchange::money::{NanoUsd, ResponseCost};
use crate::values::exchange::{ClientTransport, ExchangeEnd};

struct LedgerFolder(PathBuf);

impl LedgerFolder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tollgate-{name}-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for LedgerFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn row(id: &str) -> LedgerRow {
    LedgerRow {
        request_id: id.to_owned(),
        started_at: Timestamp(1_000),
        finished_at: Timestamp(2_000),
        client: ClientAddress::Unix,
        user: Some("alice".to_owned()),
        credential: Some("a".to_owned()),
        service: "ocm".to_owned(),
        model: Some("gpt-5.4".to_owned()),
        requested_model: None,
        service_tier: None,
        transport: ClientTransport::Http,
        prewarm: false,
        previous_response_id: None,
        method: http::Method::POST,
        path: "/v1/responses".to_owned(),
        status: 200,
        end: ExchangeEnd::Complete,
        attempts: Vec::new(),
        home: None,
        session: None,
        response_id: None,
        counts: Some(TokenCounts {
            input: 100,
            cached: 40,
            output: 10,
            ..TokenCounts::default()
        }),
        cost: Some(ResponseCost::Priced {
            amount: NanoUsd(5),
            context_window: 272_000,
        }),
        priced_by: None,
        week_start_unix: None,
        ttfb_ms: Some(1),
        duration_ms: 1_000,
    }
}

fn committed(ledger: &Ledger, id: &str) -> bool {
    let room = ledger.reserve().expect("room");
    ledger.write(room, row(id)).wait()
}

#[test]
fn a_row_is_on_the_file_once_it_is_committed() {
    let folder = LedgerFolder::new("commit");
    let ledger = Ledger::open(&folder.0, &Limits::default()).expect("a new ledger");
    assert!(committed(&ledger, "one"));
    let summary = ledger
        .reader()
        .expect("a reader")
        .summary(UsageGrouping::User)
        .expect("sums");
    assert_eq!(
        (
            summary[0].name.as_str(),
            summary[0].requests,
            summary[0].cost
        ),
        ("alice", 1, NanoUsd(5))
    );
}

/// The value of SQLite's `temp_store` for temporary tables in memory.
const TEMP_STORE_MEMORY: i64 = 2;

#[test]
fn no_connection_needs_a_folder_for_temporary_files() {
    let folder = LedgerFolder::new("temporary");
    let path = folder.0.join(FILE_NAME);
    let temp_store = |connection: &Connection| -> i64 {
        connection
            .pragma_query_value(None, "temp_store", |row| row.get(0))
            .expect("a pragma of SQLite")
    };
    let writing = file::open(&path, 0).expect("a new ledger");
    assert_eq!(temp_store(&writing), TEMP_STORE_MEMORY);
    let reading = file::open_to_read(&path).expect("a ledger");
    assert_eq!(temp_store(&reading), TEMP_STORE_MEMORY);
}

#[test]
fn a_warm_up_counts_with_its_tokens_and_as_no_request() {
    let folder = LedgerFolder::new("warm-up");
    let ledger = Ledger::open(&folder.0, &Limits::default()).expect("a new ledger");
    for (id, prewarm) in [("warm-up", true), ("turn", false)] {
        let room = ledger.reserve().expect("room");
        let row = LedgerRow { prewarm, ..row(id) };
        assert!(ledger.write(room, row).wait());
    }
    let rows = ledger
        .reader()
        .expect("a reader")
        .rows_after(0, "ocm", "a", 10)
        .expect("rows");
    let counts: Vec<_> = rows.iter().map(|row| (row.requests, row.input)).collect();
    assert_eq!(counts, [(0, 100), (1, 100)]);
}

#[test]
fn room_is_released_with_the_commit_and_not_before() {
    let folder = LedgerFolder::new("room");
    let limits = Limits {
        settle_queue: 1,
        ..Limits::default()
    };
    let ledger = Ledger::open(&folder.0, &limits).expect("a new ledger");
    let room = ledger.reserve().expect("room");
    assert_eq!(
        ledger.reserve().expect_err("no more room"),
        ReservationError::Busy
    );
    assert!(ledger.write(room, row("one")).wait());
    for number in 0..200 {
        let room = ledger
            .reserve()
            .expect("room again, as soon as the commit is known");
        assert!(ledger.write(room, row(&format!("{number}"))).wait());
    }
}

#[test]
fn a_file_that_is_no_ledger_is_rejected_and_not_changed() {
    let folder = LedgerFolder::new("foreign");
    let path = folder.0.join(FILE_NAME);
    fs::write(
        &path,
        "my diary, which is longer than a header of a hundred bytes ".repeat(3),
    )
    .expect("writes");
    let before = fs::read(&path).expect("reads");
    let error = Ledger::open(&folder.0, &Limits::default())
        .expect_err("no ledger")
        .to_string();
    assert!(error.contains("expected a Tollgate ledger"), "{error}");
    assert_eq!(fs::read(&path).expect("reads"), before);

    fs::remove_file(&path).expect("removes");
    let other = Connection::open(&path).expect("opens");
    other
        .execute_batch("CREATE TABLE mine (x)")
        .expect("makes a table");
    drop(other);
    let before = fs::read(&path).expect("reads");
    assert!(matches!(
        Ledger::open(&folder.0, &Limits::default()),
        Err(LedgerError::Foreign { .. })
    ));
    assert_eq!(fs::read(&path).expect("reads"), before);
}

#[test]
fn an_old_file_is_migrated_and_keeps_its_rows() {
    let folder = LedgerFolder::new("old");
    let old = Connection::open(folder.0.join(FILE_NAME)).expect("opens");
    old.execute_batch(file::FIRST_SCHEMA)
        .expect("the first schema");
    old.pragma_update(None, "application_id", file::ID)
        .expect("an id");
    old.pragma_update(None, "user_version", 1)
        .expect("a version");
    old.execute_batch(
        "INSERT INTO usage (request_id, started_at, finished_at, service, transport, path, status, end, attempts,
            duration_ms) VALUES ('old', 1, 2, 'ocm', 'http', '/', 200, 'complete', '[]', 1)",
    )
    .expect("a row");
    drop(old);
    let ledger = Ledger::open(&folder.0, &Limits::default()).expect("a migrated ledger");
    assert!(committed(&ledger, "new"));
    let reader = ledger.reader().expect("a reader");
    assert_eq!(
        reader
            .summary(UsageGrouping::Day)
            .expect("sums")
            .iter()
            .map(|day| day.requests)
            .sum::<u64>(),
        2
    );
    assert_eq!(reader.usage_file("p").expect("the new table"), None);
}

#[test]
fn a_newer_file_and_a_file_in_use_are_rejected() {
    let folder = LedgerFolder::new("newer");
    let ledger = Ledger::open(&folder.0, &Limits::default()).expect("a new ledger");
    assert!(matches!(
        Ledger::open(&folder.0, &Limits::default()),
        Err(LedgerError::InUse { .. })
    ));
    drop(ledger);
    let newer = Connection::open(folder.0.join(FILE_NAME)).expect("opens");
    newer
        .pragma_update(None, "user_version", 99)
        .expect("a version");
    drop(newer);
    assert!(matches!(
        Ledger::open(&folder.0, &Limits::default()),
        Err(LedgerError::Newer { .. })
    ));
}

#[test]
fn a_full_ledger_rejects_requests_and_loses_no_row() {
    let folder = LedgerFolder::new("full");
    let limits = Limits {
        ledger_bytes: 64 * 1024,
        ..Limits::default()
    };
    let ledger = Ledger::open(&folder.0, &limits).expect("a new ledger");
    let mut on_file = 0;
    let waiting = loop {
        let Ok(room) = ledger.reserve() else {
            break None;
        };
        let mut commit = ledger.write(room, row(&format!("row {on_file}")));
        let end = std::time::Instant::now() + std::time::Duration::from_millis(500);
        while std::time::Instant::now() < end && !commit.has_ended() {
            std::thread::yield_now();
        }
        if ledger.is_failing() {
            break Some(commit);
        }
        on_file += 1;
        assert!(on_file < 10_000, "the limit was never reached");
    };
    assert!(on_file > 10);
    assert_eq!(
        ledger.reserve().expect_err("full"),
        ReservationError::Failing
    );
    drop(waiting);
    let kept: u64 = ledger
        .reader()
        .expect("reads")
        .summary(UsageGrouping::User)
        .expect("sums")[0]
        .requests;
    assert_eq!(kept, on_file);
}

#[test]
fn a_full_ledger_that_may_serve_keeps_the_rows_in_memory() {
    let folder = LedgerFolder::new("serve");
    let limits = Limits {
        ledger_bytes: 64 * 1024,
        ledger_full: LedgerFull::Serve,
        settle_queue: 8,
        ..Limits::default()
    };
    let ledger = Ledger::open(&folder.0, &limits).expect("a new ledger");
    for number in 0..500 {
        let Ok(room) = ledger.reserve() else {
            std::thread::yield_now();
            continue;
        };
        // Every commit ends, though most of these rows find no room on the file.
        assert!(ledger.write(room, row(&format!("row {number}"))).wait());
    }
    assert!(ledger.is_failing());
    assert!(ledger.reserve().is_ok());
}

#[test]
fn a_usage_file_state_does_not_wait_for_a_full_ledger_and_is_not_committed() {
    let folder = LedgerFolder::new("note");
    let limits = Limits {
        ledger_bytes: 64 * 1024,
        ledger_full: LedgerFull::Serve,
        ..Limits::default()
    };
    let ledger = Ledger::open(&folder.0, &limits).expect("a new ledger");
    let mut number = 0;
    while !ledger.is_failing() {
        let room = ledger.reserve().expect("room");
        ledger.write(room, row(&format!("row {number}"))).wait();
        number += 1;
        assert!(number < 10_000, "the limit was never reached");
    }
    assert!(
        !ledger
            .save_usage_file("p", UsageFileState::default())
            .wait()
    );
}
