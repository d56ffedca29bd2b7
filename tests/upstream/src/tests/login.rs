//! What a login promises: single use, revocation on reuse, expiry, and each scripted answer.

use std::collections::HashSet;

use super::*;
use crate::accounts::standing::unix_now;

const USAGE: &str = "/backend-api/wham/usage";

fn refresh_request(refresh_token: &Value) -> Value {
    json!({
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": "openid profile email",
    })
}

fn token_post(media: &str, body: String) -> Request<Full<Bytes>> {
    let request = Request::post("/oauth/token")
        .header("host", "upstream")
        .header("content-type", media);
    request.body(Full::new(body.into())).expect("a request")
}

async fn post(upstream: &Upstream, body: &Value) -> hyper::Result<Response<Incoming>> {
    send(upstream, token_post("application/json", body.to_string())).await
}

async fn whole(response: Response<Incoming>) -> Answered {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answered {
        status: head.status,
        headers: head.headers,
        body,
    }
}

/// Refreshes with the token of this auth.json.
async fn refresh(upstream: &Upstream, auth_json: &Value) -> Answered {
    let body = refresh_request(&auth_json["tokens"]["refresh_token"]);
    whole(post(upstream, &body).await.expect("an answer")).await
}

/// Asks with the access token of this auth.json.
async fn use_tokens(upstream: &Upstream, auth_json: &Value, path: &str, body: &str) -> Answered {
    let token = auth_json["tokens"]["access_token"]
        .as_str()
        .expect("an access token");
    let mut asked = request(path, token, body.to_owned());
    asked
        .headers_mut()
        .insert("chatgpt-account-id", "acct-ana".parse().expect("a value"));
    whole(send(upstream, asked).await.expect("an answer")).await
}

async fn status_of(upstream: &Upstream, auth_json: &Value) -> StatusCode {
    use_tokens(upstream, auth_json, "/v1/models", "")
        .await
        .status
}

async fn start_login() -> (Upstream, Login) {
    let upstream = Upstream::start().await;
    let login = upstream.login("acct-ana");
    (upstream, login)
}

fn claims(token: &Value) -> Value {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let middle = token
        .as_str()
        .expect("a token")
        .split('.')
        .nth(1)
        .expect("three parts");
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for letter in middle.chars() {
        bits = bits << 6 | LETTERS.find(letter).expect("a letter of base64url") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    serde_json::from_slice(&bytes).expect("claims are JSON")
}

#[track_caller]
fn assert_refused(answered: &Answered, status: u16, code: &str) {
    assert_eq!(answered.status, status);
    assert_eq!(answered.json()["error"]["code"], code);
}

#[tokio::test]
async fn auth_json_is_as_codex_writes_it() {
    let (_upstream, login) = start_login().await;
    login.account().set_standing(Standing::new("pro"));
    let file = login.renew_with(90);
    let fields: Vec<&String> = file.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["OPENAI_API_KEY", "tokens", "last_refresh"]);
    assert!(file["OPENAI_API_KEY"].is_null());
    assert_eq!(file["tokens"]["account_id"], "acct-ana");
    assert!(
        file["tokens"]["refresh_token"]
            .as_str()
            .expect("text")
            .starts_with("rt-acct-ana-")
    );
    let last_refresh = file["last_refresh"].as_str().expect("text");
    assert_eq!(
        (last_refresh.len(), &last_refresh[29..]),
        ("2026-11-22T10:00:00.000000000Z".len(), "Z")
    );
    let access = claims(&file["tokens"]["access_token"]);
    let left = access["exp"].as_i64().expect("Unix seconds") - unix_now() as i64;
    assert!((80..=90).contains(&left), "{left} seconds");
    assert_eq!(
        access["https://api.openai.com/auth"]["chatgpt_plan_type"],
        "pro"
    );
    let id = claims(&file["tokens"]["id_token"]);
    assert_eq!(
        id["https://api.openai.com/auth"]["chatgpt_account_id"],
        "acct-ana"
    );
    assert_eq!(id["email"], "acct-ana@example.com");
}

