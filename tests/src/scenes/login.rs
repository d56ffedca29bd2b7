//! A credential whose login the token endpoint knows, for scenarios about refreshing tokens.

use std::path::PathBuf;

use scripted_upstream::{Login, WAIT_MAX};
use serde_json::{Value, json};

use crate::auth::read_json;
use crate::clients::client::Client;
use crate::gateway::Rig;
use crate::user;

/// A rig with the credential `a`, which has its own login.
pub struct LoginScene {
    /// The rig, whose gateway is not started yet.
    pub rig: Rig,
    /// The credential, for a configuration.
    pub credential: Value,
    /// The login, to script.
    pub login: Login,
}

impl LoginScene {
    /// Creates a scene whose file has an access token that expires in `seconds`.
    pub async fn new(seconds: i64) -> Self {
        let rig = Rig::new().await;
        let (credential, login) = rig.expiring_login("a", seconds);
        Self {
            rig,
            credential,
            login,
        }
    }

    /// Returns the path of the credential's auth.json.
    pub fn file(&self) -> PathBuf {
        self.rig.credential_file("a")
    }

    /// Starts a gateway with `a` alone.
    pub async fn start(&mut self, limits: Value) -> Client {
        let mut config = self.rig.config(json!({ "credentials": [self.credential] }));
        config["limits"] = limits;
        self.rig.start(config).await
    }

    /// Starts a gateway with a pool of `a`, then `b`, whose tokens are valid.
    pub async fn start_pool(&mut self, limits: Value) -> Client {
        let pool = json!({ "tag": "pool", "type": "fallback", "credentials": ["a", "b"] });
        let mut config = self
            .rig
            .config(json!({ "credentials": [pool, self.credential, self.rig.oauth("b")] }));
        config["limits"] = limits;
        self.rig.start(config).await
    }

    /// Waits until no refresh is in flight and the file has the newest tokens of the login.
    pub async fn wait_for_new_tokens(&self) {
        let is_so = |found: &Value| found["state"] == "ready" && self.has_newest_tokens();
        self.rig
            .wait_for_credential("a", WAIT_MAX, "new tokens", is_so)
            .await;
    }

    /// Returns `true` if the file has the newest tokens of the login.
    pub fn has_newest_tokens(&self) -> bool {
        read_json(&self.file())["tokens"] == self.login.auth_json()["tokens"]
    }

    /// Returns the number of POSTs to the token endpoint, with any token.
    pub fn token_posts(&self) -> usize {
        self.rig.token_posts()
    }
}

/// Credentials with a login each, and a user of the same name for each of them.
#[derive(Default)]
pub struct LoginGroup {
    /// The credentials, for a configuration.
    pub credentials: Vec<Value>,
    /// The users, for a configuration.
    pub users: Vec<Value>,
    /// The logins of the credentials, to script.
    pub logins: Vec<Login>,
}

impl LoginGroup {
    /// Adds the credential `tag`, whose access token expires in `seconds`, and the user `tag`.
    /// Returns the login.
    pub fn add(&mut self, rig: &Rig, tag: &str, seconds: i64) -> Login {
        let (credential, login) = rig.expiring_login(tag, seconds);
        self.credentials.push(credential);
        self.users.push(user(tag, tag));
        self.logins.push(login.clone());
        login
    }

    /// Returns a configuration with these credentials and users.
    pub fn config(&self, rig: &Rig) -> Value {
        rig.config(json!({ "credentials": self.credentials, "users": self.users }))
    }
}

impl Rig {
    /// Returns the number of POSTs to the token endpoint, with any token.
    pub fn token_posts(&self) -> usize {
        let requests = self.upstream.requests();
        requests
            .iter()
            .filter(|seen| seen.path() == "/oauth/token")
            .count()
    }
}
