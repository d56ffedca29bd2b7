//! Usage files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tollgate_tests::upstream::{Reply, Standing, WAIT_MAX};
use tollgate_tests::{Rig, binary, days_ago, over_both, turn, unix_in, user};

/// Returns a configuration with the users alice and bob, whose only account has a usage file.
fn config_with_file(rig: &Rig) -> (Value, PathBuf) {
    let file = rig.path("usages.json");
    let mut credential = rig.oauth("a");
    credential["usages_path"] = json!(file);
    let user = |name: &str| user(name, "a");
    (
        rig.config(json!({ "credentials": [credential], "users": [user("alice"), user("bob")] })),
        file,
    )
}

fn usage_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a usage file")).expect("JSON")
}

/// The entry of a model and tier: its sums, and those of each user.
#[track_caller]
fn entry<'a>(file: &'a Value, model: &str, tier: &str) -> &'a Value {
    let entries = file["combinations"].as_array().expect("a list");
    let mut found = entries
        .iter()
        .filter(|entry| entry["model"] == model && entry["service_tier"] == tier);
    let entry = found
        .next()
        .unwrap_or_else(|| panic!("no {model} {tier}: {file}"));
    assert!(found.next().is_none(), "{model} {tier} twice: {file}");
    entry
}

#[track_caller]
fn check_sum(sum: &Value, [requests, input, output, cached]: [u64; 4], cost_usd: f64) {
    let found = [
        "request_count",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
    ]
    .map(|name| sum[name].as_u64());
    assert_eq!(found, [requests, input, output, cached].map(Some), "{sum}");
    check_usd(&sum["cost_usd"], cost_usd);
}

#[track_caller]
fn check_usd(found: &Value, expected: f64) {
    assert!(
        found
            .as_f64()
            .is_some_and(|found| (found - expected).abs() < 1e-9),
        "{found}, expected {expected}"
    );
}

/// The cost of a turn with gpt-5.4 of the scripted upstream: 3,450,000 nano-dollars.
const TURN_USD: f64 = 0.00345;

