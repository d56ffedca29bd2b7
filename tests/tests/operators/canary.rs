//! Canaries in every secret: none is found where it must not be.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::canary::{
    ACCESS, ALICE, API_KEY, BOB, BROKEN, COOKIE, CanaryScene, UPSTREAM_COOKIE, WRONG,
};
use tollgate_tests::peer::Peer;
use tollgate_tests::upstream::Reply;
use tollgate_tests::{Answer, Client, Program, Rig, binary, turn, wait_for_rows};

/// Checks the status of an answer, and that it has no canary.
#[track_caller]
fn check(scene: &CanaryScene, what: &str, status: u16, answer: Answer) {
    assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text());
    scene.canaries.are_not_in_answer(what, &answer);
}

/// Sends every request that could reveal a secret. Returns how many were admitted.
async fn send_traffic(scene: &CanaryScene, program: &Program) -> usize {
    let bare = program
        .client()
        .header("cookie", &format!("session={COOKIE}"));
    send_refused(scene, &bare).await;
    send_to_accounts(scene, &bare).await
        + send_until_exhausted(scene, &bare).await
        + send_by_key(scene).await
}

/// Sends requests that are refused before a credential is selected.
async fn send_refused(scene: &CanaryScene, bare: &Client) {
    let alice = bare.token(ALICE);
    let check = |what: &str, status: u16, answer: Answer| check(scene, what, status, answer);
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
        bare.header("api-key", BOB).turn(anonymous).await,
    );
    check("another path", 404, alice.get("/elsewhere").await);
    check(
        "status without a token",
        401,
        bare.token(WRONG).get("/ocm/v1/status").await,
    );
    check("status", 200, alice.get("/ocm/v1/status").await);
}

/// Sends requests that an account answers or rejects.
async fn send_to_accounts(scene: &CanaryScene, bare: &Client) -> usize {
    let (alice, bob) = (bare.token(ALICE), bare.token(BOB));
    let a = scene.rig.upstream.account(ACCESS[0], "");
    let check = |what: &str, status: u16, answer: Answer| check(scene, what, status, answer);
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
    5
}

/// Sends requests that fail in other ways, until no account is left.
async fn send_until_exhausted(scene: &CanaryScene, bare: &Client) -> usize {
    let alice = bare.token(ALICE);
    let [a, b] = ACCESS.map(|token| scene.rig.upstream.account(token, ""));
    let check = |what: &str, status: u16, answer: Answer| check(scene, what, status, answer);
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
    8
}

/// Sends requests to the services with an API key. One of them is in clear to a listener of TLS.
async fn send_by_key(scene: &CanaryScene) -> usize {
    let check = |what: &str, status: u16, answer: Answer| check(scene, what, status, answer);
    let by_key = Client::new(scene.address(2))
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
    scene.rig.upstream.account(API_KEY, "").then(Reply::error(
        401,
        "invalid_request_error",
        "Incorrect API key",
    ));
    check("401 by key", 401, by_key.turn(&turn("key")).await);

    // In clear to the listener of TLS.
    let mut peer = Peer::connect(scene.address(1)).await;
    peer.send(format!(
        "GET /v1/models HTTP/1.1\r\nauthorization: Bearer {WRONG}\r\n\r\n"
    ))
    .await;
    scene
        .canaries
        .are_not_in("an answer to no TLS", peer.rest().await);
    3
}

/// Checks the output of the commands that print what the ledger has.
fn check_usage(scene: &CanaryScene) {
    let config = scene.rig.path("config.json");
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
            scene
                .canaries
                .are_not_in("the output of tollgate usage", &printed);
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
    scene.rig.wait_until_polled(&["a", "b"]).await;
    let admitted = send_traffic(&scene, &program).await;
    wait_for_rows(&scene.rig.ledger(), admitted).await;
    check_usage(&scene);
    program.signal(libc::SIGTERM);
    assert!(program.wait(Duration::from_secs(20)).await.success());
    scene.check_upstream(13);
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
async fn no_secret_is_in_a_json_log_a_row_a_file_a_response_or_an_unexpected_upstream_field() {
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
        (
            "an unknown credential",
            service(json!({
                "credentials": [{ "tag": "one", "credential_path": "/nowhere/auth.json" }],
                "users": [{ "name": "a", "token": canary, "credential": "missing" }],
            })),
        ),
        ("an unknown field", user(json!({ "name": "a", "tokn": canary }))),
        ("a list for a token", user(json!({ "name": "a", "token": [canary] }))),
        ("an object for a token", user(json!({ "name": "a", "token": { canary: 1 } }))),
        ("a token for a user", service(json!({ "users": [canary] }))),
        ("a token for users", service(json!({ "users": canary }))),
        ("one token for two", service(json!({ "users": both }))),
        ("a key that is none", service(json!({ "tls": { "enabled": true, "certificate": canary, "key": canary } }))),
        ("a key's list", service(json!({ "tls": { "enabled": true, "certificate": "x", "key": { "pem": canary } } }))),
        ("a header's list", service(json!({ "headers": { "authorization": { "bearer": canary } } }))),
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

/// Configurations with a warning where, or near where, a secret stands.
fn odd_configs(canary: &str) -> Vec<(&'static str, Value)> {
    let service = |name: &str, value: Value| json!({ "services": [{ "type": "ocm", "listen_port": 0, name: value }] });
    let header = json!({ "x-key": format!("{canary}\n") });
    let user = json!({ "name": "a", "token": canary, "credential": "missing" });
    vec![
        ("a header that cannot be sent", service("headers", header)),
        (
            "a credential without effect",
            service("users", json!([user])),
        ),
        (
            "a user without a name",
            service("users", json!([{ "token": canary }])),
        ),
    ]
}

#[test]
fn no_warning_of_a_configuration_quotes_a_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    for (what, config) in odd_configs("canary-in-an-odd-config-7a7a") {
        fs::write(&path, config.to_string()).expect("the folder can be written");
        let (code, printed) = run(&["check", "-c", path.to_str().expect("a plain name")]);
        assert!(
            code == Some(0) && printed.contains("warning"),
            "{what}: {printed}"
        );
        assert!(!printed.contains("canary-in"), "{what}: {printed}");
    }
}

fn check_bad_configs(canary: &str, commands: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let path = path.to_str().expect("a plain name");
    let mut found = Vec::new();
    for (what, config) in bad_configs(canary) {
        fs::write(path, &config).expect("the folder can be written");
        for command in commands {
            let (code, printed) = run(&[command, "-c", path]);
            // `usage` reads no certificate.
            let is_expected = code == Some(1) || *command == "usage";
            if printed.contains(canary) || !is_expected {
                found.push(format!("{what}, {command}: {code:?} {printed}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
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
