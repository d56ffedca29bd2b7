use std::cell::Cell;
use std::fs;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tollgate-refresh-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("auth.json")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).expect("writes");
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).expect("a file")
    }

    fn job(&self, access: &str) -> Job {
        Job {
            path: self.file(),
            due: due(access),
            lock_timeout: Duration::ZERO,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn due(access: &str) -> Fingerprint {
    Fingerprint::of(format!("Bearer {access}").as_bytes())
}

fn refreshed() -> Outcome {
    Outcome::Refreshed { token: due("a2") }
}

fn tokens(access: &str, refresh: &str) -> String {
    format!(
        r#"{{"kept": 1.0, "tokens": {{"access_token": "{access}", "refresh_token": "{refresh}"}}}}"#
    )
}

fn answer(status: u16, body: &str) -> Result<Answer, NoAnswer> {
    Ok(Answer {
        status,
        retry_after: None,
        body: Zeroizing::new(body.as_bytes().to_vec()),
    })
}

const NEW: &str = r#"{"access_token": "a2", "refresh_token": "r2"}"#;

#[test]
fn new_tokens_are_written_and_the_journal_goes() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh(&folder.job("a1"), |body| {
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["refresh_token"], "r1");
        assert_eq!(body["grant_type"], "refresh_token");
        let noted = Journal::of(&folder.file())
            .read()
            .expect("noted before it is spent");
        assert!(noted.tokens.is_none());
        answer(200, NEW)
    });
    assert_eq!(outcome, refreshed());
    let text = folder.text();
    assert!(
        text.contains(r#""access_token": "a2", "refresh_token": "r2""#)
            && text.contains(r#""kept": 1.0"#),
        "{text}"
    );
    assert!(text.contains("last_refresh"));
    assert!(!Journal::of(&folder.file()).exists());
}

#[test]
fn a_file_that_has_other_tokens_is_not_refreshed() {
    let folder = Folder::new();
    folder.write(&tokens("a2", "r2"));
    assert_eq!(
        refresh(&folder.job("a1"), |_| panic!("nothing is asked")),
        Outcome::Newer
    );
}

#[test]
fn a_lost_answer_is_never_asked_for_again() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let lost = refresh(&folder.job("a1"), |_| {
        Err(NoAnswer::Lost("timed out".to_owned()))
    });
    assert!(
        matches!(&lost, Outcome::LoginNeeded { reason } if reason.contains("timed out")),
        "{lost:?}"
    );
    let again = refresh(&folder.job("a1"), |_| panic!("it may be spent"));
    assert!(matches!(again, Outcome::LoginNeeded { .. }));
    folder.write(&tokens("a1", "r9"));
    assert_eq!(
        refresh(&folder.job("a1"), |_| answer(200, NEW)),
        refreshed(),
        "another token may be spent"
    );
}

#[test]
fn what_a_killed_refresh_was_given_is_taken_up() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let journal = Journal::of(&folder.file());
    let entry = |spent: &str| Entry {
        spent: Fingerprint::of(spent.as_bytes()),
        at: "2026-11-24T00:00:00Z".to_owned(),
        tokens: Some(NewTokens::of(None, "a2", Some("r2"))),
    };
    journal.write(&entry("r1")).expect("writes");
    take_up(&folder.file()).expect("takes it up");
    assert!(folder.text().contains("\"a2\"") && !journal.exists());
    journal.write(&entry("r1")).expect("writes");
    folder.write(&tokens("a3", "r3"));
    take_up(&folder.file()).expect("leaves it");
    assert!(
        folder.text().contains("\"a3\"") && !journal.exists(),
        "the file has moved on"
    );
}

#[track_caller]
fn check_answer(status: u16, body: &str, expected: fn(&Outcome) -> bool, noted: bool) {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh(&folder.job("a1"), |_| answer(status, body));
    assert!(expected(&outcome), "{status} {body}: {outcome:?}");
    assert!(!format!("{outcome:?}").contains("canary"), "{outcome:?}");
    assert_eq!(
        Journal::of(&folder.file()).exists(),
        noted,
        "{status} {body}"
    );
    assert_eq!(folder.text(), tokens("a1", "r1"));
}

