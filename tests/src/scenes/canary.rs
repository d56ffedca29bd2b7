//! Canaries: a gateway in which every secret is a word that is easy to find, with an account, an
//! API key and a key of TLS, and checks that none of them is where it must not be.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::auth::{key_file, oauth_file};
use crate::clients::client::Answer;
use crate::clients::peer::find;
use crate::gateway::Rig;
use crate::gateway::ledger::rows;

/// The token of the user `alice`.
pub const ALICE: &str = "canary-token-of-alice-5d1f";
/// The token of the user `bob`.
pub const BOB: &str = "canary-token-of-bob-77ab";
/// A token of no user.
pub const WRONG: &str = "canary-wrong-token-3c90";
/// A cookie that clients send.
pub const COOKIE: &str = "canary-cookie-of-the-client-e41d";
/// A cookie that upstream sets.
pub const UPSTREAM_COOKIE: &str = "canary-cookie-of-upstream-c0c0";
/// The API key of two services.
pub const API_KEY: &str = "sk-canary-api-key-92f7";
/// The access tokens of the credentials `a` and `b`.
pub const ACCESS: [&str; 2] = ["canary-access-a-1b1b", "canary-access-b-2c2c"];
const REFRESH: [&str; 2] = ["canary-refresh-a-3d3d", "canary-refresh-b-4e4e"];
const ID: [&str; 2] = ["canaryIdA5f5f", "canaryIdB6a6a"];
/// What a broken auth.json contains.
pub const BROKEN: &str = "canary-in-a-broken-file-8b8b";

/// What only clients know.
const OF_CLIENTS: [&str; 4] = [ALICE, BOB, WRONG, COOKIE];
/// What upstream may receive, and in one header only.
const FOR_UPSTREAM: [&str; 3] = [API_KEY, ACCESS[0], ACCESS[1]];
/// Secrets that never leave the gateway.
const OF_THE_GATEWAY: [&str; 5] = [REFRESH[0], REFRESH[1], ID[0], ID[1], BROKEN];

/// All canaries, and the middle of the TLS key.
pub struct Canaries {
    all: Vec<String>,
}

impl Canaries {
    fn with_key(tls_key: &str) -> Self {
        let all = [
            &OF_CLIENTS[..],
            &FOR_UPSTREAM,
            &OF_THE_GATEWAY,
            &[UPSTREAM_COOKIE],
        ]
        .concat();
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let line = tls_key.lines().nth(1).expect("a key has lines");
        all.push(line.to_owned());
        Self { all }
    }

    /// Checks that no canary is in `bytes`, which were found in `place`.
    ///
    /// # Panics
    /// Panics if one is.
    #[track_caller]
    pub fn are_not_in(&self, place: &str, bytes: impl AsRef<[u8]>) {
        for canary in &self.all {
            assert!(
                find(bytes.as_ref(), canary.as_bytes()).is_none(),
                "{canary} is in {place}"
            );
        }
    }

    /// Checks that no canary is in the head or the body of an answer.
    ///
    /// # Panics
    /// Panics if one is.
    #[track_caller]
    pub fn are_not_in_answer(&self, what: &str, answer: &Answer) {
        self.are_not_in(
            &format!("the head of {what}"),
            format!("{:?}", answer.headers),
        );
        self.are_not_in(&format!("the body of {what}"), &answer.body);
    }
}

/// A configuration of three services with canaries: a pool of accounts, an API key behind TLS, and
/// an API key in clear.
pub struct CanaryScene {
    /// The rig. No gateway runs yet.
    pub rig: Rig,
    /// The configuration, which contains some of the canaries.
    pub config: Value,
    /// The secrets that no output may contain.
    pub canaries: Canaries,
    /// The files that a person wrote, which contain secrets.
    written: Vec<PathBuf>,
}

/// Writes files as a person does, and remembers them.
struct WrittenFiles<'a> {
    rig: &'a Rig,
    paths: Vec<PathBuf>,
}

impl WrittenFiles<'_> {
    fn write(&mut self, name: &str, content: &str) -> String {
        self.paths.push(self.rig.path(name));
        self.rig.write(name, content)
    }
}

impl CanaryScene {
    /// Creates the scene with this `log` in its configuration.
    pub async fn new(log: Value) -> Self {
        let rig = Rig::new().await;
        let mut files = WrittenFiles {
            rig: &rig,
            paths: Vec::new(),
        };
        let tls_key = KeyPair::generate().expect("a key");
        let mut config = pool_service(&rig, &mut files);
        let services = config["services"].as_array_mut().expect("a list");
        services.extend(key_services(&rig, &mut files, &tls_key));
        config["log"] = log;
        config["limits"] = json!({ "upstream_head_timeout": "5s" });
        let mut written = files.paths;
        written.push(rig.path("config.json"));
        Self {
            rig,
            config,
            canaries: Canaries::with_key(&tls_key.serialize_pem()),
            written,
        }
    }

