//! Scripted replies of the token endpoint.

use super::{assert_refused, post, refresh, refresh_request, start_login, status_of};
use crate::tests::*;

#[tokio::test]
async fn a_malformed_response_rotates_tokens_only_if_scripted() {
    let (upstream, login) = start_login().await;
    let first = login.auth_json();
    login
        .then_for_token(TokenReply::status(503).header("retry-after", "1"))
        .then_for_token(
            TokenReply::status(502)
                .body("<html>")
                .header("content-type", "text/html")
                .rotating(),
        )
        .then_for_token(TokenReply::well().body("{\"access_token\":"));
    let unavailable = refresh(&upstream, &first).await;
    assert_eq!(
        (unavailable.status.as_u16(), &unavailable.body[..]),
        (503, &b""[..])
    );
    assert_eq!(unavailable.headers["retry-after"], "1");
    assert_eq!(
        (
            login.rotations(),
            login.auth_json()["tokens"] == first["tokens"]
        ),
        (0, true)
    );
    let page = refresh(&upstream, &first).await;
    assert_eq!(
        (page.status.as_u16(), &page.body[..]),
        (502, &b"<html>"[..])
    );
    assert_eq!(page.headers["content-type"], "text/html");
    assert_eq!(login.rotations(), 1);
    let broken = refresh(&upstream, &login.auth_json()).await;
    assert_eq!(
        (broken.status.as_u16(), &broken.body[..]),
        (200, &b"{\"access_token\":"[..])
    );
    assert_eq!(login.rotations(), 2);
    // What is scripted is not for spent tokens.
    login.always_for_token(TokenReply::status(500));
    assert_refused(
        &refresh(&upstream, &first).await,
        401,
        "refresh_token_reused",
    );
}

#[tokio::test]
async fn the_queue_of_a_login_precedes_its_standing_reply() {
    let (upstream, login) = start_login().await;
    login
        .always_for_token(TokenReply::status(500))
        .then_for_token(TokenReply::status(429));
    let file = login.auth_json();
    for status in [429, 500, 500] {
        assert_eq!(refresh(&upstream, &file).await.status, status);
    }
    login.clear_token_script();
    assert_eq!(refresh(&upstream, &file).await.status, 200);
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_leaves_the_old_one_current() {
    let (upstream, login) = start_login().await;
    let file = login.auth_json();
    login.then_for_token(TokenReply::well().without_refresh_token());
    let answer = refresh(&upstream, &file).await.json();
    assert!(answer.get("refresh_token").is_none());
    assert_ne!(answer["access_token"], file["tokens"]["access_token"]);
    assert_eq!(
        status_of(&upstream, &json!({ "tokens": answer })).await,
        200
    );
    assert_eq!(refresh(&upstream, &file).await.status, 200);
    assert_eq!((login.rotations(), login.reuses()), (1, 0));
}

#[tokio::test]
async fn a_held_answer_has_rotated_already() {
    let (upstream, login) = start_login().await;
    let gate = Gate::new();
    login.then_for_token(TokenReply::well().behind(&gate));
    let file = login.auth_json();
    let asking = tokio::spawn({
        let (upstream, file) = (upstream.clone(), file.clone());
        async move { refresh(&upstream, &file).await }
    });
    gate.wait_until_reached().await;
    login.wait_for_posts(1).await;
    assert_eq!((login.rotations(), asking.is_finished()), (1, false));
    gate.open();
    let answer = asking.await.expect("an answer").json();
    assert_eq!(
        answer["refresh_token"],
        login.auth_json()["tokens"]["refresh_token"]
    );
}

#[tokio::test]
async fn a_client_killed_before_the_answer_has_lost_its_tokens() {
    let (upstream, login) = start_login().await;
    let gate = Gate::new();
    login.then_for_token(TokenReply::well().behind(&gate));
    let file = login.auth_json();
    let asking = tokio::spawn({
        let (upstream, file) = (upstream.clone(), file.clone());
        async move { refresh(&upstream, &file).await }
    });
    gate.wait_until_reached().await;
    asking.abort();
    upstream.wait_for_abandoned(1).await;
    assert_refused(
        &refresh(&upstream, &file).await,
        401,
        "refresh_token_reused",
    );
}

#[tokio::test]
async fn a_cut_happens_after_the_rotation() {
    let (upstream, login) = start_login().await;
    login.then_for_token(TokenReply::well().cut());
    let file = login.auth_json();
    let body = refresh_request(&file["tokens"]["refresh_token"]);
    assert!(post(&upstream, &body).await.is_err());
    assert_eq!(
        (login.post_count(), login.rotations(), login.reuses()),
        (1, 1, 0)
    );
    assert_refused(
        &refresh(&upstream, &file).await,
        401,
        "refresh_token_reused",
    );
}

#[tokio::test]
async fn an_endless_answer_trickles_until_the_client_leaves() {
    let (upstream, login) = start_login().await;
    login.then_for_token(TokenReply::well().endless());
    let body = refresh_request(&login.auth_json()["tokens"]["refresh_token"]);
    let mut response = post(&upstream, &body).await.expect("a head");
    assert_eq!((response.status().as_u16(), login.rotations()), (200, 1));
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(!response.headers().contains_key("content-length"));
    for _ in 0..3 {
        let frame = response.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.data_ref().expect("data"), " ");
    }
    drop(response);
    upstream.wait_for_abandoned(1).await;
}
