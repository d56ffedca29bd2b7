//! Tollgate in a realistic configuration: users, a balancer over two OAuth credentials, a `headers`
//! setting (so that the rewriter runs), metering and the ledger. Only the log line per request is
//! disabled for the bench, as nginx's access log is; and one user may have as many WebSockets as
//! are held open.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::site::{Forwarder, Running, Site, StartError};
use crate::process::Process;

/// The token that the load generator presents. The other forwarders pass it on unread.
pub const USER_TOKEN: &str = "bench-token-of-alice-0123456789abcdef";

/// The token of a second user.
pub const OTHER_TOKEN: &str = "bench-token-of-bob-0123456789abcdef";

/// An unsigned JWT with plan `pro` that expires in the year 2100 and so is never refreshed.
const ACCESS_TOKEN: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.\
     eyJleHAiOjQxMDI0NDQ4MDAsImh0dHBzOi8vYXBpLm9wZW5haS5jb20vYXV0aCI6eyJjaGF0Z3B0X3BsYW5fdHlwZSI6InBybyJ9fQ.\
     c2lnbmF0dXJl";

/// More than any number of sockets that a run opens.
const WEBSOCKETS_MAX: usize = 1_000_000;

const NAME: &str = "tollgate";
/// The name of the `data_dir`.
const DATA: &str = "data";
/// The name of the log file.
const LOG: &str = "tollgate.log";

/// Starts Tollgate with one thread for traffic, as the other forwarders have.
pub(super) async fn start(site: &Site, upstream: SocketAddr) -> Result<Running, StartError> {
    start_changed(site, upstream, Some("1"), &|_| ()).await
}

/// Starts Tollgate with `change` merged into the usual configuration, and with this number of
/// threads for traffic or its default.
pub(super) async fn start_changed(
    site: &Site,
    upstream: SocketAddr,
    threads: Option<&str>,
    change: &dyn Fn(&mut Value),
) -> Result<Running, StartError> {
    let folder = site.files_of(Forwarder::Tollgate.name())?;
    let config = write_files(&folder, upstream, &site.tollgate_overrides, change)
        .map_err(|cause| StartError::Files { name: NAME, cause })?;
    let ready_file = folder.join("ready");
    let mut command = Command::new(&site.tollgate);
    command
        .arg("run")
        .arg("-c")
        .arg(config)
        .arg("--ready-file")
        .arg(&ready_file);
    command.envs(threads.map(|threads| ("TOKIO_WORKER_THREADS", threads)));
    let begun = Instant::now();
    let mut process = Process::start(NAME, command, &folder)?;
    let address = process.ready(|| address_in(&ready_file)).await?;
    Ok(Running {
        address,
        process,
        ready_after: begun.elapsed(),
    })
}

/// Returns the path of the log.
pub(super) fn log(folder: &Path) -> PathBuf {
    folder.join(NAME).join(LOG)
}

/// Returns the path of the admin socket.
pub(super) fn admin_socket(folder: &Path) -> PathBuf {
    folder.join(NAME).join(DATA).join("admin.sock")
}

fn address_in(ready_file: &Path) -> Option<SocketAddr> {
    let ready: Value = serde_json::from_str(&fs::read_to_string(ready_file).ok()?).ok()?;
    ready["services"][0]["address"].as_str()?.parse().ok()
}

/// Writes both auth.json files and the config. Returns the config's path.
fn write_files(
    folder: &Path,
    upstream: SocketAddr,
    overrides: &Value,
    change: &dyn Fn(&mut Value),
) -> io::Result<PathBuf> {
    let mut credentials = Vec::new();
    for tag in ["a", "b"] {
        let file = folder.join(format!("auth-{tag}.json"));
        fs::write(&file, auth_json(tag)?)?;
        credentials.push(json!({"tag": tag, "credential_path": file}));
    }
    credentials.push(json!({
        "tag": "pool", "type": "balancer", "strategy": "least_used", "credentials": ["a", "b"],
    }));
    let mut config = json!({
        "log": {"level": "warn", "output": folder.join(LOG)},
        "data_dir": folder.join(DATA),
        "limits": {"websockets_per_user": WEBSOCKETS_MAX},
        "services": [{
            "type": "ocm",
            "tag": "bench",
            "listen": "127.0.0.1",
            "listen_port": 0,
            "credentials": credentials,
            "users": [
                {"name": "alice", "token": USER_TOKEN, "credential": "pool"},
                {"name": "bob", "token": OTHER_TOKEN, "credential": "pool"},
            ],
            "headers": {"x-bench-team": "platform"},
            "endpoints": {
                "chatgpt": format!("http://{upstream}/backend-api"),
                "api": format!("http://{upstream}"),
                "token": format!("http://{upstream}/oauth/token"),
            },
        }],
    });
    change(&mut config);
    merge(&mut config, overrides);
    let file = folder.join("config.json");
    fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
    Ok(file)
}

fn auth_json(tag: &str) -> io::Result<Vec<u8>> {
    let now = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .map_err(io::Error::other)?;
    Ok(serde_json::to_vec_pretty(&json!({
        "OPENAI_API_KEY": null,
        "auth_mode": "chatgpt",
        "tokens": {
            "id_token": ACCESS_TOKEN,
            "access_token": ACCESS_TOKEN,
            "refresh_token": format!("bench-refresh-{tag}"),
            "account_id": format!("bench-account-{tag}"),
        },
        "last_refresh": now,
    }))?)
}

/// Objects are merged key by key, `services` element by element; anything else is replaced.
fn merge(onto: &mut Value, overrides: &Value) {
    match (onto, overrides) {
        (Value::Object(onto), Value::Object(overrides)) => {
            for (key, value) in overrides {
                merge(onto.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(onto), Value::Array(overrides)) if onto.len() == overrides.len() => {
            onto.iter_mut()
                .zip(overrides)
                .for_each(|(onto, value)| merge(onto, value));
        }
        (onto, overrides) => *onto = overrides.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge;

    #[test]
    fn overrides_change_only_what_they_name() {
        let mut config = json!({"log": {"level": "warn"}, "services": [{"tag": "bench", "headers": {"a": "b"}}]});
        merge(
            &mut config,
            &json!({"limits": {"streams": 9}, "services": [{"headers": {"c": "d"}}]}),
        );
        let expected = json!({
            "log": {"level": "warn"},
            "services": [{"tag": "bench", "headers": {"a": "b", "c": "d"}}],
            "limits": {"streams": 9},
        });
        assert_eq!(config, expected);
    }
}
