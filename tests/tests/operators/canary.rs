//! Canaries in every secret: none sings anywhere but where it must.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, StatusCode};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tollgate_tests::peer::{Peer, find};
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Answer, Client, Program, Rig, binary, oauth_file, rows, turn, wait_for_rows};

const ALICE: &str = "canary-token-of-alice-5d1f";
const BOB: &str = "canary-token-of-bob-77ab";
const WRONG: &str = "canary-wrong-token-3c90";
const COOKIE: &str = "canary-cookie-of-the-client-e41d";
const UPSTREAM_COOKIE: &str = "canary-cookie-of-upstream-c0c0";
const API_KEY: &str = "sk-canary-api-key-92f7";
const ACCESS: [&str; 2] = ["canary-access-a-1b1b", "canary-access-b-2c2c"];
const REFRESH: [&str; 2] = ["canary-refresh-a-3d3d", "canary-refresh-b-4e4e"];
const ID: [&str; 2] = ["canaryIdA5f5f", "canaryIdB6a6a"];
const BROKEN: &str = "canary-in-a-broken-file-8b8b";

/// What only clients know.
const OF_CLIENTS: [&str; 4] = [ALICE, BOB, WRONG, COOKIE];
/// What upstream may be shown, and in one header only.
const FOR_UPSTREAM: [&str; 3] = [API_KEY, ACCESS[0], ACCESS[1]];
/// Secrets that never leave the gateway.
const OF_NOBODY: [&str; 5] = [REFRESH[0], REFRESH[1], ID[0], ID[1], BROKEN];

/// All canaries, and the middle of the TLS key.
struct Canaries {
    all: Vec<String>,
}

impl Canaries {
    #[track_caller]
    fn are_not_in(&self, place: &str, bytes: impl AsRef<[u8]>) {
        for canary in &self.all {
            assert!(
                find(bytes.as_ref(), canary.as_bytes()).is_none(),
                "{canary} is in {place}"
            );
        }
    }

    #[track_caller]
    fn are_not_in_answer(&self, what: &str, answer: &Answer) {
        self.are_not_in(
            &format!("the head of {what}"),
            format!("{:?}", answer.headers),
        );
        self.are_not_in(&format!("the body of {what}"), &answer.body);
    }
}

/// The rig, its configuration, and what is in the files that a person wrote.
struct CanaryScene {
    rig: Rig,
    config: Value,
    canaries: Canaries,
    written: Vec<PathBuf>,
}

