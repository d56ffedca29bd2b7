//! The scene: a temporary folder with credentials and a config, and the scripted upstream that they
//! point to. Invariant: nothing in it is secret, and nothing leads off this machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use scripted_upstream::{Account, HeaderForm, Standing, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::outcome::Outcome;

/// Lines of a log that go into an error.
const TAIL_LINES: usize = 20;
const HOUR: u64 = 3600;
/// The use that each turn adds to a weekly window: far more than in reality, so that six sessions
/// shift the balance.
const WEEKLY_PERCENT_PER_TURN: f64 = 6.0;

/// The users of the gateway.
pub(crate) const USERS: [User; 2] = [
    User {
        name: "alice",
        token: "tg-demo-alice",
    },
    User {
        name: "bob",
        token: "tg-demo-bob",
    },
];

/// A user of the gateway.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) token: &'static str,
}

/// A credential of the gateway and the account behind it.
pub(crate) struct Credential {
    pub(crate) tag: &'static str,
    pub(crate) account: Account,
}

/// The scripted upstream, the files and the users around a gateway.
pub(crate) struct Scene {
    pub(crate) upstream: Upstream,
    pub(crate) credentials: Vec<Credential>,
    folder: TempDir,
}

impl Scene {
    /// Starts the upstream and writes every file.
    pub(crate) async fn set() -> Outcome<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tollgate-demo-")
            .tempdir()
            .map_err(|error| format!("cannot make a temporary folder: {error}"))?;
        let upstream = Upstream::start().await;
        let mut scene = Scene {
            upstream,
            credentials: Vec::new(),
            folder,
        };
        for (tag, standing) in standings() {
            scene.add_credential(tag, standing)?;
        }
        let config =
            serde_json::to_vec_pretty(&scene.config()).expect("JSON values can be written");
        write_private(&scene.config_path(), &config)?;
        Ok(scene)
    }

    /// Returns the path of the gateway's config file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.path("tollgate.json")
    }

    /// Returns the path of the gateway's ready file.
    pub(crate) fn ready_path(&self) -> PathBuf {
        self.path("ready.json")
    }

    /// Returns the path of the gateway's output.
    pub(crate) fn output_path(&self) -> PathBuf {
        self.path("output.txt")
    }

    /// Returns the path of the gateway's ledger.
    pub(crate) fn ledger_path(&self) -> PathBuf {
        self.path("data/ledger.db")
    }

    /// Returns the credential whose account has this id.
    pub(crate) fn tag_of(&self, account_id: &str) -> Option<&'static str> {
        self.credentials
            .iter()
            .find(|credential| credential.account.id() == account_id)
            .map(|found| found.tag)
    }

    /// Returns the last lines of the gateway's output, for an error.
    pub(crate) fn log_tails(&self) -> String {
        let tail = |path: PathBuf| {
            let text = fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if last.is_empty() {
                format!("\n{name}: empty")
            } else {
                format!("\n{name} ends:\n  {last}")
            }
        };
        tail(self.log_path()) + &tail(self.output_path())
    }

    /// Removes the folder with all files.
    pub(crate) fn clear_away(self) -> Outcome<()> {
        let path = self.folder.path().to_owned();
        self.folder
            .close()
            .map_err(|error| format!("cannot remove {}: {error}", path.display()))
    }

    fn add_credential(&mut self, tag: &'static str, standing: Standing) -> Outcome<()> {
        let id = format!("acct-{tag}");
        let auth = auth_json(&id, &standing.plan);
        let account = self.upstream.account(
            auth["tokens"]["access_token"]
                .as_str()
                .expect("a string, above"),
            &id,
        );
        account.set_standing(standing);
        let text = serde_json::to_vec_pretty(&auth).expect("JSON values can be written");
        write_private(&self.auth_path(tag), &text)?;
        self.credentials.push(Credential { tag, account });
        Ok(())
    }

    fn config(&self) -> Value {
        let default = |tag: &str| json!({"tag": tag, "credential_path": self.auth_path(tag)});
        let tags: Vec<&str> = self
            .credentials
            .iter()
            .map(|credential| credential.tag)
            .collect();
        let mut credentials: Vec<Value> = tags.iter().map(|tag| default(tag)).collect();
        credentials.push(json!({"tag": "pool", "type": "balancer", "strategy": "least_used", "credentials": tags}));
        json!({
            "log": {"level": "info", "output": self.log_path(), "format": "json"},
            "data_dir": self.path("data"),
            "services": [{
                "type": "ocm",
                "tag": "demo",
                "listen": "127.0.0.1",
                "listen_port": 0,
                "credentials": credentials,
                "users": USERS.map(|user| json!({"name": user.name, "token": user.token, "credential": "pool"})),
                "endpoints": {
                    "chatgpt": self.upstream.chatgpt_url(),
                    "api": self.upstream.api_url(),
                    "token": format!("{}/oauth/token", self.upstream.api_url()),
                },
            }],
        })
    }

    fn auth_path(&self, tag: &str) -> PathBuf {
        self.path(&format!("auth-{tag}.json"))
    }

    fn log_path(&self) -> PathBuf {
        self.path("gateway.log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Creates three accounts: one hardly used, one half used, one whose 5-hour window is nearly used
/// up.
fn standings() -> [(&'static str, Standing); 3] {
    let now = unix_now();
    let standing = |plan: &str, five_hour: f64, weekly: f64, five_hour_resets_in: u64| {
        let mut standing = Standing::new(plan)
            .five_hour_used(five_hour)
            .five_hour_resets_at(now + five_hour_resets_in)
            .weekly_used(weekly)
            .header_form(HeaderForm::ActiveLimit);
        standing.weekly.used_percent_per_turn = WEEKLY_PERCENT_PER_TURN;
        standing
    };
    [
        ("ana", standing("team", 12.0, 30.0, 4 * HOUR)),
        ("ben", standing("plus", 55.0, 45.0, 2 * HOUR)),
        ("cyd", standing("plus", 97.0, 20.0, HOUR)),
    ]
}

/// Returns an auth.json as Codex writes it, with tokens that only the scripted upstream accepts.
fn auth_json(account_id: &str, plan: &str) -> Value {
    let claims = json!({
        "iss": "https://auth.openai.com",
        "sub": account_id,
        "exp": unix_now() + 10 * 24 * HOUR,
        "https://api.openai.com/auth": {"chatgpt_account_id": account_id, "chatgpt_plan_type": plan},
    });
    let last_refresh = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .expect("a time of this century has an RFC 3339 form");
    json!({
        "OPENAI_API_KEY": null,
        "tokens": {
            "id_token": jwt(&claims, "id"),
            "access_token": jwt(&claims, "access"),
            "refresh_token": format!("rt-demo-{account_id}"),
            "account_id": account_id,
        },
        "last_refresh": last_refresh,
    })
}

/// Encodes a token in the form of a JWT; its signature is just a word.
fn jwt(claims: &Value, signature: &str) -> String {
    let part = |text: &str| base64url(text.as_bytes());
    [
        part(r#"{"alg":"none","typ":"JWT"}"#),
        part(&claims.to_string()),
        part(signature),
    ]
    .join(".")
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (index, byte)| {
            bits | u32::from(*byte) << (16 - 8 * index)
        });
        for letter in 0..=group.len() {
            text.push(char::from(
                LETTERS[(bits >> (18 - 6 * letter) & 63) as usize],
            ));
        }
    }
    text
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let written = written.and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_the_rfc() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"]
            .map(|text| base64url(text.as_bytes()));
        assert_eq!(
            encoded,
            ["", "Zg", "Zm8", "Zm9v", "Zm9vYg", "Zm9vYmE", "Zm9vYmFy"]
        );
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }
}
