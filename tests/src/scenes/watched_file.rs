//! A credential whose auth.json another program writes, removes and replaces.

use std::path::Path;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::oauth_file;
use crate::clients::client::Client;
use crate::gateway::Rig;
use crate::turn;

/// A change takes effect within this time even on a slow machine, before the ten seconds after
/// which the gateway rereads files. The time that it took is printed; it should be less than a
/// second.
const SOON: Duration = Duration::from_secs(6);

/// A gateway with one credential, `a`, whose file may be missing.
pub struct WatchedFileScene {
    /// The rig that the gateway runs in.
    pub rig: Rig,
    /// A client of the gateway.
    pub client: Client,
    versions: i64,
}

/// A version of an auth.json. Each has its own account and date.
pub struct AuthVersion {
    /// The account that its token is of.
    pub account: String,
    /// The content of the file.
    pub text: String,
    /// When its tokens were refreshed, in Unix milliseconds.
    pub refreshed_at_ms: i64,
}

impl WatchedFileScene {
    /// Starts a gateway with the credential `a`, whose file is at `path`.
    pub async fn new(rig: Rig, path: &Path) -> Self {
        let mut rig = rig;
        let config = rig.config(json!({ "credentials": [{"tag": "a", "credential_path": path}] }));
        let client = rig.start(config).await;
        Self {
            rig,
            client,
            versions: 0,
        }
    }

    /// Starts with the file `a.json` in the rig's folder, and returns its version.
    pub async fn with_file() -> (Self, AuthVersion) {
        let rig = Rig::new().await;
        let first = AuthVersion::new(&rig, 0);
        let path = rig.credential_file("a");
        rig.write("a.json", &first.text);
        let mut scene = Self::new(rig, &path).await;
        scene.versions = 1;
        scene.uses(&first).await;
        (scene, first)
    }

    /// Returns a version that differs from all before it.
    pub fn version(&mut self) -> AuthVersion {
        self.versions += 1;
        AuthVersion::new(&self.rig, self.versions)
    }

    /// Checks that the gateway loads the version soon and uses it.
    ///
    /// # Panics
    /// Panics if it does not.
    pub async fn uses(&self, version: &AuthVersion) {
        // The status first: a request would make the gateway read the file of an unavailable
        // credential.
        let is_so = |found: &Value| {
            found["state"] == "ready" && found["refreshed_at"] == version.refreshed_at_ms
        };
        let begun = Instant::now();
        self.rig
            .wait_for_credential("a", SOON, &format!("as of {}", version.account), is_so)
            .await;
        println!("known after {:?}", begun.elapsed());
        let answer = self.client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let account = self.rig.upstream.turns().pop().expect("a turn").account;
        assert_eq!(account.as_deref(), Some(version.account.as_str()));
    }

    /// Checks that the credential becomes unavailable soon, for that reason, and requests fail.
    ///
    /// # Panics
    /// Panics if it does not.
    pub async fn is_unavailable(&self, reason: &str) {
        let is_so = |found: &Value| found["state"] == "unreadable";
        let found = self
            .rig
            .wait_for_credential("a", SOON, "unreadable", is_so)
            .await;
        let told = found["reason"].as_str().expect("a reason");
        assert!(told.contains(reason), "{told:?} has no {reason:?}");
        let before = self.rig.upstream.turns().len();
        let answer = self.client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json()["error"]["code"], "credentials_unavailable");
        assert_eq!(self.rig.upstream.turns().len(), before);
    }
}

impl AuthVersion {
    /// Returns the version `number`, whose account upstream knows.
    pub fn new(rig: &Rig, number: i64) -> Self {
        let (token, account) = (format!("access-{number}"), format!("account-{number}"));
        rig.upstream.account(&token, &account);
        let mut file = oauth_file(&token, &account);
        let made = OffsetDateTime::now_utc() - time::Duration::minutes(number);
        file["last_refresh"] = json!(
            made.format(&Rfc3339)
                .expect("a time of this century has an RFC 3339 form")
        );
        let refreshed_at_ms =
            i64::try_from(made.unix_timestamp_nanos() / 1_000_000).expect("a time of this century");
        Self {
            account,
            text: file.to_string(),
            refreshed_at_ms,
        }
    }
}