impl CanaryScene {
    async fn new(log: Value) -> Self {
        let rig = Rig::new().await;
        let mut written = Vec::new();
        let mut file = |name: &str, content: &str| {
            written.push(rig.path(name));
            rig.write(name, content)
        };
        let mut credentials = Vec::new();
        for (index, tag) in ["a", "b"].into_iter().enumerate() {
            rig.upstream
                .account(ACCESS[index], &format!("account-{tag}"));
            let mut auth = oauth_file(ACCESS[index], &format!("account-{tag}"));
            auth["tokens"]["id_token"] = json!(format!("e30.e30.{}", ID[index]));
            auth["tokens"]["refresh_token"] = json!(REFRESH[index]);
            let path = file(&format!("{tag}.json"), &auth.to_string());
            let usages = rig.path(&format!("usages-{tag}.json"));
            credentials.push(json!({ "tag": tag, "credential_path": path, "usages_path": usages }));
        }
        let broken = file(
            "broken.json",
            &format!(r#"{{"tokens": {{"access_token": "{BROKEN}", {BROKEN}"#),
        );
        credentials.push(json!({ "tag": "broken", "credential_path": broken }));
        let members = ["broken", "a", "b"];
        credentials.push(json!({ "tag": "pool", "type": "balancer", "strategy": "fallback", "credentials": members }));
        rig.upstream.api_key(API_KEY, "key");
        let key_path = file(
            "key.json",
            &json!({ "OPENAI_API_KEY": API_KEY }).to_string(),
        );
        let key_in_clear = file(
            "key-in-clear.json",
            &json!({ "OPENAI_API_KEY": API_KEY }).to_string(),
        );
        let tls = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let certificate = file(
            "tls.pem",
            &certificate.self_signed(&tls).expect("signs").pem(),
        );
        let tls_key = file("tls.key", &tls.serialize_pem());
        let all = [
            &OF_CLIENTS[..],
            &FOR_UPSTREAM,
            &OF_NOBODY,
            &[UPSTREAM_COOKIE],
        ]
        .concat();
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        all.push(
            tls.serialize_pem()
                .lines()
                .nth(1)
                .expect("a key has lines")
                .to_owned(),
        );

        let user = |name: &str, token: &str, credential: &str| json!({ "name": name, "token": token, "credential": credential });
        let users = [user("alice", ALICE, "pool"), user("bob", BOB, "pool")];
        let mut config = rig.config(json!({ "credentials": credentials, "users": users }));
        let by_key = rig.config(json!({
            "tag": "by-key",
            "credential_path": key_path,
            "usages_path": rig.path("usages-key.json"),
            "users": [{ "name": "alice", "token": ALICE }],
            "tls": { "enabled": true, "certificate_path": certificate, "key_path": tls_key },
        }));
        let mut plain = by_key["services"][0].clone();
        plain["tag"] = json!("by-key-in-clear");
        plain["credential_path"] = json!(key_in_clear);
        plain["usages_path"] = json!(rig.path("usages-key-in-clear.json"));
        plain.as_object_mut().expect("an object").remove("tls");
        let services = config["services"].as_array_mut().expect("a list");
        services.push(by_key["services"][0].clone());
        services.push(plain);
        config["log"] = log;
        config["limits"] = json!({ "upstream_head_timeout": "5s" });
        written.push(rig.path("config.json"));
        Self {
            rig,
            config,
            canaries: Canaries { all },
            written,
        }
    }

    /// The address of a service of the running gateway.
    fn address(&self, service: usize) -> std::net::SocketAddr {
        let ready = fs::read(self.rig.path("ready.json")).expect("the ready file");
        let ready: Value = serde_json::from_slice(&ready).expect("JSON");
        ready["services"][service]["address"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address")
    }

    /// Sends every request that could reveal a secret. Returns how many were admitted.
    async fn traffic(&self, program: &Program) -> usize {
        let bare = program
            .client()
            .header("cookie", &format!("session={COOKIE}"));
        let (alice, bob) = (bare.token(ALICE), bare.token(BOB));
        let check = |what: &str, status: u16, answer: Answer| {
            assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text());
            self.canaries.are_not_in_answer(what, &answer);
        };
        let (a, b) = (
            self.rig.upstream.account(ACCESS[0], ""),
            self.rig.upstream.account(ACCESS[1], ""),
        );

        // Refused at the door.
        let anonymous = &turn("anonymous");
        check("no token", 401, bare.turn(anonymous).await);
        check(
            "a wrong token",
            401,
            bare.token(WRONG).turn(anonymous).await,
        );
        check(
            "half a token",
            401,
            bare.token(&ALICE[..ALICE.len() - 1]).turn(anonymous).await,
        );
        check(
            "another scheme",
            401,
            bare.header("authorization", &format!("Basic {ALICE}"))
                .turn(anonymous)
                .await,
        );
        check(
            "another field",
            400,
            bare.header("x-api-key", ALICE).turn(anonymous).await,
        );
        check(
            "another field",
            400,
            alice.header("api-key", BOB).turn(anonymous).await,
        );
        check("another path", 404, alice.get("/elsewhere").await);
        check(
            "status without a token",
            401,
            bare.token(WRONG).get("/ocm/v1/status").await,
        );
        check("status", 200, alice.get("/ocm/v1/status").await);

        // Served, refused by upstream, and moved on.
        a.then(Reply::ok().header("set-cookie", &format!("id={UPSTREAM_COOKIE}")));
        check("a turn", 200, alice.turn(&turn("one")).await);
        check(
            "a turn over HTTP/2",
            200,
            alice.http2().turn(&turn("one")).await,
        );
        check(
            "a turn as JSON",
            200,
            bob.turn(&json!({ "model": "gpt-5.4", "stream": false }))
                .await,
        );
        check(
            "a path that upstream has not",
            404,
            alice.ask(Method::POST, "/v1/nowhere", "{}").await,
        );
        check(
            "a body that is no JSON",
            400,
            alice.ask(Method::POST, "/v1/responses", "{").await,
        );
        a.then(Reply::error(400, "invalid_request_error", "no"))
            .then(Reply::server_error(500));
        check("400", 400, alice.turn(&turn("one")).await);
        check("500", 500, alice.turn(&turn("one")).await);
        a.then(Reply::close_before_head())
            .then(Reply::garbage("no HTTP at all\r\n\r\n"));
        check("no head", 502, alice.turn(&turn("one")).await);
        check("garbage", 502, alice.turn(&turn("one")).await);
        check(
            "chat",
            400,
            alice
                .ask(
                    Method::POST,
                    "/v1/chat/completions",
                    turn("one").to_string(),
                )
                .await,
        );
        a.then(Reply::usage_limit_reached().resets_in_seconds(3600));
        check("failover", 200, alice.turn(&turn("one")).await);
        b.then(Reply::usage_limit_reached().resets_in_seconds(3600));
        check("exhausted", 429, alice.turn(&turn("one")).await);
        check("still exhausted", 429, alice.turn(&turn("one")).await);

        // By API key.
        let by_key = Client::new(self.address(2))
            .header("cookie", COOKIE)
            .token(ALICE);
        check("by key", 200, by_key.turn(&turn("key")).await);
        check(
            "chat by key",
            200,
            by_key
                .ask(
                    Method::POST,
                    "/v1/chat/completions",
                    turn("key").to_string(),
                )
                .await,
        );
        self.rig.upstream.account(API_KEY, "").then(Reply::error(
            401,
            "invalid_request_error",
            "Incorrect API key",
        ));
        check("401 by key", 401, by_key.turn(&turn("key")).await);

        // In clear to the listener of TLS.
        let mut peer = Peer::connect(self.address(1)).await;
        peer.send(format!(
            "GET /v1/models HTTP/1.1\r\nauthorization: Bearer {WRONG}\r\n\r\n"
        ))
        .await;
        self.canaries
            .are_not_in("an answer to no TLS", peer.rest().await);
        16
    }

    /// The commands that print what the ledger has.
    fn check_usage(&self) {
        let config = self.rig.path("config.json");
        for by in ["user", "model", "credential", "day"] {
            for form in [None, Some("--json"), Some("--csv")] {
                let mut arguments = vec![
                    "usage",
                    "-c",
                    config.to_str().expect("a plain name"),
                    "--by",
                    by,
                ];
                arguments.extend(form);
                let (code, printed) = run(&arguments);
                assert_eq!(code, Some(0), "{printed}");
                self.canaries
                    .are_not_in("the output of tollgate usage", &printed);
            }
        }
    }

    fn check_upstream(&self) {
        let requests = self.rig.upstream.requests();
        assert!(
            requests.len() >= 13,
            "upstream saw {} requests",
            requests.len()
        );
        for seen in requests {
            let shown = seen.header("authorization").expect("every request has it");
            let shown = shown.strip_prefix("Bearer ").expect("a bearer token");
            assert!(
                FOR_UPSTREAM.contains(&shown),
                "upstream was shown another secret"
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

    /// Every file in the rig's folder that the gateway wrote: log, ledger, usage files, ready file.
    fn check_files(&self) {
        let mut files = Vec::new();
        walk(self.rig.folder(), &mut files);
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

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, files)
        } else {
            files.push(path)
        }
    }
}

/// Runs the binary to its end. Returns its exit code and everything it printed.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&printed).into_owned(),
    )
}