#[tokio::test]
async fn a_refresh_rotates_and_old_access_tokens_stay() {
    let (upstream, login) = start_login().await;
    login.lifetime(Duration::from_secs(600));
    let old = login.auth_json();
    let answered = refresh(&upstream, &old).await;
    assert_eq!(
        (answered.status, &answered.headers["content-type"]),
        (StatusCode::OK, &"application/json".parse().unwrap())
    );
    assert!(
        answered
            .headers
            .keys()
            .all(|name| !name.as_str().starts_with("x-codex"))
    );
    let (answer, new) = (answered.json(), login.auth_json());
    assert_eq!(
        (&answer["token_type"], &answer["expires_in"]),
        (&json!("Bearer"), &json!(600))
    );
    for name in ["id_token", "access_token", "refresh_token"] {
        assert_eq!(answer[name], new["tokens"][name], "{name}");
        assert_ne!(answer[name], old["tokens"][name], "{name}");
    }
    for file in [&old, &new] {
        assert_eq!(
            use_tokens(&upstream, file, RESPONSES, &turn().to_string())
                .await
                .status,
            200
        );
        assert_eq!(use_tokens(&upstream, file, USAGE, "").await.status, 200);
    }
    assert_eq!(
        (
            login.post_count(),
            login.rotations(),
            login.reuses(),
            login.is_revoked()
        ),
        (1, 1, 0, false)
    );
}

#[tokio::test]
async fn a_reuse_revokes_the_family_and_no_other() {
    let (upstream, login) = start_login().await;
    let other = upstream.login("acct-ana");
    let spent = login.auth_json();
    assert_eq!(refresh(&upstream, &spent).await.status, 200);
    let current = login.auth_json();
    assert_refused(
        &refresh(&upstream, &spent).await,
        401,
        "refresh_token_reused",
    );
    for file in [&spent, &current] {
        assert_refused(
            &refresh(&upstream, file).await,
            401,
            "refresh_token_invalidated",
        );
        assert_refused(
            &use_tokens(&upstream, file, RESPONSES, "{}").await,
            401,
            "token_expired",
        );
        assert_refused(
            &use_tokens(&upstream, file, USAGE, "").await,
            401,
            "token_expired",
        );
    }
    assert_eq!(
        (
            login.post_count(),
            login.rotations(),
            login.reuses(),
            login.is_revoked()
        ),
        (4, 1, 2, true)
    );
    assert_eq!(status_of(&upstream, &other.auth_json()).await, 200);
    assert_eq!((other.post_count(), other.is_revoked()), (0, false));
}

#[tokio::test]
async fn an_expired_access_token_is_refused_and_refreshes() {
    let (upstream, login) = start_login().await;
    let fresh = login.auth_json();
    for (lifetime_seconds, status) in [(-1, 401), (0, 401), (60, 200)] {
        let file = login.renew_with(lifetime_seconds);
        assert_eq!(
            status_of(&upstream, &file).await,
            status,
            "{lifetime_seconds} s"
        );
        assert_eq!(
            file["tokens"]["refresh_token"],
            fresh["tokens"]["refresh_token"]
        );
    }
    let expired = login.renew_with(-60);
    assert_refused(
        &use_tokens(&upstream, &expired, USAGE, "").await,
        401,
        "token_expired",
    );
    assert_eq!(refresh(&upstream, &expired).await.status, 200);
    assert_eq!(status_of(&upstream, &login.auth_json()).await, 200);
    login.lifetime(Duration::ZERO);
    assert_eq!(refresh(&upstream, &login.auth_json()).await.status, 200);
    assert_eq!(status_of(&upstream, &login.auth_json()).await, 401);
}

