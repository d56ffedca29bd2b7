use std::cell::Cell;
use std::fs;

use serde_json::Value;

use super::*;

struct CredentialFolder(PathBuf);

impl CredentialFolder {
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

    fn job(&self, access: &str) -> RefreshJob {
        RefreshJob {
            path: self.file(),
            due: due(access),
            lock_timeout: Duration::ZERO,
        }
    }
}

impl Drop for CredentialFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn due(access: &str) -> SecretFingerprint {
    SecretFingerprint::of_access_token(access)
}

fn refreshed() -> RefreshOutcome {
    RefreshOutcome::Refreshed { token: due("a2") }
}

fn tokens(access: &str, refresh: &str) -> String {
    format!(
        r#"{{"kept": 1.0, "tokens": {{"access_token": "{access}", "refresh_token": "{refresh}"}}}}"#
    )
}

fn answer(status: u16, body: &str) -> Result<TokenResponse, TokenRequestError> {
    Ok(TokenResponse {
        status,
        retry_after: None,
        body: Zeroizing::new(body.as_bytes().to_vec()),
    })
}

const NEW: &str = r#"{"access_token": "a2", "refresh_token": "r2"}"#;

#[test]
fn new_tokens_are_written_and_the_journal_is_removed() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh_tokens(&folder.job("a1"), |body| {
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["refresh_token"], "r1");
        assert_eq!(body["grant_type"], "refresh_token");
        let noted = RefreshJournal::of(&folder.file())
            .read()
            .expect("a journal before the token is spent");
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
    assert!(!RefreshJournal::of(&folder.file()).exists());
}

#[test]
fn a_file_that_has_other_tokens_is_not_refreshed() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a2", "r2"));
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| panic!("nothing is presented")),
        RefreshOutcome::Newer
    );
}

#[test]
fn a_token_whose_response_was_lost_is_not_presented_again() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let lost = refresh_tokens(&folder.job("a1"), |_| {
        Err(TokenRequestError::Lost("timed out".to_owned()))
    });
    assert!(
        matches!(&lost, RefreshOutcome::LoginNeeded { reason } if reason.contains("timed out")),
        "{lost:?}"
    );
    let again = refresh_tokens(&folder.job("a1"), |_| panic!("it may be spent"));
    assert!(matches!(again, RefreshOutcome::LoginNeeded { .. }));
    folder.write(&tokens("a1", "r9"));
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| answer(200, NEW)),
        refreshed(),
        "another refresh token is unspent"
    );
}

#[test]
fn tokens_issued_to_a_killed_refresh_are_recovered() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let journal = RefreshJournal::of(&folder.file());
    let write_issued = || {
        let spent = SecretFingerprint::of(b"r1");
        let tokens = NewTokens::new(None, "a2", Some("r2"));
        journal
            .write_issued(&spent, "2026-11-24T00:00:00Z", &tokens)
            .expect("writes");
    };
    write_issued();
    recover_tokens(&folder.file()).expect("completes it");
    assert!(folder.text().contains("\"a2\"") && !journal.exists());
    write_issued();
    folder.write(&tokens("a3", "r3"));
    recover_tokens(&folder.file()).expect("drops the journal");
    assert!(
        folder.text().contains("\"a3\"") && !journal.exists(),
        "the file has newer tokens"
    );
}

#[track_caller]
fn check_answer(status: u16, body: &str, expected: fn(&RefreshOutcome) -> bool, noted: bool) {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh_tokens(&folder.job("a1"), |_| answer(status, body));
    assert!(expected(&outcome), "{status} {body}: {outcome:?}");
    assert!(!format!("{outcome:?}").contains("canary"), "{outcome:?}");
    assert_eq!(
        RefreshJournal::of(&folder.file()).exists(),
        noted,
        "{status} {body}"
    );
    assert_eq!(folder.text(), tokens("a1", "r1"));
}

#[test]
fn rejections_and_failures_are_distinguished() {
    let login = |outcome: &RefreshOutcome| matches!(outcome, RefreshOutcome::LoginNeeded { .. });
    let failed = |outcome: &RefreshOutcome| matches!(outcome, RefreshOutcome::Failed { .. });
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
fn a_response_without_a_refresh_token_keeps_the_old_one() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| answer(
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
fn a_file_whose_tokens_change_during_the_refresh_is_not_overwritten() {
    for (other, left) in [(tokens("b", "rb"), true), (String::new(), false)] {
        let folder = CredentialFolder::new();
        folder.write(&tokens("a1", "r1"));
        let outcome = refresh_tokens(&folder.job("a1"), |_| {
            if left {
                folder.write(&other)
            } else {
                fs::remove_file(folder.file()).expect("removes")
            };
            answer(200, NEW)
        });
        assert_eq!(outcome, RefreshOutcome::Newer);
        assert_eq!(folder.file().exists(), left);
        assert!(!left || folder.text() == other);
        assert!(!RefreshJournal::of(&folder.file()).exists());
    }
}

#[test]
fn other_changes_during_the_refresh_are_kept() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let outcome = refresh_tokens(&folder.job("a1"), |_| {
        folder.write(&tokens("a1", "r1").replace("1.0", "\"changed\""));
        answer(200, NEW)
    });
    assert_eq!(outcome, refreshed());
    assert!(folder.text().contains("\"changed\"") && folder.text().contains("\"a2\""));
}

#[test]
fn a_lock_that_another_process_holds_is_respected() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let held = AuthFileLock::acquire(&folder.file(), Duration::ZERO)
        .expect("a lock")
        .expect("no other holder");
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| panic!("locked")),
        RefreshOutcome::Busy
    );
    drop(held);
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| answer(200, NEW)),
        refreshed()
    );
}

#[test]
fn a_lock_file_that_is_a_link_or_a_folder_is_not_used() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    let (lock, target) = (folder.0.join("auth.json.lock"), folder.0.join("target"));
    let check = |expected: &str| {
        let outcome = refresh_tokens(&folder.job("a1"), |_| panic!("not locked"));
        assert!(
            matches!(&outcome, RefreshOutcome::NotWritable { reason }
                if reason.contains("auth.json.lock") && reason.contains(expected)),
            "{outcome:?}"
        );
    };
    std::os::unix::fs::symlink(&target, &lock).expect("links");
    check("found a symbolic link");
    assert!(!target.exists(), "the link was followed");
    fs::write(&target, "").expect("writes");
    check("found a symbolic link");
    fs::remove_file(&lock).expect("removes");
    fs::create_dir(&lock).expect("a folder");
    check("");
}

#[test]
fn through_a_link_the_file_itself_is_replaced() {
    let folder = CredentialFolder::new();
    let target = folder.0.join("target.json");
    fs::write(&target, tokens("a1", "r1")).expect("writes");
    std::os::unix::fs::symlink(&target, folder.file()).expect("links");
    assert_eq!(
        refresh_tokens(&folder.job("a1"), |_| answer(200, NEW)),
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
fn no_token_is_presented_if_the_journal_cannot_be_written() {
    let folder = CredentialFolder::new();
    folder.write(&tokens("a1", "r1"));
    // Not even root can write a file over a folder.
    fs::create_dir_all(RefreshJournal::of(&folder.file()).path()).expect("a folder");
    let asked = Cell::new(false);
    let outcome = refresh_tokens(&folder.job("a1"), |_| {
        asked.set(true);
        answer(200, NEW)
    });
    assert!(
        matches!(outcome, RefreshOutcome::NotWritable { .. }),
        "{outcome:?}"
    );
    assert!(!asked.get());
}
