//! What scenarios put in: users of a configuration, turns, times to come.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Returns the Unix second that is `seconds` from now.
pub fn unix_in(seconds: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock stands after 1970");
    now.as_secs() + seconds
}

/// Returns a user for a configuration, whose token is `token-NAME`, on this credential or pool.
pub fn user(name: &str, credential: &str) -> Value {
    json!({ "name": name, "token": format!("token-{name}"), "credential": credential })
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
