//! Another gateway as a credential: which users may use it, and its configuration.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Rig, turn};

use super::{TOKEN, check_exhausted, external, front, limited, pool, remote};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_never_used_for_a_user_without_external_usage() {
    for strategy in ["fallback", "least_used", "round_robin", "random"] {
        let (mut back, url) = remote(&[Standing::new("pro")]).await;
        let (mut rig, client) = front(&url, strategy, ["x", "a"]).await;
        let bob = client.token("token-bob");
        for number in 0..6 {
            assert_eq!(
                bob.turn(&turn(&number.to_string())).await.status,
                StatusCode::OK,
                "{strategy}"
            );
        }
        rig.account("a").then(limited(600));
        check_exhausted(&bob.turn(&turn("one")).await, 600);
        check_exhausted(&bob.turn(&turn("one")).await, 600);
        assert!(back.upstream.turns().is_empty(), "{strategy}");

        assert_eq!(
            client.token("token-alice").turn(&turn("one")).await.status,
            StatusCode::OK,
            "{strategy}"
        );
        assert_eq!(back.upstream.turns().len(), 1, "{strategy}");
        rig.stop().await;
        back.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_used_in_a_service_without_users() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [external("x", &url)] }));
    let client = rig.start(config).await;
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(back.upstream.turns().len(), 1);
    rig.stop().await;
    back.stop().await;
}

/// Checks that `credentials` and these fields of a user are rejected with that problem.
async fn check_problem(credentials: Value, user: Value, expected: &str) {
    let mut rig = Rig::new().await;
    let mut alice = json!({ "name": "alice", "token": "token-alice", "credential": "pool" });
    alice
        .as_object_mut()
        .expect("an object")
        .extend(user.as_object().expect("an object").clone());
    let config = rig.config(json!({ "credentials": credentials, "users": [alice] }));
    let error = rig
        .try_start(config)
        .await
        .err()
        .expect("no gateway")
        .to_string();
    assert!(
        error.contains(expected),
        "expected {expected:?}, found {error:?}"
    );
    assert!(!error.contains(TOKEN), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_only_external_credentials_and_without_external_usage_is_rejected() {
    let mut rig = Rig::new().await;
    let [x, y] = ["x", "y"].map(|tag| external(tag, "http://127.0.0.1:1"));
    let user = |name: &str, credential: &str| json!({ "name": name, "token": format!("token-{name}"), "credential": credential });
    let config = rig.config(json!({
        "credentials": [x, y, pool("least_used", &["x", "y"])],
        "users": [user("alice", "pool"), user("bob", "x")],
    }));
    let client = rig.start(config).await;
    for name in ["alice", "bob"] {
        let answer = client
            .token(&format!("token-{name}"))
            .turn(&turn("one"))
            .await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{name}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_problems_are_reported_at_load_without_its_token() {
    let with = |field: &str, value: Value| {
        let mut x = external("x", "http://127.0.0.1:1");
        x[field] = value;
        if ["reverse", "server", "server_port"].contains(&field) {
            x["url"] = json!("");
        }
        json!([x, pool("least_used", &["x"])])
    };
    let user = || json!({ "allow_external_usage": true });
    for (field, value, expected) in [
        ("reverse", json!(true), "url: missing"),
        ("url", json!("gateway.example:8080"), "url: expected a URL"),
        ("token", json!(""), "token: must not be empty"),
        (
            "token",
            json!(format!("{TOKEN}\n{TOKEN}")),
            "token: expected text without control characters",
        ),
        (
            "detour",
            json!("nowhere"),
            "detour: expected the tag of an outbound",
        ),
        (
            "poll_interval",
            json!("99999999999d"),
            "poll_interval: expected a duration",
        ),
        ("credential_path", json!("auth.json"), "credential_path"),
    ] {
        check_problem(
            with(field, value),
            user(),
            &format!("services[0].credentials[0].{expected}"),
        )
        .await;
    }
}
