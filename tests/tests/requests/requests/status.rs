//! The status page of users.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Answer, Rig, rows, turn, user};

use super::{check_error, open_rig, team_rig};

const STATUS: &str = "/ocm/v1/status";

#[tokio::test(flavor = "multi_thread")]
async fn status_is_for_users_and_read_only() {
    let (mut rig, client) = open_rig().await;
    assert_eq!(client.get(STATUS).await.status, StatusCode::FORBIDDEN);
    rig.stop().await;

    let (mut rig, client) = team_rig().await;
    check_error(
        &client.get(STATUS).await,
        401,
        "authentication_error",
        None,
        "missing api key",
    );
    let basic = client
        .header("authorization", "Basic eA==")
        .get(STATUS)
        .await;
    check_error(
        &basic,
        401,
        "authentication_error",
        None,
        "invalid api key format",
    );
    check_error(
        &client.token("x").get(STATUS).await,
        401,
        "authentication_error",
        None,
        "invalid api key",
    );
    for method in [Method::POST, Method::DELETE] {
        let answer = client.token("token-alice").ask(method, STATUS, "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(
        client.token("token-alice").get(STATUS).await.status,
        StatusCode::OK
    );
    assert!(rig.forwarded().is_empty());
    assert!(rows(&rig.ledger()).is_empty());
    rig.stop().await;
}

#[track_caller]
fn check_status(answer: &Answer, five_hour: f64, weekly: f64, weight: f64) {
    assert_eq!(answer.status, StatusCode::OK);
    let body = answer.json();
    let near = |name: &str, expected: f64| {
        let found = body[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} is no number: {body}"));
        assert!(
            (found - expected).abs() < 1e-6,
            "{name}: {found}, expected {expected}"
        );
    };
    near("five_hour_utilization", five_hour);
    near("weekly_utilization", weekly);
    near("plan_weight", weight);
    assert_eq!(body.as_object().map(|body| body.len()), Some(3), "{body}");
}

/// An account of the plan `pro`, and an auth.json whose id token names it:
/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"pro"}}`.
fn pro_file(rig: &Rig, tag: &str) -> Value {
    const PRO: &str =
        "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";
    let credential = rig.oauth(tag);
    rig.account(tag).set_standing(Standing::new("pro"));
    let mut file = tollgate_tests::oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{PRO}.y"));
    rig.write(&format!("{tag}.json"), file.to_string());
    credential
}

#[tokio::test(flavor = "multi_thread")]
async fn status_weighs_what_is_left_under_the_caps_by_plan() {
    let mut rig = Rig::new().await;
    let mut a = rig.oauth("a");
    (a["reserve_5h"], a["limit_weekly"]) = (json!(20), json!(60));
    let b = pro_file(&rig, "b");
    let away = json!({ "tag": "away", "credential_path": rig.path("away.json") });
    let user = |tag: &str| user(tag, tag);
    let config = rig.config(json!({
        "credentials": [a, b, away, {"tag": "pool", "type": "balancer", "credentials": ["a", "b", "away"]}],
        "users": (["a", "b", "away", "pool"].map(user)),
    }));
    let client = rig.start_polled(config).await;
    let ask = async |name: &str| client.token(&format!("token-{name}")).get(STATUS).await;

    // Nothing is used; what is not reserved is what there is.
    check_status(&ask("a").await, 20.0, 40.0, 1.0);
    check_status(&ask("b").await, 1.0, 1.0, 10.0);
    check_status(&ask("away").await, 100.0, 100.0, 0.0);

    rig.account("a")
        .set_standing(Standing::new("plus").five_hour_used(50.0).weekly_used(75.0));
    rig.account("b")
        .set_standing(Standing::new("pro").five_hour_used(10.0).weekly_used(20.5));
    for name in ["a", "b"] {
        client
            .token(&format!("token-{name}"))
            .turn(&turn("one"))
            .await;
    }

    check_status(&ask("a").await, 70.0, 100.0, 1.0);
    check_status(&ask("b").await, 11.0, 21.5, 10.0);
    // 5-hour: 30 x 1 and 89 x 10 are left; weekly: 0 x 1 (over its cap) and 78.5 x 10.
    check_status(
        &ask("pool").await,
        100.0 - 920.0 / 11.0,
        100.0 - 785.0 / 11.0,
        11.0,
    );
    rig.stop().await;
}
