//! Token refreshes beside other credentials, other holders of the lock and other writers of the
//! file; through links; and with a misbehaving token endpoint.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, Login, Reply, TokenReply, WAIT_MAX};
use tollgate_tests::{
    Client, LoginScene, Rig, days_ago, make_fifo, oauth_file, read_json, replace_file, token_of,
    turn, user, wait_for_rows,
};

use crate::checks::{check_asked, check_served, check_unavailable};

/// Returns the path of the credential's file with `suffix` added.
fn beside(rig: &Rig, suffix: &str) -> PathBuf {
    rig.path(&format!("a.json{suffix}"))
}

/// Holds the lock of the file, as another process would.
fn lock(rig: &Rig) -> File {
    let lock = File::create(beside(rig, ".lock")).expect("the folder can be written");
    lock.lock().expect("a file can be locked");
    lock
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o7777
}

// The request

#[tokio::test(flavor = "multi_thread")]
async fn the_token_request_is_the_one_of_codex_and_contains_nothing_else() {
    let mut scene = LoginScene::new(-60).await;
    let refresh_token = token_of(&read_json(&scene.file()), "refresh_token").to_owned();
    let client = scene.start(json!({})).await;
    check_served(
        "served",
        &client.header("x-theirs", "1").turn(&turn("one")).await,
    );
    let requests = scene.rig.upstream.requests();
    let post = requests
        .iter()
        .find(|seen| seen.path() == "/oauth/token")
        .expect("a refresh");
    let expected = json!({
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": "openid profile email",
    });
    assert_eq!(
        (post.json(), post.header("content-type")),
        (expected, Some("application/json"))
    );
    for name in ["authorization", "chatgpt-account-id", "cookie", "x-theirs"] {
        assert_eq!(post.header(name), None, "{name}");
    }
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_without_a_date_are_refreshed_once_and_then_have_one() {
    let mut scene = LoginScene::new(3600).await;
    let mut file = scene.login.auth_json();
    file.as_object_mut()
        .expect("an object")
        .remove("last_refresh");
    replace_file(&scene.file(), file.to_string());
    for _ in 0..2 {
        let client = scene.start(json!({})).await;
        scene.wait_for_new_tokens().await;
        check_served("served", &client.turn(&turn("one")).await);
        assert_eq!(scene.login.post_count(), 1);
        scene.rig.stop().await;
    }
    let file = read_json(&scene.file());
    OffsetDateTime::parse(file["last_refresh"].as_str().expect("a date"), &Rfc3339)
        .expect("RFC 3339");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_without_a_refresh_token_is_not_refreshed() {
    let rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    let mut scene = LoginScene {
        rig,
        credential,
        login,
    };
    for (name, missing) in [("null", Value::Null), ("empty", json!(""))] {
        let mut file = scene.login.renew_with(-60);
        file["tokens"]["refresh_token"] = missing;
        replace_file(&scene.file(), file.to_string());
        let client = scene.start(json!({})).await;
        check_unavailable(name, &client.turn(&turn("one")).await);
        // Nothing is retried: the operator must act.
        let status = scene.rig.credential("a").await;
        assert_eq!(status["state"], "login_needed", "{name}: {status:#}");
        scene.rig.stop().await;
    }
    assert_eq!(scene.token_posts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_is_not_refreshed() {
    let mut rig = Rig::new().await;
    let refused = Reply::error(401, "invalid_request_error", "refused");
    rig.upstream.always(refused.clone());
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
    assert_eq!((rig.upstream.turns().len(), rig.token_posts()), (1, 0));
    rig.stop().await;
}

// Responses of the token endpoint

/// Responses of the token endpoint to an expired token, and what becomes of the credential.
struct Case {
    name: &'static str,
    reply: TokenReply,
    state: &'static str,
}

/// Checks each case in one gateway, with one credential per case: requests fail, and no refresh is
/// retried at once.
async fn check_answers(cases: Vec<Case>, limits: Value) {
    let mut rig = Rig::new().await;
    let (mut credentials, mut users, mut logins) = (Vec::new(), Vec::new(), Vec::new());
    for (place, case) in cases.iter().enumerate() {
        let tag = format!("c{place}");
        let (credential, login) = rig.expiring_login(&tag, -60);
        login.always_for_token(case.reply.clone());
        users.push(user(&tag, &tag));
        credentials.push(credential);
        logins.push(login);
    }
    let mut config = rig.config(json!({ "credentials": credentials, "users": users }));
    config["limits"] = limits;
    let begun = Instant::now();
    let client = rig.start(config).await;
    for (place, (case, login)) in cases.iter().zip(&logins).enumerate() {
        let tag = format!("c{place}");
        for _ in 0..2 {
            let answer = client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await;
            check_unavailable(case.name, &answer);
        }
        let status = rig.wait_for_state(&tag, case.state).await;
        check_asked(case.name, login, case.state, begun);
        assert!(
            !status.to_string().contains("given-"),
            "{}: {status:#}",
            case.name
        );
    }
    // No unknown token is presented.
    assert_eq!(
        rig.token_posts(),
        logins.iter().map(Login::post_count).sum::<usize>()
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_response_is_reported_and_not_requested_again() {
    let (login, again) = ("login_needed", "cannot_refresh");
    let json = |body: Value| TokenReply::well().body(body.to_string());
    // A client that follows it would send the request twice.
    let elsewhere = |status| TokenReply::status(status).header("location", "/oauth/token");
    let filler = "x".repeat(300 << 10);
    let case = |name, reply, state| Case { name, reply, state };
    let cases = vec![
        case("302", elsewhere(302), again),
        case("307", elsewhere(307), again),
        case("308", elsewhere(308), again),
        case(
            "a list",
            json(json!([{ "access_token": "given-1" }])),
            login,
        ),
        case("a text", json(json!("given-1")), login),
        case(
            "an empty access token",
            json(json!({ "access_token": "", "refresh_token": "given-2" })),
            login,
        ),
        case(
            "an access token of null",
            json(json!({ "access_token": null, "refresh_token": "given-2" })),
            login,
        ),
        case(
            "a number",
            json(json!({ "access_token": 1, "refresh_token": "given-2" })),
            login,
        ),
        case(
            "half",
            TokenReply::well().body(r#"{"access_token": "given-1", "refresh_"#),
            login,
        ),
        case(
            "much too long",
            json(json!({ "filler": filler, "access_token": "given-1" })),
            login,
        ),
        case("204", TokenReply::status(204).rotating(), login),
        case(
            "404, a final code",
            TokenReply::status(404).body(r#"{"code": "refresh_token_expired"}"#),
            login,
        ),
        case(
            "500, a final code",
            TokenReply::status(500).body(r#"{"error": "invalid_grant"}"#),
            again,
        ),
        case(
            "502, a final code",
            TokenReply::status(502)
                .body(r#"{"error": "invalid_grant"}"#)
                .rotating(),
            login,
        ),
        case("504", TokenReply::status(504).rotating(), login),
    ];
    check_answers(cases, json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_token_response_is_awaited_until_the_limit_and_not_requested_again() {
    let begun = Instant::now();
    let case = |name, reply| Case {
        name,
        reply,
        state: "login_needed",
    };
    let cases = vec![
        case("no head", TokenReply::well().behind(&Gate::new())),
        case("no end", TokenReply::well().endless()),
        case(
            "no end, and nothing granted",
            TokenReply::status(200).endless(),
        ),
    ];
    check_answers(cases, json!({ "refresh_timeout": "300ms" })).await;
    assert!(
        begun.elapsed() < WAIT_MAX,
        "the default would be thirty seconds"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_of_zero_is_raised_to_the_shortest_pause() {
    for told in ["0", "-1", "0.001", "soon", ""] {
        let mut scene = LoginScene::new(-60).await;
        scene
            .login
            .always_for_token(TokenReply::status(429).header("retry-after", told));
        let client = scene
            .start(json!({ "refresh_timeout": "1s", "lock_timeout": "1s" }))
            .await;
        let answers = [
            client.turn(&turn("one")).await,
            client.turn(&turn("one")).await,
        ];
        assert_eq!(scene.login.post_count(), 1, "{told:?}");
        for answer in &answers {
            check_unavailable(told, answer);
        }
        scene.rig.wait_for_state("a", "cannot_refresh").await;
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_have_expired_when_issued_are_not_requested_repeatedly() {
    let mut scene = LoginScene::new(-60).await;
    scene.login.lifetime(Duration::ZERO);
    let client = scene.start(json!({})).await;
    for _ in 0..3 {
        // The gateway's clock may be wrong: upstream decides.
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text());
        assert_eq!(scene.login.post_count(), 1);
    }
    assert!(scene.has_newest_tokens());
    scene.rig.stop().await;
}

// Beside other credentials

#[tokio::test(flavor = "multi_thread")]
async fn refreshes_without_waiting_requests_run_one_after_another_and_the_others_at_once() {
    let mut rig = Rig::new().await;
    let gate = Gate::new();
    let mut logins = Vec::new();
    let mut credentials = Vec::new();
    for (tag, seconds) in [("a", 200), ("b", 200), ("c", -60)] {
        let (credential, login) = rig.expiring_login(tag, seconds);
        credentials.push(credential);
        logins.push(login);
    }
    for login in &logins[..2] {
        login.then_for_token(TokenReply::well().behind(&gate));
    }
    let config = rig.config(
        json!({ "credentials": credentials, "users": (["a", "b", "c"].map(|tag| user(tag, tag))) }),
    );
    let client = rig.start(config).await;
    gate.wait_until_reached().await;
    for tag in ["c", "a", "b"] {
        check_served(
            tag,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
    }
    assert_eq!(
        (
            logins[0].post_count() + logins[1].post_count(),
            logins[2].post_count()
        ),
        (1, 1)
    );
    gate.open();
    for login in &logins {
        login.wait_for_posts(1).await;
    }
    for tag in ["a", "b", "c"] {
        rig.wait_for_state(tag, "ready").await;
    }
    assert_eq!(rig.token_posts(), 3);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_credentials_with_one_file_cause_one_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let link = scene.rig.path("b.json");
    let other = json!({ "tag": "b", "credential_path": link });
    let users = ["a", "b"].map(|tag| user(tag, tag));
    let config = scene
        .rig
        .config(json!({ "credentials": [scene.credential, other], "users": users }));
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.rig.start(config).await;
    gate.wait_until_reached().await;
    // A configuration that names a file twice is rejected, so the second path becomes a link to the
    // file later.
    symlink("a.json", link).expect("a link can be made");
    scene.rig.wait_for_state("b", "refreshing").await;
    gate.open();
    for tag in ["a", "b"] {
        check_served(
            tag,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
        assert_eq!(
            scene.rig.presented_tokens().pop().as_deref(),
            Some(token_of(&scene.login.auth_json(), "access_token"))
        );
    }
    assert_eq!((scene.token_posts(), scene.login.reuses()), (1, 0));
    scene.rig.stop().await;
}

// Beside another process

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_while_another_process_holds_the_lock_and_its_tokens_are_used() {
    for newer in [true, false] {
        let mut scene = LoginScene::new(-60).await;
        let lock = lock(&scene.rig);
        let client = scene.start(json!({})).await;
        scene.rig.wait_for_state("a", "refreshing").await;
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.turn(&turn("one")).await }
        });
        if newer {
            replace_file(&scene.file(), scene.login.renew_with(3600).to_string());
        }
        assert_eq!(scene.token_posts(), 0, "newer: {newer}");
        drop(lock);
        check_served("then", &waiting.await.expect("an answer"));
        scene.wait_for_new_tokens().await;
        assert_eq!(
            (scene.token_posts(), scene.login.reuses()),
            (usize::from(!newer), 0),
            "newer: {newer}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_for_too_long_spends_no_token_and_is_tried_again() {
    let mut scene = LoginScene::new(-60).await;
    let lock = lock(&scene.rig);
    let client = scene.start(json!({ "lock_timeout": "100ms" })).await;
    check_unavailable("held", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 0);
    drop(lock);
    scene.wait_for_new_tokens().await;
    check_served("released", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_in_the_place_of_the_lock_blocks_nothing() {
    let mut scene = LoginScene::new(-60).await;
    let lock = beside(&scene.rig, ".lock");
    make_fifo(&lock);
    let client = scene
        .start(json!({ "lock_timeout": "200ms", "refresh_timeout": "200ms" }))
        .await;
    let answer = client.turn(&turn("one")).await;
    let told = scene.rig.credential("a").await;
    let ended = timeout(WAIT_MAX, scene.rig.stop()).await.is_ok();
    // A thread that blocks on it continues once it has a reader: the end of a test waits for its
    // threads.
    let _reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&lock);
    fs::remove_file(lock).expect("it is there");
    assert!(ended, "the gateway ends");
    check_unavailable("a FIFO", &answer);
    assert_eq!(
        (&told["state"], scene.token_posts()),
        (&json!("cannot_refresh"), 0),
        "{told:#}"
    );
}

// Beside other writers of the file

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_needs_a_refresh_gets_it_right_after_the_last_one() {
    for during in [false, true] {
        let mut scene = LoginScene::new(-60).await;
        let other = scene.rig.upstream.login("account-of-another");
        let text = other.renew_with(-60).to_string();
        let gate = Gate::new();
        scene.login.then_for_token(TokenReply::well().behind(&gate));
        let client = scene.start(json!({})).await;
        gate.wait_until_reached().await;
        if during {
            replace_file(&scene.file(), &text);
        }
        gate.open();
        if !during {
            scene.wait_for_new_tokens().await;
            replace_file(&scene.file(), &text);
        }
        other.wait_for_posts(1).await;
        let is_so = |found: &Value| found["state"] == "ready";
        scene
            .rig
            .wait_for_credential("a", WAIT_MAX, "ready", is_so)
            .await;
        check_served("the other", &client.turn(&turn("one")).await);
        assert_eq!(
            read_json(&scene.file())["tokens"],
            other.auth_json()["tokens"],
            "during: {during}"
        );
        assert_eq!(
            (scene.login.post_count(), other.post_count()),
            (1, 1),
            "during: {during}"
        );
        scene.rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_file_without_other_tokens_does_not_clear_login_needed() {
    let mut scene = LoginScene::new(-60).await;
    scene.login.always_for_token(TokenReply::status(401));
    let client = scene.start(json!({})).await;
    check_unavailable("before", &client.turn(&turn("one")).await);
    let mut file = read_json(&scene.file());
    file["last_refresh"] = days_ago(30);
    let known = scene.rig.credential("a").await["refreshed_at"].clone();
    assert_ne!(known, Value::Null);
    replace_file(&scene.file(), file.to_string());
    let is_so = |found: &Value| found["refreshed_at"] != known;
    let status = scene
        .rig
        .wait_for_credential("a", WAIT_MAX, "the change", is_so)
        .await;
    assert_eq!(status["state"], "login_needed", "{status:#}");
    check_unavailable("after", &client.turn(&turn("one")).await);
    assert_eq!(scene.token_posts(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_refresh_token_is_read_from_the_file_right_before_it_is_spent() {
    let mut scene = LoginScene::new(3600).await;
    scene
        .rig
        .upstream
        .account("taken-by-upstream", "account-a")
        .then(Reply::error(401, "invalid_request_error", "no"));
    let mut file = oauth_file("taken-by-upstream", "account-a");
    replace_file(&scene.file(), file.to_string());
    let client = scene.start(json!({})).await;
    // The access token is the same: the gateway has nothing to reload.
    file["tokens"]["refresh_token"] = scene.login.auth_json()["tokens"]["refresh_token"].clone();
    replace_file(&scene.file(), file.to_string());
    check_served("refused once", &client.turn(&turn("one")).await);
    assert!(scene.has_newest_tokens());
    assert_eq!((scene.token_posts(), scene.login.rotations()), (1, 1));
    scene.rig.stop().await;
}

// Refreshes that outlive a client or the gateway

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_completes_after_its_client_has_left() {
    let mut scene = LoginScene::new(3600).await;
    let gate = Gate::new();
    scene
        .login
        .account()
        .then(Reply::error(401, "invalid_request_error", "expired"));
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    let leaving = tokio::spawn({
        let client = Client::new(client.address());
        async move { client.turn(&turn("one")).await }
    });
    gate.wait_until_reached().await;
    leaving.abort();
    assert!(leaving.await.is_err_and(|error| error.is_cancelled()));
    wait_for_rows(&scene.rig.ledger(), 1).await;
    gate.open();
    scene.wait_for_new_tokens().await;
    check_served("the next", &client.turn(&turn("one")).await);
    assert_eq!(
        (scene.token_posts(), scene.login.account().turn_count()),
        (1, 2)
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_waits_for_its_refresh() {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let opening = async {
        let begun = Instant::now();
        while TcpStream::connect(client.address()).await.is_ok() {
            assert!(begun.elapsed() < WAIT_MAX, "it listens still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
    };
    tokio::join!(scene.rig.stop(), opening);
    assert!(scene.has_newest_tokens());
    assert_eq!(
        (
            scene.token_posts(),
            beside(&scene.rig, ".refresh-journal").exists()
        ),
        (1, false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_running_refresh_are_private_and_contain_no_token() {
    let mut scene = LoginScene::new(-60).await;
    fs::set_permissions(scene.file(), fs::Permissions::from_mode(0o644))
        .expect("its mode can be set");
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let journal = beside(&scene.rig, ".refresh-journal");
    assert_eq!(
        (mode(&journal), mode(&beside(&scene.rig, ".lock"))),
        (0o600, 0o600)
    );
    let noted = fs::read_to_string(&journal).expect("it is there");
    let file = read_json(&scene.file());
    for name in ["access_token", "refresh_token", "id_token"] {
        assert!(
            !noted.contains(token_of(&file, name)),
            "{name} is in {noted}"
        );
    }
    gate.open();
    check_served("then", &client.turn(&turn("one")).await);
    assert!(!journal.exists());
    scene.rig.stop().await;
}

// Links

/// Makes the credential's file a link to a link to `theirs/auth.json`, and returns that path.
fn link_to_other_folder(scene: &LoginScene) -> PathBuf {
    let target = scene.rig.path("theirs").join("auth.json");
    for folder in ["between", "theirs"] {
        fs::create_dir(scene.rig.path(folder)).expect("a folder can be made");
    }
    fs::rename(scene.file(), &target).expect("a file can be moved");
    symlink(
        "../theirs/auth.json",
        scene.rig.path("between").join("link"),
    )
    .expect("a link can be made");
    symlink("between/link", scene.file()).expect("a link can be made");
    target
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a plain name")
        })
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_journal_are_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let target = link_to_other_folder(&scene);
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    let theirs = scene.rig.path("theirs");
    assert_eq!(
        names_in(&theirs),
        ["auth.json", "auth.json.lock", "auth.json.refresh-journal"]
    );
    gate.open();
    check_served("served", &client.turn(&turn("one")).await);
    assert!(scene.file().is_symlink() && scene.rig.path("between").join("link").is_symlink());
    assert!(!target.is_symlink() && scene.has_newest_tokens());
    assert_eq!(names_in(&scene.rig.path("between")), ["link"]);
    assert_eq!(names_in(&theirs), ["auth.json", "auth.json.lock"]);
    assert!(!beside(&scene.rig, ".lock").exists());
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tokens_are_requested_if_they_could_not_be_stored_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let journal = link_to_other_folder(&scene).with_extension("json.refresh-journal");
    fs::create_dir(&journal).expect("a folder can be made");
    let client = scene.start(json!({})).await;
    check_unavailable("not writable", &client.turn(&turn("one")).await);
    let status = scene.rig.credential("a").await;
    assert_eq!(
        (&status["state"], scene.token_posts()),
        (&json!("cannot_refresh"), 0),
        "{status:#}"
    );
    let reason = status["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("cannot") && reason.contains("auth.json.refresh-journal"),
        "{reason}"
    );
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn journaled_tokens_are_recovered_at_the_start_beside_the_target_of_links() {
    let mut scene = LoginScene::new(-60).await;
    let journal = link_to_other_folder(&scene).with_extension("json.refresh-journal");
    scene.login.then_for_token(TokenReply::well().cut());
    let client = scene.start(json!({})).await;
    check_unavailable("lost", &client.turn(&turn("one")).await);
    scene.rig.stop().await;
    let mut noted = read_json(&journal);
    let file = scene.login.auth_json();
    noted["tokens"] = json!({
        "id_token": token_of(&file, "id_token"),
        "access_token": token_of(&file, "access_token"),
        "refresh_token": token_of(&file, "refresh_token"),
    });
    fs::write(&journal, noted.to_string()).expect("it can be written");
    let client = scene.start(json!({})).await;
    check_served("recovered", &client.turn(&turn("one")).await);
    assert!(scene.file().is_symlink() && scene.has_newest_tokens());
    assert_eq!((scene.login.post_count(), journal.exists()), (1, false));
    scene.rig.stop().await;
}
