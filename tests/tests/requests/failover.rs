//! Failover: what sends a request to the next credential before a byte of an answer is out, what
//! bounds that, and which requests move when their credential turns unusable.

mod bounds;
mod reasons;
mod unusable;

use serde_json::{Value, json};
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{Answer, Client, Nowhere, Rig, wait_for_rows};

/// Starts the gateway with a pool of these members in that order, and these limits. Returns a
/// client of its user.
async fn start(rig: &mut Rig, members: Vec<Value>, limits: Value) -> Client {
    let tags: Vec<Value> = members.iter().map(|member| member["tag"].clone()).collect();
    let pool =
        json!({ "tag": "pool", "type": "balancer", "strategy": "fallback", "credentials": tags });
    let user = json!({ "name": "alice", "token": "token-alice", "credential": "pool", "allow_external_usage": true });
    let credentials = [members, vec![pool]].concat();
    let mut config = rig.config(json!({ "credentials": credentials, "users": [user] }));
    config["limits"] = limits;
    rig.start(config).await.token("token-alice")
}

/// A running pool of these accounts in that order.
async fn pool(tags: &[&str], limits: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let members = tags.iter().map(|tag| rig.oauth(tag)).collect();
    let client = start(&mut rig, members, limits).await;
    (rig, client)
}

/// The accounts that were asked, in order.
fn asked(rig: &Rig) -> Vec<String> {
    let account = |account: String| account.strip_prefix("account-").map(str::to_owned);
    rig.upstream
        .turns()
        .into_iter()
        .filter_map(|seen| account(seen.account?))
        .collect()
}

/// The attempts of the one request that there was.
async fn attempts(rig: &Rig) -> Vec<(String, String)> {
    wait_for_rows(&rig.ledger(), 1).await[0].attempts()
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// What may keep a credential from answering.
struct Trouble {
    /// Its name in `limits.failover`.
    name: &'static str,
    /// None: its port is closed.
    reply: Option<Reply>,
    /// The outcome of its attempt in the ledger.
    outcome: &'static str,
    /// What the client gets where this is the answer: a status, and a part of the body.
    answer: (u16, &'static str),
}

/// Far less than a test may take, and far more than a good answer does.
const HEAD_TIMEOUT: &str = "1s";

fn troubles() -> [Trouble; 7] {
    let trouble = |name, reply, outcome, answer| Trouble {
        name,
        reply,
        outcome,
        answer,
    };
    let limited = Reply::usage_limit_reached()
        .without_rate_limits()
        .resets_in_seconds(600);
    let expired = Reply::error(401, "invalid_request_error", "expired");
    let never = Reply::ok().hold_head(&Gate::new());
    [
        trouble(
            "rate_limited",
            Some(limited),
            "429",
            (429, r#""The usage limit has been reached""#),
        ),
        trouble("unauthorized", Some(expired), "401", (401, r#""expired""#)),
        trouble(
            "unreachable",
            None,
            "unreachable",
            (502, r#""upstream_unreachable""#),
        ),
        trouble(
            "timed_out",
            Some(never),
            "timed_out",
            (504, r#""upstream_timeout""#),
        ),
        trouble(
            "bad_gateway",
            Some(Reply::raw(502, "theirs")),
            "502",
            (502, "theirs"),
        ),
        trouble(
            "service_unavailable",
            Some(Reply::raw(503, "theirs")),
            "503",
            (503, "theirs"),
        ),
        trouble(
            "gateway_timeout",
            Some(Reply::raw(504, "theirs")),
            "504",
            (504, "theirs"),
        ),
    ]
}

/// A credential that has this trouble, named after it.
fn troubled(rig: &Rig, nowhere: &Nowhere, trouble: &Trouble) -> Value {
    let tag = trouble.name;
    let Some(reply) = &trouble.reply else {
        return json!({ "type": "external", "tag": tag, "url": nowhere.url(), "token": "token-elsewhere" });
    };
    let credential = rig.oauth(tag);
    rig.account(tag).always(reply.clone());
    credential
}

/// A running pool of a credential that has this trouble and of `good`, which has none.
async fn beside(trouble: &Trouble, limits: Value) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let members = vec![troubled(&rig, &Nowhere::new(), trouble), rig.oauth("good")];
    let client = start(&mut rig, members, limits).await;
    (rig, client)
}

/// Checks that the client got the response for this fault, and that no other credential was tried.
async fn check_answered(rig: &Rig, trouble: &Trouble, answer: &Answer) {
    let Trouble {
        name,
        outcome,
        answer: (status, part),
        ..
    } = trouble;
    let text = answer.text();
    assert!(
        answer.status.as_u16() == *status && text.contains(part),
        "{name}: {}: {text}",
        answer.status
    );
    assert_eq!(attempts(rig).await, outcomes(&[(name, outcome)]));
    assert_eq!(rig.account("good").turn_count(), 0, "{name}");
}
