//! Tokens: their files, rotation, reuse and expiry.

use std::collections::HashSet;
use std::time::Duration;

use super::{
    assert_refused, post, refresh, refresh_request, start_login, status_of, token_post, use_tokens,
    whole,
};
use crate::responses::standing::unix_now;
use crate::tests::*;

const USAGE: &str = "/backend-api/wham/usage";

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
    let form = "YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ";
    assert_eq!((last_refresh.len(), &last_refresh[29..]), (form.len(), "Z"));
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
async fn only_the_request_of_codex_is_accepted() {
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
