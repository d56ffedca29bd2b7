//! Who may read and change, with which token, and how many at once.

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::ask_socket;

use super::{ADMIN, ALICE, CHANGES, LOOKS, check, running};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_every_request_reads_and_none_changes() {
    let (mut rig, _, admin) = running(json!({})).await;
    for admin in [admin.clone(), admin.token("anything")] {
        for path in ["/healthz", "/readyz"].iter().chain(&LOOKS[..4]) {
            check(&admin.get(path).await, 200, path);
        }
        check(&admin.get(LOOKS[4]).await, 404, "there is no shadow");
        for path in CHANGES {
            check(&admin.ask(Method::POST, path, "").await, 403, path);
        }
    }
    assert_eq!(rig.policy("mine").await["generation"], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_configured_requests_without_it_can_only_read_health() {
    let (mut rig, _, admin) = running(json!({ "token": ADMIN })).await;
    let longer = format!("{ADMIN}x");
    let others = [
        ("without a token", admin.clone()),
        ("another's", admin.token("token-bob")),
        ("a user's", admin.token(ALICE)),
        ("empty", admin.token("")),
        ("cut", admin.token(&ADMIN[..ADMIN.len() - 1])),
        ("longer", admin.token(&longer)),
        (
            "of another scheme",
            admin.header("authorization", &format!("Basic {ADMIN}")),
        ),
        ("without a scheme", admin.header("authorization", ADMIN)),
    ];
    for (who, other) in others {
        for path in ["/healthz", "/readyz"] {
            check(&other.get(path).await, 200, who);
        }
        for path in LOOKS.iter().chain(&["/nowhere"]) {
            let answer = other.get(path).await;
            check(&answer, 401, &format!("{who} at {path}"));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{who}");
        }
        for path in CHANGES {
            check(
                &other.ask(Method::POST, path, "").await,
                401,
                &format!("{who} at {path}"),
            );
        }
    }
    let holder = admin.token(ADMIN);
    for path in &LOOKS[..4] {
        check(&holder.get(path).await, 200, path);
    }
    check(
        &holder.ask(Method::POST, CHANGES[1], "").await,
        409,
        "there is nothing to go back to",
    );
    check(
        &holder.ask(Method::POST, CHANGES[0], "").await,
        200,
        "a reload",
    );
    assert_eq!(rig.policy("mine").await["generation"], 2);
    check(&holder.ask(Method::POST, CHANGES[1], "").await, 200, "back");
    assert_eq!(rig.policy("mine").await["generation"], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_socket_its_owner_needs_no_token() {
    let (mut rig, _, _) = running(json!({ "token": ADMIN })).await;
    for path in &LOOKS[..4] {
        check(
            &ask_socket(&rig.socket(), Method::GET, path).await,
            200,
            path,
        );
    }
    check(
        &ask_socket(&rig.socket(), Method::POST, CHANGES[0]).await,
        200,
        "a reload",
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_404_and_unknown_methods_405() {
    let (mut rig, _, admin) = running(json!({ "token": ADMIN })).await;
    let admin = admin.token(ADMIN);
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/nowhere", 404),
        (Method::GET, "/api", 404),
        (Method::GET, "/api/policies/mine", 404),
        (Method::GET, "/api/policies/mine/reload", 404),
        (Method::GET, "/api/policies/unknown/disagreements", 404),
        (Method::GET, "/v1/models", 404),
        (Method::POST, "/metrics", 405),
        (Method::PUT, "/healthz", 405),
        (Method::DELETE, "/api/policies/mine/reload", 405),
        (Method::POST, "/api/policies/mine/remove", 405),
        (Method::POST, "/api/policies/unknown/reload", 409),
        (Method::POST, "/api/policies/unknown/rollback", 409),
        (Method::GET, "/healthz/", 200),
        (Method::GET, "/metrics?name=x", 200),
    ] {
        check(
            &admin.ask(method.clone(), path, "").await,
            status,
            &format!("{method} {path}"),
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_beyond_the_limit_wait_and_none_is_lost() {
    let (mut rig, _, admin) = running(json!({})).await;
    let asking = (0..100).map(|_| {
        let admin = admin.clone();
        tokio::spawn(async move { admin.get("/metrics").await.status })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.expect("it is answered"), StatusCode::OK);
    }
    rig.stop().await;
}
