//! The rig: a client, the real gateway, and a scripted upstream. Every scenario arranges with it,
//! acts once, and asserts what the client, the upstream or the ledger sees.
//!
//! [`Rig::start`] runs the gateway in this process, [`Rig::spawn`] runs the real binary. Ports are
//! free ones, folders are temporary, and nothing waits by sleeping.

mod auth;
mod authority;
mod chance;
mod client;
mod command;
mod component;
mod gateway;
mod guests;
mod ledger;
mod login_scene;
mod metrics;
#[cfg(target_os = "linux")]
mod mount;
mod nowhere;
pub mod peer;
mod policies;
mod pricing;
mod protocol;
mod socket;
mod status;

pub use auth::{read_json, replace_file};
pub use authority::{Authority, Certificate, TLS_VERSIONS};
pub use chance::Chance;
pub use client::{Answer, Client, Stream};
pub use command::{Said, tollgate};
pub use component::component;
pub use gateway::{Program, Rig, binary};
pub use guests::{Conduct, guest, marked_pricer};
pub use ledger::{Row, rows, wait_for_rows};
pub use login_scene::LoginScene;
pub use metrics::Metrics;
#[cfg(target_os = "linux")]
pub use mount::Mounted;
pub use nowhere::Nowhere;
pub use pricing::OWN;
pub use protocol::Protocol;
pub use scripted_upstream as upstream;
pub use socket::{Event, Part, Socket};
pub use status::{ask_socket, policy};

use std::time::{SystemTime, UNIX_EPOCH};

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

/// Returns the Unix second that is `seconds` from now.
pub fn unix_in(seconds: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock stands after 1970");
    now.as_secs() + seconds
}

/// Returns a turn as Codex sends it: streamed, in `session`.
pub fn turn(session: &str) -> Value {
    json!({
        "model": "gpt-5.4",
        "stream": true,
        "store": false,
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "prompt_cache_key": session,
    })
}
