//! When tokens are refreshed.

use serde_json::{Value, json};
use tollgate_tests::peer::{Peer, post};
use tollgate_tests::upstream::{Gate, TokenReply};
use tollgate_tests::{
    LoginGroup, LoginScene, Rig, days_ago, read_json, replace_file, token_of, turn,
};

use crate::checks::check_served;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_requests_with_an_expired_token_cause_one_refresh_and_all_succeed() {
    let mut scene = LoginScene::new(-60).await;
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    let mut requests = Vec::new();
    for number in 0..50 {
        let mut peer = Peer::connect(client.address()).await;
        peer.send(post(&turn(&format!("s{number}")).to_string()))
            .await;
        requests.push(peer);
    }
    gate.wait_until_reached().await;
    assert!(
        scene.rig.presented_tokens().is_empty(),
        "an expired token is not presented"
    );
    gate.open();
    for mut request in requests {
        let answer = request.message().await.expect("an answer");
        assert_eq!(
            (answer.status(), answer.whole),
            (200, true),
            "{}",
            answer.text()
        );
    }
    assert_eq!((scene.token_posts(), scene.login.rotations()), (1, 1));
    assert!(scene.has_newest_tokens());
    let new = token_of(&scene.login.auth_json(), "access_token").to_owned();
    assert_eq!(scene.rig.presented_tokens(), vec![new; 50]);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_soon_is_refreshed_while_requests_still_use_it() {
    let mut scene = LoginScene::new(299).await;
    let old = token_of(&read_json(&scene.file()), "access_token").to_owned();
    let gate = Gate::new();
    scene.login.then_for_token(TokenReply::well().behind(&gate));
    let client = scene.start(json!({})).await;
    gate.wait_until_reached().await;
    check_served("meanwhile", &client.turn(&turn("one")).await);
    gate.open();
    scene.wait_for_new_tokens().await;
    check_served("then", &client.turn(&turn("one")).await);
    assert_eq!(
        scene.rig.presented_tokens(),
        [
            old,
            token_of(&scene.login.auth_json(), "access_token").to_owned()
        ]
    );
    assert_eq!(scene.login.post_count(), 1);
    scene.rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_refreshed_five_minutes_before_expiry_and_at_eight_days_and_not_before() {
    let cases = [
        ("299 s left", 299, days_ago(0), true),
        // A few minutes more than five: the machine may be slow.
        ("ten minutes left", 600, days_ago(0), false),
        ("an hour left", 3600, days_ago(0), false),
        ("seven days old", 3600, days_ago(7), false),
        ("eight days old", 3600, days_ago(8), true),
        ("of no date", 3600, Value::Null, true),
        ("of a date that is none", 3600, json!("lately"), true),
        ("of a date to come", 3600, days_ago(-3), false),
    ];
    let mut rig = Rig::new().await;
    let mut group = LoginGroup::default();
    for (place, (_, seconds, made, _)) in cases.iter().enumerate() {
        let tag = format!("c{place}");
        group.add(&rig, &tag, *seconds);
        let path = rig.credential_file(&tag);
        let mut file = read_json(&path);
        file["last_refresh"] = made.clone();
        replace_file(&path, file.to_string());
    }
    let client = rig.start(group.config(&rig)).await;
    for ((_, _, _, due), login) in cases.iter().zip(&group.logins) {
        if *due {
            login.wait_for_posts(1).await;
        }
    }
    for (place, ((name, _, _, due), login)) in cases.iter().zip(&group.logins).enumerate() {
        let tag = format!("c{place}");
        check_served(
            name,
            &client
                .token(&format!("token-{tag}"))
                .turn(&turn("one"))
                .await,
        );
        rig.wait_for_state(&tag, "ready").await;
        assert_eq!(login.post_count(), usize::from(*due), "{name}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_an_expiry_is_refreshed_by_its_age_alone() {
    // Neither is a JWT: one has no parts, those of the other are not JSON.
    for opaque in ["opaque-token", "opaque.token.of-parts"] {
        for (days, due) in [(0, 0), (7, 0), (8, 1)] {
            let mut scene = LoginScene::new(3600).await;
            scene.rig.upstream.account(opaque, "account-a");
            let mut file = scene.login.auth_json();
            file["tokens"]["access_token"] = json!(opaque);
            file["last_refresh"] = days_ago(days);
            replace_file(&scene.file(), file.to_string());
            let client = scene.start(json!({})).await;
            if due > 0 {
                scene.wait_for_new_tokens().await;
            }
            check_served(opaque, &client.turn(&turn("one")).await);
            let status = scene.rig.wait_for_state("a", "ready").await;
            assert_eq!(
                (scene.login.post_count(), status["expires_at"].is_null()),
                (due, due == 0),
                "{days} days"
            );
            scene.rig.stop().await;
        }
    }
}
