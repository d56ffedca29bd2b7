//! WebSocket: which upstream gets a handshake, by the kind of its credential and by what prevents
//! it.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::{Account, Reply, SeenRequest, SocketError, Standing};
use tollgate_tests::{Client, Nowhere, Rig, Row, Socket, turn, wait_for_rows};

/// What another gateway knows this one by.
const TOKEN: &str = "token-front";

fn external(tag: &str, url: &str) -> Value {
    json!({ "type": "external", "tag": tag, "url": url, "token": TOKEN })
}

/// Starts the gateway with a pool of these members in that order. Returns a client of its user, who may use them all.
async fn pool(rig: &mut Rig, members: Vec<Value>) -> Client {
    let tags: Vec<Value> = members.iter().map(|member| member["tag"].clone()).collect();
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": tags });
    let user = json!({ "name": "alice", "token": "token-alice", "credential": "pool", "allow_external_usage": true });
    let credentials = [members, vec![pool]].concat();
    let config = rig.config(json!({ "credentials": credentials, "users": [user] }));
    rig.start(config).await.token("token-alice")
}

/// A gateway with an API key alone, its client, and the key's account.
async fn key() -> (Rig, Client, Account) {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.api_key("k")] }));
    let client = rig.start(config).await;
    let account = rig.upstream.api_key("sk-k", "k");
    (rig, client, account)
}

async fn open(client: &Client) -> Socket {
    client
        .socket()
        .await
        .unwrap_or_else(|answer| panic!("no socket: {} {}", answer.status, answer.text()))
}