#[test]
fn refusals_are_told_apart() {
    let login = |outcome: &Outcome| matches!(outcome, Outcome::LoginNeeded { .. });
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed { .. });
    for code in [
        "refresh_token_reused",
        "refresh_token_expired",
        "refresh_token_invalidated",
        "invalid_grant",
    ] {
        check_answer(
            400,
            &format!(r#"{{"error": {{"code": "{code}"}}}}"#),
            login,
            false,
        );
        check_answer(403, &format!(r#"{{"error": "{code}"}}"#), login, false);
    }
    check_answer(401, "canary", login, false);
    check_answer(400, r#"{"error": {"code": "canary CODE"}}"#, failed, false);
    check_answer(403, "", failed, false);
    check_answer(429, "", failed, false);
    check_answer(500, "<html>canary</html>", failed, false);
    for useless in [
        "",
        "<html>canary</html>",
        "{}",
        r#"{"access_token": ""}"#,
        r#"{"access_token": 5}"#,
    ] {
        check_answer(200, useless, login, true);
    }
}

#[test]
fn an_answer_without_a_refresh_token_keeps_the_old_one() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    assert_eq!(
        refresh(&folder.job("a1"), |_| answer(
            200,
            r#"{"access_token": "a2"}"#
        )),
        refreshed()
    );
    assert!(
        folder
            .text()
            .contains(r#""access_token": "a2", "refresh_token": "r1""#)
    );
}

#[test]
fn a_file_that_changes_meanwhile_stays_as_it_is() {
    for (other, left) in [(tokens("b", "rb"), true), (String::new(), false)] {
        let folder = Folder::new();
        folder.write(&tokens("a1", "r1"));
        let outcome = refresh(&folder.job("a1"), |_| {
            if left {
                folder.write(&other)
            } else {
                fs::remove_file(folder.file()).expect("removes")
            };
            answer(200, NEW)
        });
        assert_eq!(outcome, Outcome::Newer);
        assert_eq!(folder.file().exists(), left);
        assert!(!left || folder.text() == other);
        assert!(!Journal::of(&folder.file()).exists());
    }
}

#[test]
fn what_else_changes_meanwhile_is_kept() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh(&folder.job("a1"), |_| {
        folder.write(&tokens("a1", "r1").replace("1.0", "\"changed\""));
        answer(200, NEW)
    });
    assert_eq!(outcome, refreshed());
    assert!(folder.text().contains("\"changed\"") && folder.text().contains("\"a2\""));
}

#[test]
fn a_lock_that_another_holds_is_respected() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    let held = lock(&folder.file(), Duration::ZERO)
        .expect("a lock")
        .expect("free");
    assert_eq!(
        refresh(&folder.job("a1"), |_| panic!("locked")),
        Outcome::Busy
    );
    drop(held);
    assert_eq!(
        refresh(&folder.job("a1"), |_| answer(200, NEW)),
        refreshed()
    );
}

#[test]
fn through_a_link_the_file_itself_is_replaced() {
    let folder = Folder::new();
    let target = folder.0.join("target.json");
    fs::write(&target, tokens("a1", "r1")).expect("writes");
    std::os::unix::fs::symlink(&target, folder.file()).expect("links");
    assert_eq!(
        refresh(&folder.job("a1"), |_| answer(200, NEW)),
        refreshed()
    );
    assert!(
        folder
            .file()
            .symlink_metadata()
            .expect("there")
            .is_symlink()
    );
    assert!(
        fs::read_to_string(target)
            .expect("there")
            .contains("\"a2\"")
    );
}

#[test]
fn a_folder_that_cannot_be_written_asks_for_nothing() {
    let folder = Folder::new();
    folder.write(&tokens("a1", "r1"));
    // A folder in the journal's place: even root cannot write that.
    fs::create_dir_all(Journal::of(&folder.file()).path()).expect("a folder");
    let asked = Cell::new(false);
    let outcome = refresh(&folder.job("a1"), |_| {
        asked.set(true);
        answer(200, NEW)
    });
    assert!(
        matches!(outcome, Outcome::NotWritable { .. }),
        "{outcome:?}"
    );
    assert!(!asked.get());
}
