//! Loops between gateways: a request does not pass a gateway twice, and the hops of a request are
//! for other gateways alone.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::{Client, Rig, turn, wait_for_rows};

const HOPS: &str = "tollgate-hops";

/// The token of each gateway's user.
const TOKEN: &str = "token-peer";

/// Returns the configuration of a gateway that prefers the gateway at `url` to its account.
fn config(rig: &Rig, url: &str) -> Value {
    rig.config(json!({
        "credentials": [
            rig.oauth("own"),
            { "type": "external", "tag": "other", "url": url, "token": TOKEN },
            { "type": "fallback", "tag": "pool", "credentials": ["other", "own"] },
        ],
        "users": [{
            "name": "peer",
            "token": TOKEN,
            "credential": "pool",
            "allow_external_usage": true,
        }],
    }))
}

fn url(client: &Client) -> String {
    format!("http://{}", client.address())
}

/// Starts two gateways that prefer each other.
async fn ring() -> ([Rig; 2], Client) {
    let (mut one, mut two) = (Rig::new().await, Rig::new().await);
    let first = one.start(config(&one, "http://127.0.0.1:1")).await;
    let second = two.start(config(&two, &url(&first))).await;
    one.configure(&config(&one, &url(&second)))
        .await
        .expect("the configuration is applied");
    ([one, two], first.token(TOKEN))
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// Returns the hops of a request to another gateway, for which the scripted upstream stands in.
async fn hops(rig: &Rig, client: &Client) -> String {
    client.turn(&turn("one")).await;
    let seen = rig.upstream.turns();
    let last = seen.last().expect("a request");
    last.header(HOPS).expect("hops").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_returns_gets_508_and_the_next_credential_is_tried() {
    let ([mut one, mut two], client) = ring().await;

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let rows = wait_for_rows(&one.ledger(), 1).await;
    assert_eq!(rows.len(), 1, "the request that returned made no row");
    assert_eq!(rows[0].attempts(), outcomes(&[("other", "200")]));
    let rows = wait_for_rows(&two.ledger(), 1).await;
    assert_eq!(
        rows[0].attempts(),
        outcomes(&[("other", "508"), ("own", "200")])
    );
    assert!(one.upstream.turns().is_empty());
    let seen = two.upstream.turns();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header(HOPS), None, "OpenAI receives no hops");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_returns_is_opened_with_the_next_credential() {
    let ([mut one, mut two], client) = ring().await;
    let socket = client.socket().await;
    assert!(socket.is_ok(), "{}", socket.expect_err("an answer").text());
    let seen = two.upstream.sockets();
    assert_eq!(seen.len(), 1);
    assert!(one.upstream.sockets().is_empty());
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_credential_the_client_gets_the_508() {
    let mut rig = Rig::new().await;
    let client = rig.start(config(&rig, "http://127.0.0.1:1")).await;
    let url = url(&client);
    let mut alone = config(&rig, &url);
    alone["services"][0]["credentials"][2]["credentials"] = json!(["other"]);
    rig.configure(&alone).await.expect("applied");

    let answer = client.token(TOKEN).turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::LOOP_DETECTED);
    assert_eq!(answer.json()["error"]["code"], "loop_detected");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_lasts_and_follows_the_hops_before() {
    let mut rig = Rig::new().await;
    rig.upstream.api_key(TOKEN, "other");
    let config = config(&rig, &rig.upstream.api_url());
    let client = rig.start(config.clone()).await.token(TOKEN);
    let id = hops(&rig, &client).await;
    assert_eq!(id.len(), 32, "{id}");
    assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let behind = client.header(HOPS, "first, second");
    assert_eq!(hops(&rig, &behind).await, format!("first,second,{id}"));
    rig.stop().await;

    let client = rig.start(config).await.token(TOKEN);
    assert_eq!(hops(&rig, &client).await, id);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hops_of_a_client_are_bounded_and_never_reach_openai() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("own")] }));
    let client = rig.start(config).await;
    for (count, expected) in [
        (16, StatusCode::OK),
        (17, StatusCode::LOOP_DETECTED),
        (400, StatusCode::LOOP_DETECTED),
    ] {
        let client = client.header(HOPS, &vec!["hop"; count].join(","));
        let answer = client
            .ask(Method::POST, "/v1/responses", turn("one").to_string())
            .await;
        assert_eq!(answer.status, expected, "{count}: {}", answer.text());
    }
    let seen = rig.upstream.turns();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header(HOPS), None);
    rig.stop().await;
}
