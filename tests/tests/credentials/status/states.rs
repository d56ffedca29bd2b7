//! The status of credentials in every state.

use std::time::Instant;

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::reverse::{REVERSE_TOKEN, back_config, eager, front_config};
use tollgate_tests::upstream::{Gate, Reply, Standing, TokenReply, WAIT_MAX};
use tollgate_tests::{Nowhere, Program, Rig, turn, unix_in, user};

use super::{json_of, of, table};

/// A secret in the files and responses whose errors are reported.
const BROKEN: &str = "canary-in-a-broken-file";

const ANSWER: &str = "canary-in-an-answer";

const EXTERNAL: &str = "canary-token-of-another-gateway";

const DAY: u64 = 24 * 60 * 60;

/// Returns the cells of a credential's row, in the order of the table's head; those of the weekly
/// window follow those of the 5-hour one.
fn row(table: &str, tag: &str) -> Vec<String> {
    let head = table.lines().next().expect("a head");
    let line = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some(tag));
    let line = line.unwrap_or_else(|| panic!("{tag} has no row:\n{table}"));
    assert_eq!(
        head.split_whitespace().next(),
        Some("credential"),
        "{table}"
    );
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A gateway whose credentials are named after their states.
struct Varied {
    rig: Rig,
    program: Program,
    secrets: Vec<String>,
}