over_both!(a_usage_file_has_the_sums_when_the_gateway_has_stopped);
async fn a_usage_file_has_the_sums_when_the_gateway_has_stopped() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let client = rig.start(config).await;
    let week = (unix_in(1000), unix_in(1000) - 10_080 * 60);
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(week.0));
    let (alice, bob) = (client.token("token-alice"), client.token("token-bob"));
    alice.turn(&turn("one")).await;
    alice.turn(&turn("one")).await;
    bob.turn(&turn("two")).await;
    let mut flex = turn("two");
    flex["service_tier"] = json!("flex");
    bob.turn(&flex).await;
    rig.stop().await;

    let file = usage_file(&file);
    let default = entry(&file, "gpt-5.4", "default");
    assert_eq!(
        (&default["context_window"], &default["week_start_unix"]),
        (&json!(272_000), &json!(week.1))
    );
    check_sum(&default["total"], [3, 3600, 450, 2400], 3.0 * TURN_USD);
    check_sum(
        &default["by_user"]["alice"],
        [2, 2400, 300, 1600],
        2.0 * TURN_USD,
    );
    check_sum(&default["by_user"]["bob"], [1, 1200, 150, 800], TURN_USD);
    let flex = entry(&file, "gpt-5.4", "flex");
    check_sum(&flex["total"], [1, 1200, 150, 800], TURN_USD / 2.0);
    let costs = &file["costs"];
    check_usd(&costs["total_usd"], 3.5 * TURN_USD);
    check_usd(&costs["by_user"]["alice"], 2.0 * TURN_USD);
    check_usd(&costs["by_user"]["bob"], 1.5 * TURN_USD);
    let weeks = costs["by_week"].as_object().expect("weeks");
    let (name, sum) = weeks.iter().next().expect("a week");
    assert_eq!(weeks.len(), 1);
    check_usd(sum, 3.5 * TURN_USD);
    check_usd(&costs["by_user_and_week"]["bob"][name], 1.5 * TURN_USD);
    assert!(
        file["last_updated"]
            .as_str()
            .is_some_and(|time| time.starts_with("20") && time.contains('T'))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_continues_after_a_restart() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let reset = unix_in(1000);
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    for turns in 1..=3_u64 {
        let client = rig.start(config.clone()).await;
        client.token("token-alice").turn(&turn("one")).await;
        rig.stop().await;
        let sums = usage_file(&file);
        let entry = entry(&sums, "gpt-5.4", "default");
        check_sum(
            &entry["total"],
            [turns, turns * 1200, turns * 150, turns * 800],
            turns as f64 * TURN_USD,
        );
        check_usd(&sums["costs"]["total_usd"], turns as f64 * TURN_USD);
    }
    // Also without a request in between.
    rig.start(config).await;
    rig.stop().await;
    assert_eq!(
        entry(&usage_file(&file), "gpt-5.4", "default")["total"]["request_count"],
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_of_sing_box_is_the_opening_balance() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let reset = unix_in(1000);
    let week = reset - 10_080 * 60;
    let sum = |requests: u64, cost: f64| {
        json!({"request_count": requests, "input_tokens": 10 * requests, "output_tokens": 2 * requests,
            "cached_tokens": 5 * requests, "cost_usd": cost})
    };
    let theirs = json!({
        "last_updated": days_ago(10),
        "costs": {"total_usd": 9.0, "by_user": {"alice": 1.5, "carol": 0.5}, "by_week": {}, "by_user_and_week": {}},
        "combinations": [
            {"model": "gpt-5.4", "service_tier": "default", "context_window": 272_000, "week_start_unix": week,
                "total": sum(20, 2.0), "by_user": {"alice": sum(15, 1.5), "carol": sum(5, 0.5)}},
            {"model": "gpt-5", "service_tier": "priority", "context_window": 272_000,
                "total": sum(7, 7.0), "by_user": {}},
        ],
    });
    std::fs::write(&file, theirs.to_string()).expect("the folder can be written");
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    let client = rig.start(config).await;
    client.token("token-alice").turn(&turn("one")).await;
    rig.stop().await;

    let sums = usage_file(&file);
    let same_week = entry(&sums, "gpt-5.4", "default");
    check_sum(&same_week["total"], [21, 1400, 190, 900], 2.0 + TURN_USD);
    check_sum(
        &same_week["by_user"]["alice"],
        [16, 1350, 180, 875],
        1.5 + TURN_USD,
    );
    check_sum(&same_week["by_user"]["carol"], [5, 50, 10, 25], 0.5);
    check_sum(
        &entry(&sums, "gpt-5", "priority")["total"],
        [7, 70, 14, 35],
        7.0,
    );
    check_usd(&sums["costs"]["total_usd"], 9.0 + TURN_USD);
    check_usd(&sums["costs"]["by_user"]["carol"], 0.5);
}

/// Returns the requests in `file`, once that is written.
async fn requests_when_written(file: &Path) -> u64 {
    let begun = Instant::now();
    loop {
        if file.exists() {
            let sums = usage_file(file);
            let combinations = sums["combinations"].as_array().expect("a list");
            let requests = combinations
                .iter()
                .map(|entry| entry["total"]["request_count"].as_u64().expect("a number"));
            return requests.sum();
        }
        assert!(begun.elapsed() < WAIT_MAX, "the file is not written");
        // The writing thread sends no signal.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_is_written_right_after_the_first_request() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let client = rig.start(config).await;
    client.token("token-alice").turn(&turn("one")).await;
    assert_eq!(requests_when_written(&file).await, 1);
    // The next ones wait for the minute to end.
    client.token("token-alice").turn(&turn("two")).await;
    assert_eq!(requests_when_written(&file).await, 1);
    rig.stop().await;
    assert_eq!(requests_when_written(&file).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_counts_no_request_without_tokens() {
    let mut rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let client = rig.start(config).await.token("token-alice");
    rig.account("a")
        .then(Reply::error(400, "invalid_request_error", "no"));
    client.turn(&turn("one")).await;
    client.get("/v1/models").await;
    client.turn(&turn("one")).await;
    rig.stop().await;
    assert_eq!(requests_when_written(&file).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_file_of_two_credentials_has_the_sums_of_both() {
    let mut rig = Rig::new().await;
    let file = rig.path("usages.json");
    let [a, b] = ["a", "b"].map(|tag| {
        let mut credential = rig.oauth(tag);
        credential["usages_path"] = json!(file);
        credential
    });
    let user = |name: &str, tag: &str| json!({ "name": name, "token": name, "credential": tag });
    let config = rig.config(json!({
        "credentials": [a, b],
        "users": [user("alice", "a"), user("bob", "b")],
    }));
    for _ in 0..2 {
        let client = rig.start(config.clone()).await;
        for name in ["alice", "bob"] {
            client.token(name).turn(&turn(name)).await;
        }
        rig.stop().await;
    }
    let sums = usage_file(&file);
    let entry = entry(&sums, "gpt-5.4", "default");
    check_sum(&entry["total"], [4, 4800, 600, 3200], 4.0 * TURN_USD);
    for name in ["alice", "bob"] {
        check_sum(
            &entry["by_user"][name],
            [2, 2400, 300, 1600],
            2.0 * TURN_USD,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weeks_are_named_in_the_local_time_of_the_process() {
    let rig = Rig::new().await;
    let (config, file) = config_with_file(&rig);
    let reset = unix_in(1000);
    rig.account("a")
        .set_standing(Standing::new("plus").weekly_resets_at(reset));
    let mut command = Command::new(binary());
    command.stdin(Stdio::null()).env("TZ", "IST-5:30");
    let program = rig.spawn_as(command, &config).await;
    program
        .client()
        .token("token-alice")
        .turn(&turn("one"))
        .await;
    requests_when_written(&file).await;
    let weeks = usage_file(&file)["costs"]["by_week"].clone();
    let names: Vec<&String> = weeks.as_object().expect("an object").keys().collect();
    let start = reset - 10_080 * 60 + 330 * 60;
    let start = i64::try_from(start).expect("a time of this century");
    let local = OffsetDateTime::from_unix_timestamp(start)
        .expect("a time of this century")
        .format(&Rfc3339)
        .expect("a time of this century");
    let local = local.replace('T', " ").replace('Z', "");
    assert_eq!(names, [&format!("{local} UTC+5:30")]);
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_usage_file_is_moved_aside() {
    for broken in [
        "",
        "{\"combinations\": [",
        "[]",
        "{\"last_updated\": 5, \"combinations\": \"none\"}",
    ] {
        let mut rig = Rig::new().await;
        let (config, file) = config_with_file(&rig);
        std::fs::write(&file, broken).expect("the folder can be written");
        let client = rig.start(config).await;
        client.token("token-alice").turn(&turn("one")).await;
        rig.stop().await;

        let names = std::fs::read_dir(rig.folder())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path());
        let kept: Vec<PathBuf> = names
            .filter(|path| path.to_string_lossy().contains("usages.json.broken-"))
            .collect();
        assert_eq!(kept.len(), 1, "{broken:?}: {kept:?}");
        assert_eq!(
            std::fs::read_to_string(&kept[0]).expect("it can be read"),
            broken
        );
        check_sum(
            &entry(&usage_file(&file), "gpt-5.4", "default")["total"],
            [1, 1200, 150, 800],
            TURN_USD,
        );
    }
}