#[tokio::test]
async fn only_codexs_own_request_is_taken() {
    let (upstream, login) = start_login().await;
    let well = refresh_request(&login.auth_json()["tokens"]["refresh_token"]);
    for (field, value) in [
        ("client_id", Some(json!("app_other"))),
        ("client_id", None),
        ("grant_type", Some(json!("authorization_code"))),
        ("grant_type", None),
        ("refresh_token", Some(json!(7))),
        ("refresh_token", None),
        ("scope", Some(json!(["openid"]))),
        ("audience", Some(json!("all"))),
    ] {
        let mut bad = well.clone();
        bad.as_object_mut().expect("an object").shift_remove(field);
        if let Some(value) = value {
            bad[field] = value;
        }
        assert_refused(
            &whole(post(&upstream, &bad).await.expect("an answer")).await,
            400,
            "invalid_request",
        );
    }
    for (media, body) in [
        (
            "application/x-www-form-urlencoded",
            "grant_type=refresh_token".to_owned(),
        ),
        ("application/x-www-form-urlencoded", well.to_string()),
        ("application/json", "{".to_owned()),
    ] {
        let answered = whole(
            send(&upstream, token_post(media, body))
                .await
                .expect("an answer"),
        )
        .await;
        assert_refused(&answered, 400, "invalid_request");
    }
    assert_refused(
        &whole(
            post(&upstream, &refresh_request(&json!("rt-unknown-1")))
                .await
                .expect("an answer"),
        )
        .await,
        401,
        "refresh_token_invalidated",
    );
    assert_eq!((login.post_count(), login.rotations()), (0, 0));
    let mut as_codex = well;
    as_codex
        .as_object_mut()
        .expect("an object")
        .shift_remove("scope");
    as_codex["refresh_reason"] = json!("expired");
    let request = token_post("application/json; charset=utf-8", as_codex.to_string());
    assert_eq!(
        send(&upstream, request).await.expect("an answer").status(),
        200
    );
}

#[tokio::test]
async fn a_bad_answer_rotates_only_if_told() {
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
async fn the_queue_of_a_login_goes_before_always() {
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
async fn a_cut_comes_after_the_rotation() {
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

#[tokio::test]
async fn each_kind_of_request_has_its_count() {
    let (upstream, login) = start_login().await;
    let (account, file) = (login.account(), login.auth_json());
    use_tokens(&upstream, &file, RESPONSES, &turn().to_string()).await;
    use_tokens(&upstream, &file, USAGE, "").await;
    account.then_for_poll(Reply::server_error(500));
    assert_eq!(use_tokens(&upstream, &file, USAGE, "").await.status, 500);
    let expired = login.renew_with(-1);
    use_tokens(&upstream, &expired, USAGE, "").await;
    refresh(&upstream, &file).await;
    account.wait_for_polls(3).await;
    assert_eq!(
        (
            account.turn_count(),
            account.poll_count(),
            login.post_count()
        ),
        (1, 3, 1)
    );
    let seen = upstream.wait_for_requests(5).await;
    assert_eq!(upstream.turns().len(), 1);
    assert_eq!(
        (seen[4].path(), seen[4].json()["grant_type"].as_str()),
        ("/oauth/token", Some("refresh_token"))
    );
    assert!(
        seen.iter()
            .all(|request| request.account.as_deref() == Some("acct-ana"))
    );
    assert_eq!(
        ask(&upstream, USAGE, Value::Null).await.status,
        401,
        "an unknown token cannot poll"
    );
    assert_eq!(account.poll_count(), 3);
}

#[tokio::test]
async fn no_two_tokens_are_alike() {
    let (upstream, login) = start_login().await;
    let mut seen = HashSet::new();
    for _ in 0..3 {
        refresh(&upstream, &login.auth_json()).await;
        let tokens = login.auth_json()["tokens"].clone();
        for name in ["id_token", "access_token", "refresh_token"] {
            assert!(seen.insert(tokens[name].to_string()), "{name}");
        }
        assert!(seen.insert(login.renew_with(60)["tokens"]["access_token"].to_string()));
    }
}