/// The gateway prints to gateway.log; if `log.output` names another file, its log is there.
async fn check_gateway(log_file: Option<&str>, format: &str) {
    let mut scene = CanaryScene::new(json!({ "level": "trace", "format": format })).await;
    if let Some(name) = log_file {
        scene.config["log"]["output"] = json!(scene.rig.path(name));
    }
    let program = scene.rig.spawn(&scene.config).await;
    let admitted = scene.traffic(&program).await;
    wait_for_rows(&scene.rig.ledger(), admitted).await;
    scene.check_usage();
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(20)).await.success());
    scene.check_upstream();
    scene.check_files();
    let log = fs::read_to_string(scene.rig.path(log_file.unwrap_or("gateway.log"))).expect("a log");
    for told in [
        "attempt ended",
        "request refused",
        "credential rate-limited",
    ] {
        assert!(
            log.contains(told),
            "{told:?} is not in the log: it shows nothing\n{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_of_json_a_row_a_file_an_answer_or_a_wrong_field_of_upstream() {
    check_gateway(None, "json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_of_text_in_its_own_file() {
    check_gateway(Some("own.log"), "text").await;
}

/// Configurations that are wrong where, or near where, a secret stands.
fn bad_configs(canary: &str) -> Vec<(&'static str, String)> {
    let service = |fields: Value| {
        let mut service = json!({ "type": "ocm", "listen_port": 0 });
        service
            .as_object_mut()
            .expect("an object")
            .extend(fields.as_object().expect("fields").clone());
        json!({ "services": [service] }).to_string()
    };
    let user = |user: Value| service(json!({ "users": [user] }));
    let both = json!([{ "name": "a", "token": canary }, { "name": "b", "token": canary }]);
    vec![
        ("an unknown credential", user(json!({ "name": "a", "token": canary, "credential": "missing" }))),
        ("an unknown field", user(json!({ "name": "a", "tokn": canary }))),
        ("a list for a token", user(json!({ "name": "a", "token": [canary] }))),
        ("an object for a token", user(json!({ "name": "a", "token": { canary: 1 } }))),
        ("a token for a user", service(json!({ "users": [canary] }))),
        ("a token for users", service(json!({ "users": canary }))),
        ("one token for two", service(json!({ "users": both }))),
        ("a key that is none", service(json!({ "tls": { "enabled": true, "certificate": canary, "key": canary } }))),
        ("a key's list", service(json!({ "tls": { "enabled": true, "certificate": "x", "key": { "pem": canary } } }))),
        ("a header's list", service(json!({ "headers": { "authorization": { "bearer": canary } } }))),
        ("a header that cannot be sent", service(json!({ "headers": { "x-key": format!("{canary}\n") } }))),
        ("an endpoint's password", service(json!({ "endpoints": { "chatgpt": format!("ftp://me:{canary}@host") } }))),
        ("an endpoint's password", service(json!({ "endpoints": { "api": format!("https://me:{canary}@host/") } }))),
        (
            "an outbound's password",
            json!({ "outbounds": [{ "type": "socks", "tag": "s", "server": "h", "server_port": "x", "password": canary }] })
                .to_string(),
        ),
        (
            "an outbound's password of another type",
            json!({ "outbounds": [{ "type": "socks", "tag": "s", "server": "h", "server_port": 1, "password": [canary] }] })
                .to_string(),
        ),
        ("no end", format!(r#"{{"services": [{{"type": "ocm", "users": [{{"token": "{canary}"#)),
        ("no quotes", format!(r#"{{"services": [{{"type": "ocm", "users": [{{"token": {canary}}}]}}]}}"#)),
        ("two strings", format!(r#"{{"services": [{{"users": [{{"token": "x" "{canary}"}}]}}]}}"#)),
        ("an escape that is none", format!(r#"{{"services": [{{"users": [{{"token": "\q{canary}"}}]}}]}}"#)),
        ("another file", format!("TOKEN={canary}\n")),
        ("a string", format!("\"{canary}\"")),
    ]
}

fn check_bad_configs(canary: &str, commands: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let path = path.to_str().expect("a plain name");
    let mut sung = Vec::new();
    for (what, config) in bad_configs(canary) {
        fs::write(path, &config).expect("the folder can be written");
        for command in commands {
            let (code, printed) = run(&[command, "-c", path]);
            if printed.contains(canary) || code != Some(1) {
                sung.push(format!("{what}, {command}: {code:?} {printed}"));
            }
        }
    }
    assert!(sung.is_empty(), "{}", sung.join("\n"));
}

#[test]
fn no_error_of_a_configuration_quotes_a_secret() {
    check_bad_configs("canary-in-a-bad-config-4f4f", &["check", "run", "usage"]);
}

/// A token of digits without quotes is a token.
#[test]
fn no_error_of_a_configuration_quotes_a_secret_that_is_a_number() {
    check_bad_configs("48151623421080", &["check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_panic_or_error_at_start_quotes_an_auth_file() {
    let contents = [
        BROKEN.to_owned(),
        format!("[\"{BROKEN}\"]"),
        format!("{{\"OPENAI_API_KEY\": [\"{BROKEN}\"]}}"),
        format!("{{\"OPENAI_API_KEY\": \"{BROKEN}\\n\"}}"),
        format!("{{\"tokens\": \"{BROKEN}\"}}"),
        format!("{{\"tokens\": {{\"access_token\": {{\"x\": \"{BROKEN}\"}}}}}}"),
        format!("{{\"tokens\": {{\"access_token\": \"{BROKEN}\\u0000\", \"account_id\": \"x\"}}}}"),
        format!("{{\"tokens\": {{\"access_token\": \"x\", \"account_id\": \"{BROKEN}\\n\"}}}}"),
        format!("{{\"auth_mode\": {{\"{BROKEN}\": 1}}}}"),
    ];
    let rig = Rig::new().await;
    let mut services = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        let path = rig.write(&format!("auth-{number}.json"), content);
        let config =
            rig.config(json!({ "tag": format!("service-{number}"), "credential_path": path }));
        services.push(config["services"][0].clone());
    }
    let mut config = rig.config(json!({}));
    config["services"] = json!(services);
    config["log"] = json!({ "level": "trace" });
    let program = rig.spawn(&config).await;
    let ready: Value =
        serde_json::from_slice(&fs::read(rig.path("ready.json")).expect("ready")).expect("JSON");
    for service in ready["services"].as_array().expect("a list") {
        let client = Client::new(
            service["address"]
                .as_str()
                .expect("an address")
                .parse()
                .expect("an address"),
        );
        let answer = client.turn(&turn("broken")).await;
        assert_eq!(
            answer.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "{service}: {}",
            answer.text()
        );
        assert!(
            !answer.text().contains(BROKEN),
            "{service}: {}",
            answer.text()
        );
    }
    let log = program.log();
    assert_eq!(
        log.matches("credential unavailable").count(),
        contents.len(),
        "{log}"
    );
    assert!(!log.contains(BROKEN), "{log}");
    program.kill();
}