/// The row of the last of so many responses.
async fn last_row(rig: &Rig, count: usize) -> Row {
    wait_for_rows(&rig.ledger(), count).await.remove(count - 1)
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

/// A handshake led to `target` with that token, and with nothing of an account or of the client's own.
#[track_caller]
fn check_handshake(seen: &SeenRequest, target: &str, token: &str) {
    assert_eq!(seen.target, target);
    assert_eq!(
        seen.header("authorization"),
        Some(format!("Bearer {token}").as_str())
    );
    assert_eq!(seen.header("chatgpt-account-id"), None);
    assert!(
        !format!("{:?}", seen.headers).contains("theirs"),
        "{:?}",
        seen.headers
    );
}

// By kind

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_an_api_key_goes_to_the_api_with_the_key() {
    let (mut rig, client, _) = key().await;
    let client = client
        .header("chatgpt-account-id", "theirs")
        .header("cookie", "theirs=1");
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let mut socket = client
            .socket_at("/v1/responses?x=1")
            .await
            .expect("a socket");
        let seen = &rig.upstream.wait_for_sockets(place + 1).await[place].request;
        check_handshake(seen, "/v1/responses?x=1", "sk-k");
        let events = socket.turn(&turn("one")).await;
        assert_eq!(events.last().expect("events")["type"], "response.completed");
        let row = last_row(&rig, place + 1).await;
        assert_eq!(
            (row.text("credential"), row.number("output_tokens")),
            (Some("k"), Some(150))
        );
        assert!(row.number("cost_nanousd").is_some_and(|cost| cost > 0));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_to_another_gateway_keeps_its_path_and_shows_the_credentials_token() {
    // The scripted upstream takes its place and keeps what it sees. It has sockets in no folder.
    for (folder, is_taken) in [("", true), ("/", true), ("/team/gateway", false)] {
        let mut rig = Rig::new().await;
        rig.upstream.api_key(TOKEN, "front");
        let members = vec![external(
            "x",
            &format!("{}{folder}", rig.upstream.api_url()),
        )];
        let client = pool(&mut rig, members).await;
        let client = client
            .header("chatgpt-account-id", "theirs")
            .header("cookie", "theirs=1");
        let asked = client.socket().await;
        assert_eq!(asked.is_ok(), is_taken, "{folder:?}");
        let seen = match &asked {
            Ok(_) => rig.upstream.wait_for_sockets(1).await.remove(0).request,
            Err(_) => rig.forwarded().pop().expect("a handshake"),
        };
        check_handshake(
            &seen,
            &format!("{}/v1/responses", folder.trim_end_matches('/')),
            TOKEN,
        );
        if let Ok(mut socket) = asked {
            socket.turn(&turn("one")).await;
            assert_eq!(
                last_row(&rig, 1).await.attempts(),
                outcomes(&[("x", "101")])
            );
        }
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_through_two_gateways_is_recorded_by_both() {
    let mut back = Rig::new().await;
    let front = json!({ "name": "front", "token": TOKEN, "credential": "a" });
    let config = back.config(json!({ "credentials": [back.oauth("a")], "users": [front] }));
    let url = format!("http://{}", back.start(config).await.address());
    let mut rig = Rig::new().await;
    let client = pool(&mut rig, vec![external("x", &url)]).await;
    let events = open(&client).await.turn(&turn("one")).await;
    assert_eq!(events.last().expect("events")["type"], "response.completed");
    for (rig, user, credential) in [(&rig, "alice", "x"), (&back, "front", "a")] {
        let row = last_row(rig, 1).await;
        assert_eq!(
            (row.text("user"), row.text("credential")),
            (Some(user), Some(credential))
        );
        assert_eq!(
            (row.text("transport"), row.number("output_tokens")),
            (Some("websocket"), Some(150))
        );
    }
    rig.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_in_a_turn_of_an_api_key_reaches_the_client_and_pauses_nothing() {
    let (mut rig, client, account) = key().await;
    let error = SocketError::new(429, "rate_limit_exceeded", "slow down")
        .headers_of(&Standing::new("plus"));
    account.then_socket(error.clone());
    let mut socket = open(&client).await;
    assert_eq!(socket.turn(&turn("one")).await, [error.event()]);
    let row = last_row(&rig, 1).await;
    assert_eq!(
        (row.text("end"), row.number("status")),
        (Some("failed"), Some(429))
    );
    // The same socket, another, and a request.
    for socket in [&mut socket, &mut open(&client).await] {
        let events = socket.turn(&turn("one")).await;
        assert_eq!(events.last().expect("events")["type"], "response.completed");
    }
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    assert_eq!(rig.credential("k").await["state"], "ready");
    rig.stop().await;
}

// What keeps one from taking it

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_skips_credentials_that_cannot_connect() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let members = vec![external("x", &nowhere.url()), rig.oauth("a")];
    let client = pool(&mut rig, members).await;
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        open(&client).await.turn(&turn("one")).await;
        assert_eq!(
            last_row(&rig, place + 1).await.text("credential"),
            Some("a")
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_502_if_no_credential_can_connect() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let client = pool(
        &mut rig,
        vec![external("x", &nowhere.url()), external("y", &nowhere.url())],
    )
    .await;
    for (place, client) in [client.clone(), client.http2()].into_iter().enumerate() {
        let answer = client.socket().await.expect_err("refused");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "upstream_unreachable");
        let row = last_row(&rig, place + 1).await;
        assert_eq!(
            row.attempts(),
            outcomes(&[("x", "unreachable"), ("y", "unreachable")])
        );
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(502), Some("upstream_gone"))
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_in_a_pool_causes_one_refresh_and_then_the_next_credential_is_tried() {
    let mut rig = Rig::new().await;
    let (credential, login) = rig.login("a");
    login
        .account()
        .always_handshake(Reply::error(401, "invalid_request_error", "expired"));
    let members = vec![credential, rig.oauth("b")];
    let client = pool(&mut rig, members).await;
    for count in 1..=2 {
        open(&client).await.turn(&turn("one")).await;
        assert_eq!(last_row(&rig, count).await.text("credential"), Some("b"));
        // With the old token and with the new one, by the first socket alone.
        assert_eq!(
            (
                login.account().handshake_count(),
                login.post_count(),
                login.reuses()
            ),
            (2, 1, 0)
        );
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_without_an_upgrade_is_502() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start(config).await;
    let mut count = 0;
    for client in [client.clone(), client.http2()] {
        for (status, body) in [(200, "theirs"), (201, ""), (204, ""), (206, "theirs")] {
            rig.account("a").then_handshake(Reply::raw(status, body));
            let answer = client.socket().await.expect_err("no socket");
            assert_eq!(
                answer.status,
                StatusCode::BAD_GATEWAY,
                "{status}: {}",
                answer.text()
            );
            assert_eq!(answer.json()["error"]["type"], "api_error", "{status}");
            count += 1;
            let row = last_row(&rig, count).await;
            // What the client got, though upstream's head said otherwise.
            assert_eq!(
                (row.number("status"), row.text("end")),
                (Some(502), Some("upstream_gone")),
                "{status}"
            );
        }
    }
    assert_eq!(
        rig.account("a").handshake_count(),
        count,
        "a handshake was sent twice"
    );
    open(&client).await.turn(&turn("one")).await;
    rig.stop().await;
}
