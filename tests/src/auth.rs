//! auth.json, read and written as programs other than the gateway do.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Returns an auth.json of a ChatGPT account, as Codex writes it, refreshed just now.
pub fn oauth_file(access_token: &str, account_id: &str) -> Value {
    let now = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .expect("a time of this century has an RFC 3339 form");
    json!({
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": "x.e30.y",
            "access_token": access_token,
            "refresh_token": format!("refresh-{access_token}"),
            "account_id": account_id,
        },
        "last_refresh": now,
    })
}

/// Returns an auth.json of an API key.
pub fn key_file(key: &str) -> Value {
    json!({ "OPENAI_API_KEY": key })
}

/// Returns the moment that many days ago, as Codex writes `last_refresh`. A negative number is a
/// moment to come.
pub fn days_ago(days: i64) -> Value {
    let made = OffsetDateTime::now_utc() - time::Duration::days(days);
    json!(
        made.format(&Rfc3339)
            .expect("a time of this century has an RFC 3339 form")
    )
}

/// Returns the token `name` (`access_token`, `refresh_token`, `id_token`) of an auth.json.
///
/// # Panics
/// Panics if it has none.
pub fn token_of<'a>(file: &'a Value, name: &str) -> &'a str {
    file["tokens"][name].as_str().expect("a token")
}

/// Replaces a file in one step, as Codex does.
///
/// # Panics
/// Panics if the folder cannot be written.
pub fn replace_file(path: &Path, content: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("the folder can be written");
    fs::rename(new, path).expect("a file can be renamed");
}

/// Reads the JSON file at `path`.
///
/// # Panics
/// Panics if there is no such file, or it is not JSON.
pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Creates a FIFO at `path`: opening it for writing blocks until it has a reader.
///
/// # Panics
/// Panics if it cannot be created.
pub fn make_fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL in it");
    // SAFETY: the path is a C string that outlives the call.
    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(
        made,
        0,
        "{}: {}",
        path.display(),
        io::Error::last_os_error()
    );
}