impl Varied {
    async fn start() -> Self {
        let rig = Rig::new().await;
        let mut credentials: Vec<Value> = ["whole", "stale", "limited", "refused", "paused"]
            .map(|tag| rig.oauth(tag))
            .into();
        let stand = |tag: &str, standing: Standing| rig.account(tag).set_standing(standing);
        stand(
            "whole",
            Standing::new("pro").five_hour_used(41.6).weekly_used(7.0),
        );
        stand(
            "paused",
            Standing::new("plus")
                .weekly_used(99.5)
                .weekly_resets_at(unix_in(3 * DAY + 7200 + 1800)),
        );
        rig.account("stale")
            .always_for_poll(Reply::error(500, "server_error", ANSWER));
        credentials[0]["reserve_5h"] = json!(20);

        let logins = ["refreshing", "login", "failing"];
        let mut secrets: Vec<String> = [
            BROKEN,
            ANSWER,
            EXTERNAL,
            "sk-key",
            "access-",
            "token-limited",
        ]
        .map(str::to_owned)
        .into();
        for tag in logins {
            let (credential, login) = rig.login(tag);
            let file = login.renew_with(-60);
            rig.write(&format!("{tag}.json"), file.to_string());
            secrets.extend(tokens(&file));
            login.always_for_token(token_reply(tag));
            credentials.push(credential);
        }
        credentials.push(rig.api_key("key"));
        let broken = rig.write(
            "broken.json",
            format!(r#"{{"tokens": {{"access_token": "{BROKEN}", {BROKEN}"#),
        );
        credentials.push(json!({ "tag": "broken", "credential_path": broken }));
        credentials.push(json!({ "tag": "missing", "credential_path": rig.path("missing.json") }));
        credentials
            .push(json!({ "type": "external", "tag": "branch", "url": rig.upstream.api_url(), "token": EXTERNAL }));
        let users = ["limited", "refused"].map(|tag| user(tag, tag));
        let config = rig.config(json!({ "credentials": credentials, "users": users }));
        let program = rig.spawn(&config).await;
        let varied = Self {
            rig,
            program,
            secrets,
        };
        varied.settle().await;
        varied
    }

    /// Rate-limits the credentials that need it, and waits until every state is reached.
    async fn settle(&self) {
        let client = self.program.client();
        for (tag, reply) in [
            ("limited", Reply::usage_limit_reached()),
            (
                "refused",
                Reply::usage_limit_reached()
                    .without_rate_limits()
                    .resets_in_seconds(600),
            ),
        ] {
            self.rig.wait_until_polled(&[tag]).await;
            let resets = unix_in(2 * 3600 + 60);
            self.rig.account(tag).set_standing(
                Standing::new("plus")
                    .five_hour_used(100.0)
                    .five_hour_resets_at(resets),
            );
            self.rig.account(tag).then(reply);
            let answer = client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await;
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        }
        for (tag, state) in STATES {
            self.rig.wait_for_state(tag, state).await;
        }
        self.rig.wait_until_polled(&["whole", "paused"]).await;
        for tag in ["stale", "branch"] {
            self.rig
                .wait_for_credential(tag, WAIT_MAX, "stale", |found| {
                    !found["poll_failure"].is_null()
                })
                .await;
        }
    }
}

const STATES: [(&str, &str); 12] = [
    ("whole", "ready"),
    ("stale", "ready"),
    ("limited", "rate_limited"),
    ("refused", "rate_limited"),
    ("paused", "paused"),
    ("refreshing", "refreshing"),
    ("login", "login_needed"),
    ("failing", "cannot_refresh"),
    ("key", "ready"),
    ("broken", "unreadable"),
    ("missing", "unreadable"),
    ("branch", "ready"),
];

/// Returns the token endpoint's response to the login `tag`.
fn token_reply(tag: &str) -> TokenReply {
    let error = |code: &str| json!({ "error": { "code": code, "message": ANSWER } }).to_string();
    match tag {
        "refreshing" => TokenReply::well().behind(&Gate::new()),
        "login" => TokenReply::status(401).body(error("refresh_token_expired")),
        _ => TokenReply::status(500).body(error(&format!("{ANSWER} as a code"))),
    }
}

fn tokens(file: &Value) -> Vec<String> {
    ["id_token", "access_token", "refresh_token"]
        .map(|name| file["tokens"][name].as_str().expect("a token").to_owned())
        .into()
}

/// Checks the status in JSON. The times were reported within `took` seconds.
fn check_status(status: &Value, took: u64) {
    for (tag, state) in STATES {
        assert_eq!(of(status, tag)["state"], state, "{tag}: {status:#}");
    }
    let near = |tag: &str, field: &str, seconds: u64| {
        let found = of(status, tag)[field].as_u64().map(|ms| ms / 1000);
        assert!(
            found.is_some_and(|at| at.abs_diff(unix_in(seconds)) <= took + 1),
            "{tag}: {field} is {found:?}"
        );
    };
    near("limited", "until", 2 * 3600 + 60);
    near("refused", "until", 600);
    near("paused", "until", 3 * DAY + 7200 + 1800);
    let windows = ["limited", "refused", "paused"].map(|tag| of(status, tag)["window"].as_str());
    assert_eq!(windows, [Some("5-hour"), None, Some("weekly")]);
    for (tag, part) in [
        ("login", "refresh_token_expired"),
        ("failing", "500"),
        ("broken", "line 1"),
        ("missing", "missing.json"),
    ] {
        let reason = of(status, tag)["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(part), "{tag}: {reason:?} has no {part:?}");
    }
    let whole = of(status, "whole");
    assert_eq!(
        (&whole["five_hour"]["used"], &whole["five_hour"]["cap"]),
        (&json!(41.6), &json!(80.0))
    );
    assert_eq!(
        (&whole["weekly"]["used"], &whole["weekly"]["cap"]),
        (&json!(7.0), &json!(99.0))
    );
    assert_eq!(
        (whole["plan"].as_str(), whole["kind"].as_str()),
        (Some("pro"), Some("oauth"))
    );
    let usable = STATES.map(|(tag, _)| of(status, tag)["usable"] == true);
    assert_eq!(
        usable.iter().filter(|usable| **usable).count(),
        5,
        "{usable:?}"
    );
}

/// Checks the table. The times were reported within `took` seconds.
fn check_table(table: &str, took: u64) {
    for (tag, said) in [
        ("paused", "paused at its cap for 3d 2h (weekly)"),
        ("refreshing", "refreshing"),
        ("login", "login needed"),
        ("failing", "cannot refresh"),
        ("broken", "unreadable"),
    ] {
        assert_eq!(row(table, tag)[1], said, "{table}");
    }
    for (tag, span, window) in [
        ("limited", 2 * 3600 + 60, " (5-hour)"),
        ("refused", 600, ""),
    ] {
        let said = |left: u64| match left / 3600 {
            0 => format!("rate-limited for {}m{window}", left / 60),
            hours => format!("rate-limited for {hours}h {}m{window}", left / 60 % 60),
        };
        let said: Vec<String> = (span - took - 1..=span).map(said).collect();
        assert!(
            said.contains(&row(table, tag)[1]),
            "{tag} is none of {:?}..: {table}",
            said[0]
        );
    }
    assert_eq!(
        row(table, "whole")[1..3],
        ["ready", "41% of 80%"],
        "{table}"
    );
    for note in [
        "login: ",
        "failing: ",
        "broken: ",
        "missing: ",
        "stale: the last poll: answered 500",
    ] {
        assert!(
            table.lines().any(|line| line.starts_with(note)),
            "{note:?} is not in\n{table}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_is_reported_with_its_reason_and_its_end_and_no_secret() {
    let begun = Instant::now();
    let varied = Varied::start().await;
    let (text, status) = json_of(&varied.rig);
    let table = table(&varied.rig);
    // The reported times count down meanwhile.
    let took = begun.elapsed().as_secs();

    check_status(&status, took);
    check_table(&table, took);
    for secret in &varied.secrets {
        assert!(
            !text.contains(secret) && !table.contains(secret),
            "{secret} is printed:\n{table}\n{text}"
        );
    }
    varied.program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_requests_in_flight_are_counted_by_credential() {
    let rig = Rig::new().await;
    let program = rig.spawn(&rig.team(&["a", "b"], json!({}))).await;
    rig.wait_until_polled(&["a", "b"]).await;
    let gate = Gate::new();
    rig.account("a").always(Reply::ok().hold_after(1, &gate));
    let (alice, bob) = (
        program.client().token("token-alice"),
        program.client().token("token-bob"),
    );
    let streams = [
        alice.start_turn(&turn("one")).await,
        alice.start_turn(&turn("two")).await,
        bob.start_turn(&turn("one")).await,
        bob.start_turn(&turn("one")).await,
    ];
    let (_, status) = json_of(&rig);
    let counts = |status: &Value, tag: &str| {
        (
            of(status, tag)["sessions"].as_u64(),
            of(status, tag)["in_flight"].as_u64(),
        )
    };
    assert_eq!(
        (counts(&status, "a"), counts(&status, "b")),
        ((Some(3), Some(4)), (Some(0), Some(0)))
    );
    let table = table(&rig);
    assert!(
        row(&table, "a").ends_with(&["3".to_owned(), "4".to_owned()]),
        "{table}"
    );
    gate.open();
    for stream in streams {
        assert!(stream.finish().await.whole);
    }
    rig.wait_for_credential("a", WAIT_MAX, "idle", |found| found["in_flight"] == 0)
        .await;
    assert_eq!(counts(&json_of(&rig).1, "a"), (Some(3), Some(0)));
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_cannot_connect_shows_why() {
    let nowhere = Nowhere::new();
    let (mut front, mut back) = (Rig::new().await, Rig::new().await);
    let alice = front.start(front_config(&front)).await;
    let mut config = back_config(&back, alice.address());
    config["limits"] = eager();
    config["services"][0]["credentials"][1]["detour"] = json!("out");
    config["outbounds"] = json!([{
        "type": "socks", "tag": "out", "server": "127.0.0.1", "server_port": nowhere.port(),
    }]);
    let check = async |back: &Rig, expected: &str| {
        let is_so = |found: &Value| found["reverse_failure"].to_string().contains(expected);
        back.wait_for_credential("up", WAIT_MAX, expected, is_so)
            .await;
    };
    back.write("config.json", config.to_string());
    back.start(config.clone()).await;
    check(&back, "cannot connect: outbound").await;
    let table = table(&back);
    assert!(
        table.contains("up: the reverse connection: cannot connect"),
        "{table}"
    );
    back.stop().await;

    config["outbounds"] = json!([{ "type": "direct", "tag": "out" }]);
    config["services"][0]["credentials"][1]["token"] = json!("unknown-token");
    back.start(config.clone()).await;
    check(&back, "answered 401").await;
    back.stop().await;

    config["services"][0]["credentials"][1]["token"] = json!(REVERSE_TOKEN);
    back.start(config).await;
    front.wait_for_state("x", "ready").await;
    check(&back, "null").await;
    back.stop().await;
    front.stop().await;
}
