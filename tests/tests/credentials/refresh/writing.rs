//! How new tokens are written, and files that cannot be written or read.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tollgate_tests::upstream::WAIT_MAX;
use tollgate_tests::{LoginScene, Mounted, days_ago, make_fifo, read_json, replace_file, turn};

use super::{SOON, change_during_refresh, left_over};
use crate::checks::{FIRST_BACK_OFF_MAX, check_served, check_unavailable};

// How the file is written

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_the_tokens_and_their_date_is_unchanged() {
    let mut scene = LoginScene::new(-60).await;
    let written = |tokens: &Value, made: &Value| {
        let [id, access, refresh] =
            ["id_token", "access_token", "refresh_token"].map(|name| &tokens[name]);
        format!(
            "{{\n\t\"theirs\": 1.50, \"OPENAI_API_KEY\":null,\n\n  \"tokens\" : {{\"more\": [1,  2], \"refresh_token\":\
             {refresh},\r\n \"access_token\": {access}, \"account_id\": \"account-a\",  \"id_token\" :{id}}},\n\
             \"last_refresh\":{made}, \"auth_mode\": \"chatgpt\", \"e\\u0301\": {{}} }}\n\n"
        )
    };
    fs::write(
        scene.file(),
        written(&scene.login.auth_json()["tokens"], &days_ago(1)),
    )
    .expect("it can be written");
    fs::set_permissions(scene.file(), Permissions::from_mode(0o640)).expect("its mode can be set");
    let begun = OffsetDateTime::now_utc();
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);

    let made = read_json(&scene.file())["last_refresh"].clone();
    let new = written(&scene.login.auth_json()["tokens"], &made);
    assert_eq!(fs::read_to_string(scene.file()).expect("it is there"), new);
    let mode = fs::metadata(scene.file())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    let made = made.as_str().expect("a date");
    assert!(made.ends_with('Z') && made.contains('.'), "{made}");
    let made = OffsetDateTime::parse(made, &Rfc3339).expect("RFC 3339");
    assert!(
        (begun..=OffsetDateTime::now_utc()).contains(&made),
        "{made}"
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_keeps_the_owner_and_the_group_of_the_file() {
    let mut scene = LoginScene::new(-60).await;
    if let Err(error) = chown(scene.file(), Some(1234), Some(1235)) {
        return println!("skipped: a file cannot be given away here: {error}");
    }
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    let found = fs::metadata(scene.file()).expect("it is there");
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (1234, 1235, 0o600)
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stays_a_link_and_its_target_gets_the_tokens() {
    let mut scene = LoginScene::new(-60).await;
    let target = scene.rig.path("home").join("theirs.json");
    fs::create_dir(scene.rig.path("home")).expect("a folder can be made");
    fs::rename(scene.file(), &target).expect("a file can be moved");
    symlink("home/theirs.json", scene.file()).expect("a link can be made");
    let client = scene.start(json!({})).await;
    check_served("served", &client.turn(&turn("one")).await);
    assert_eq!(
        fs::read_link(scene.file()).expect("still a link"),
        Path::new("home/theirs.json")
    );
    assert!(!target.is_symlink() && scene.has_newest_tokens());
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_file_during_a_hundred_refreshes_finds_it_whole() {
    let mut scene = LoginScene::new(-60).await;
    let (over, reads) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let reader = thread::spawn({
        let (over, reads, file) = (Arc::clone(&over), Arc::clone(&reads), scene.file());
        move || {
            while !over.load(Ordering::Relaxed) {
                let tokens = &read_json(&file)["tokens"];
                let [access, refresh] =
                    ["access_token", "refresh_token"].map(|name| tokens[name].as_str());
                assert!(access.is_some() && refresh.is_some(), "tokens are missing");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    scene.start(json!({})).await;
    for refreshes in 1..=100 {
        scene.login.wait_for_posts(refreshes).await;
        scene.wait_for_new_tokens().await;
        if refreshes < 100 {
            replace_file(&scene.file(), scene.login.renew_with(-60).to_string());
        }
    }
    over.store(true, Ordering::Relaxed);
    reader
        .join()
        .expect("the file was there, and whole, each time");
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads > 1000, "only {reads} reads show nothing");
    scene.rig.stop().await;
}

// Files that cannot be written or read

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_if_new_ones_could_not_be_stored() {
    for obstacle in [
        "a.json.lock",
        "a.json.refresh-journal",
        "a.json.tollgate-new",
    ] {
        for (seconds, state) in [(-60, "cannot_refresh"), (200, "ready")] {
            let mut scene = LoginScene::new(seconds).await;
            // Not even root can write a file over a folder.
            fs::create_dir(scene.rig.path(obstacle)).expect("a folder can be made");
            let client = scene.start(json!({})).await;
            let is_so =
                |found: &Value| found["state"] == state && !found["refresh_failure"].is_null();
            let status = scene
                .rig
                .wait_for_credential("a", WAIT_MAX, state, is_so)
                .await;
            let failure = status["refresh_failure"].as_str().expect("a reason");
            assert!(
                failure.contains("cannot") && failure.contains(obstacle),
                "{failure}"
            );
            let answer = client.turn(&turn("one")).await;
            if state == "ready" {
                check_served(obstacle, &answer);
            } else {
                check_unavailable(obstacle, &answer);
            }
            scene.rig.stop().await;
            assert_eq!(scene.token_posts(), 0, "{obstacle}");
            fs::remove_dir(scene.rig.path(obstacle)).expect("it is there");
            let client = scene.start(json!({})).await;
            scene.wait_for_new_tokens().await;
            check_served("without the obstacle", &client.turn(&turn("one")).await);
            scene.rig.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_spent_while_the_disk_is_read_only_or_full() {
    for told in ["read-only", "space"] {
        let mut scene = LoginScene::new(-60).await;
        let home = scene.rig.path("home");
        let Some(disk) = Mounted::new(&home, 1 << 20) else {
            return;
        };
        let file = home.join("a.json");
        fs::copy(scene.file(), &file).expect("it can be copied");
        scene.credential["credential_path"] = json!(file);
        let filler = (told == "space").then(|| disk.fill());
        if filler.is_none() {
            disk.make_read_only();
        }
        let client = scene.start(json!({})).await;
        check_unavailable(told, &client.turn(&turn("one")).await);
        let status = scene.rig.wait_for_state("a", "cannot_refresh").await;
        assert!(
            status["reason"].as_str().expect("a reason").contains(told),
            "{status:#}"
        );
        assert_eq!(scene.token_posts(), 0, "{told}");
        match filler {
            Some(filler) => fs::remove_file(filler).expect("it is there"),
            None => disk.make_writable(),
        }
        scene
            .rig
            .wait_for_credential("a", FIRST_BACK_OFF_MAX, "ready", |found| {
                found["state"] == "ready"
            })
            .await;
        check_served("mended", &client.turn(&turn("one")).await);
        assert_eq!(
            read_json(&file)["tokens"],
            scene.login.auth_json()["tokens"],
            "{told}"
        );
        assert_eq!(
            (scene.token_posts(), scene.login.reuses()),
            (1, 0),
            "{told}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tokens_that_cannot_be_written_are_kept_until_they_can_be() {
    // A folder with the name of the temporary file. It appears after the check before the request.
    let obstacle = |scene: &LoginScene| scene.rig.path("a.json.tollgate-new");
    let (mut scene, client) = change_during_refresh(|scene| {
        fs::create_dir(obstacle(scene)).expect("a folder can be made")
    })
    .await;
    check_unavailable("not written", &client.turn(&turn("one")).await);
    let status = scene.rig.wait_for_state("a", "cannot_refresh").await;
    assert!(
        status["reason"]
            .as_str()
            .expect("a reason")
            .contains("the new tokens are still in"),
        "{status:#}"
    );
    fs::remove_dir(obstacle(&scene)).expect("it is there");
    scene
        .rig
        .wait_for_credential("a", FIRST_BACK_OFF_MAX, "ready", |found| {
            found["state"] == "ready"
        })
        .await;
    check_served("written", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), left_over(&scene)), (1, Vec::new()));
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_is_unreadable_and_blocks_nothing() {
    let mut scene = LoginScene::new(3600).await;
    fs::remove_file(scene.file()).expect("it is there");
    make_fifo(&scene.file());
    let client = scene.start(json!({})).await;
    check_unavailable("a FIFO", &client.turn(&turn("one")).await);
    let status = scene.rig.wait_for_state("a", "unreadable").await;
    assert!(
        status["reason"]
            .as_str()
            .expect("a reason")
            .contains("expected a file"),
        "{status:#}"
    );
    replace_file(&scene.file(), scene.login.auth_json().to_string());
    scene
        .rig
        .wait_for_credential("a", SOON, "ready", |found| found["state"] == "ready")
        .await;
    check_served("a file", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 0);
    scene.rig.stop().await;
}
