//! Choosing a credential: which are usable, how each strategy chooses, and which sessions keep
//! their credential.

mod api_keys;
mod stickiness;
mod strategies;
mod usable;

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Client, Rig, oauth_file, user};

/// `{"https://api.openai.com/auth":{"chatgpt_plan_type":"…"}}` in base64url: the claims of an id
/// token.
const PRO: &str = "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwcm8ifX0";

const PLUS: &str =
    "eyJodHRwczovL2FwaS5vcGVuYWkuY29tL2F1dGgiOnsiY2hhdGdwdF9wbGFuX3R5cGUiOiJwbHVzIn19";

/// An empty object, `{}`, in base64url.
const NO_PLAN: &str = "e30";

/// An account whose id token and polls name its plan, unless it is empty.
fn planned(rig: &Rig, tag: &str, plan: &str) -> Value {
    let credential = rig.oauth(tag);
    rig.account(tag).set_standing(Standing::new(plan));
    let claims = match plan {
        "pro" => PRO,
        "plus" => PLUS,
        _ => NO_PLAN,
    };
    let mut file = oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
    file["tokens"]["id_token"] = json!(format!("x.{claims}.y"));
    rig.write(&format!("{tag}.json"), file.to_string());
    credential
}

/// The configuration of a team on a pool. Beside alice and bob, each credential has a user of its
/// name.
fn team(rig: &Rig, tags: &[&str], pool: Value) -> Value {
    let mut config = rig.team(tags, pool);
    let users = config["services"][0]["users"]
        .as_array_mut()
        .expect("a list");
    users.extend(tags.iter().map(|tag| user(tag, tag)));
    config
}

/// A running team and alice's client.
async fn start(tags: &[&str], pool: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = team(&rig, tags, pool);
    let client = rig.start_polled(config).await;
    (rig, client)
}

/// Sets an account's standing, and reports it to the gateway by a turn of that credential's user.
/// The account's first poll must have ended, or it would undo that.
async fn tell(rig: &Rig, client: &Client, tag: &str, standing: Standing) {
    rig.account(tag).set_standing(standing);
    assert_eq!(
        client
            .token(&format!("token-{tag}"))
            .turn(&without_session())
            .await
            .status,
        StatusCode::OK
    );
}

/// Returns a turn without a session.
fn without_session() -> Value {
    json!({ "model": "gpt-5.4", "stream": true, "input": [] })
}

/// Sends a turn, and returns the tag of the account that answers it.
async fn served(rig: &Rig, client: &Client, body: &Value) -> String {
    let before = rig.upstream.turns().len();
    let answer = client.turn(body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let turns = rig.upstream.turns();
    assert!(turns.len() > before);
    let account = turns
        .last()
        .and_then(|seen| seen.account.clone())
        .expect("an account");
    account
        .strip_prefix("account-")
        .expect("an account of the rig")
        .to_owned()
}

/// Sends the turn again until that account answers it.
async fn wait_until_served_by(rig: &Rig, client: &Client, body: &Value, tag: &str) {
    let begun = Instant::now();
    while served(rig, client, body).await != tag {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{tag} does not serve again"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