    /// Returns the address of a service of the running gateway.
    pub fn address(&self, service: usize) -> SocketAddr {
        let ready = fs::read(self.rig.path("ready.json")).expect("the ready file");
        let ready: Value = serde_json::from_slice(&ready).expect("JSON");
        ready["services"][service]["address"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address")
    }

    /// Checks that upstream received no other secret than its own, and that in one header.
    ///
    /// # Panics
    /// Panics if it received another, or fewer than `requests` requests.
    pub fn check_upstream(&self, requests: usize) {
        let seen = self.rig.upstream.requests();
        assert!(seen.len() >= requests, "upstream saw {}", seen.len());
        for seen in seen {
            let presented = seen.header("authorization").expect("every request has it");
            let presented = presented.strip_prefix("Bearer ").expect("a bearer token");
            assert!(
                FOR_UPSTREAM.contains(&presented),
                "upstream received another secret"
            );
            let mut others = seen.headers.clone();
            others.remove("authorization");
            self.canaries.are_not_in(
                "an upstream request's head",
                format!("{} {others:?}", seen.target),
            );
            self.canaries
                .are_not_in("an upstream request's body", &seen.body);
        }
    }

    /// Checks every file in the rig's folder that the gateway wrote: log, ledger, usage files,
    /// ready file.
    ///
    /// # Panics
    /// Panics if a file has a canary, or an expected file is missing.
    pub fn check_files(&self) {
        let mut files = Vec::new();
        add_files(self.rig.folder(), &mut files);
        let names: Vec<_> = files
            .iter()
            .filter_map(|file| file.file_name()?.to_str())
            .collect();
        for expected in [
            "ledger.db",
            "gateway.log",
            "usages-a.json",
            "usages-key-in-clear.json",
            "ready.json",
        ] {
            assert!(
                names.contains(&expected),
                "{expected} is not among {names:?}"
            );
        }
        for file in files.iter().filter(|file| !self.written.contains(file)) {
            self.canaries.are_not_in(
                &file.display().to_string(),
                fs::read(file).expect("it can be read"),
            );
        }
        for row in rows(&self.rig.ledger()) {
            self.canaries.are_not_in("a row", row.everything());
        }
    }
}

/// Returns a configuration with a service for `alice` and `bob` on a pool of a broken credential,
/// `a` and `b`.
fn pool_service(rig: &Rig, files: &mut WrittenFiles<'_>) -> Value {
    let mut credentials = Vec::new();
    for (index, tag) in ["a", "b"].into_iter().enumerate() {
        rig.upstream
            .account(ACCESS[index], &format!("account-{tag}"));
        let mut auth = oauth_file(ACCESS[index], &format!("account-{tag}"));
        auth["tokens"]["id_token"] = json!(format!("e30.e30.{}", ID[index]));
        auth["tokens"]["refresh_token"] = json!(REFRESH[index]);
        let path = files.write(&format!("{tag}.json"), &auth.to_string());
        let usages = rig.path(&format!("usages-{tag}.json"));
        credentials.push(json!({ "tag": tag, "credential_path": path, "usages_path": usages }));
    }
    let broken = format!(r#"{{"tokens": {{"access_token": "{BROKEN}", {BROKEN}"#);
    let broken = files.write("broken.json", &broken);
    credentials.push(json!({ "tag": "broken", "credential_path": broken }));
    credentials.push(json!({
        "tag": "pool",
        "type": "balancer",
        "strategy": "fallback",
        "credentials": ["broken", "a", "b"],
    }));
    let user =
        |name: &str, token: &str| json!({ "name": name, "token": token, "credential": "pool" });
    let users = [user("alice", ALICE), user("bob", BOB)];
    rig.config(json!({ "credentials": credentials, "users": users }))
}

/// Returns two services for `alice` with the API key: one behind TLS, and one in clear.
fn key_services(rig: &Rig, files: &mut WrittenFiles<'_>, tls_key: &KeyPair) -> [Value; 2] {
    rig.upstream.api_key(API_KEY, "key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let certificate = certificate.self_signed(tls_key).expect("signs").pem();
    let certificate = files.write("tls.pem", &certificate);
    let tls_key = files.write("tls.key", &tls_key.serialize_pem());
    let auth = key_file(API_KEY).to_string();
    let mut service = |tag: &str, more: Value| {
        let name = tag.trim_start_matches("by-");
        let mut service = rig.config(json!({
            "tag": tag,
            "credential_path": files.write(&format!("{name}.json"), &auth),
            "usages_path": rig.path(&format!("usages-{name}.json")),
            "users": [{ "name": "alice", "token": ALICE }],
        }))["services"][0]
            .clone();
        if !more.is_null() {
            service["tls"] = more;
        }
        service
    };
    let tls = json!({ "enabled": true, "certificate_path": certificate, "key_path": tls_key });
    [
        service("by-key", tls),
        service("by-key-in-clear", Value::Null),
    ]
}

/// Adds the files below `folder` to `files`.
fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            add_files(&path, files);
        } else {
            files.push(path);
        }
    }
}
