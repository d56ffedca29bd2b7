//! A changed configuration on a running gateway: requests in flight finish as they began, and what
//! outlasts a request stays in place.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::CertifiedKey;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tollgate_tests::upstream::{Gate, Reply, SocketReply, TokenReply};
use tollgate_tests::{Client, Event, Rig, Socket, over_both, read_json, turn, wait_for_rows};

const RESTART: u16 = 1012;

/// A running team on a fallback pool of `a` and `b`.
async fn team() -> (Rig, Value, Client) {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    let client = rig.start_polled(config.clone()).await.token("token-alice");
    (rig, config, client)
}

/// Applies `config` with one thing changed.
async fn change(rig: &Rig, config: &Value, edit: impl FnOnce(&mut Value)) -> Value {
    let mut config = config.clone();
    edit(&mut config["services"][0]);
    rig.configure(&config).await.expect("it is applied");
    config
}

fn without_alice(service: &mut Value) {
    service["users"].as_array_mut().expect("a list").remove(0);
}

/// `a` is no credential any more.
fn without_a(service: &mut Value) {
    let credentials = service["credentials"].as_array_mut().expect("a list");
    credentials.remove(0);
    credentials[1]["credentials"] = json!(["b"]);
}

fn priced_otherwise(service: &mut Value) {
    service["headers"] = json!({ "x-new": "1" });
}

// Streams

over_both!(a_stream_continues_to_its_end_whatever_changes);
async fn a_stream_continues_to_its_end_whatever_changes() {
    for (what, edit) in [
        ("its user is removed", without_alice as fn(&mut Value)),
        ("its credential is removed", without_a),
        ("its pool is removed", |service: &mut Value| {
            service["credentials"]
                .as_array_mut()
                .expect("a list")
                .truncate(2);
            service["users"] = json!([{ "name": "bob", "token": "token-bob", "credential": "b" }]);
        }),
        ("upstream is elsewhere", |service| {
            service["endpoints"] = json!({ "chatgpt": "http://127.0.0.1:1" })
        }),
        ("a rewriter comes", priced_otherwise),
    ] {
        let (mut rig, config, client) = team().await;
        let gate = Gate::new();
        rig.account("a").always(Reply::ok().hold_after(2, &gate));
        let streams = [
            client.start_turn(&turn("one")).await,
            client.http2().start_turn(&turn("two")).await,
        ];
        gate.wait_until_reached_times(2).await;
        change(&rig, &config, edit).await;
        gate.open();
        for stream in streams {
            let answer = stream.finish().await;
            assert!(
                answer.whole && answer.text().contains("response.completed"),
                "{what}: {}",
                answer.text()
            );
        }
        for row in wait_for_rows(&rig.ledger(), 2).await {
            let found = ["user", "credential", "end"].map(|column| row.text(column));
            assert_eq!(
                found,
                [Some("alice"), Some("a"), Some("complete")],
                "{what}"
            );
            assert!(
                row.number("cost_nanousd").is_some_and(|cost| cost > 0),
                "{what}"
            );
        }
        rig.stop().await;
    }
}

over_both!(a_response_is_priced_by_the_generation_that_it_began_with);
async fn a_response_is_priced_by_the_generation_that_it_began_with() {
    let prices = |input: f64| {
        let price = json!({ "source": "a test", "date": "2026-01-01", "default": { "input": input, "cached": input, "output": input } });
        json!([{
            "tag": "mine", "kind": "pricer", "path": "builtin:openai-pricing",
            "config": { "prices": { "gpt-5.4": price } },
        }])
    };
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a"], json!({}));
    config["policies"] = prices(1.0);
    config["services"][0]["pricer"] = json!("mine");
    let client = rig.start(config.clone()).await.token("token-alice");
    let gate = Gate::new();
    rig.account("a").then(Reply::ok().hold_after(2, &gate));
    let stream = client.start_turn(&turn("held")).await;
    gate.wait_until_reached().await;
    config["policies"] = prices(10.0);
    rig.configure(&config).await.expect("it is applied");
    assert_eq!(client.turn(&turn("new")).await.status, StatusCode::OK);
    gate.open();
    assert!(stream.finish().await.whole);
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    let [new, held] =
        [0, 1].map(|place: usize| rows[place].number("cost_nanousd").expect("a price"));
    assert_eq!(new, held * 10);
    rig.stop().await;
}

// Sockets

async fn open(client: &Client) -> Socket {
    client
        .socket()
        .await
        .unwrap_or_else(|answer| panic!("no socket: {} {}", answer.status, answer.text()))
}

async fn is_closed_to_connect_again(what: &str, socket: &mut Socket) {
    let event = socket.next_message().await;
    let Event::Close(code, reason) = event else {
        panic!("{what}: expected a close frame, found {event:?}")
    };
    assert_eq!(code, RESTART, "{what}: {reason}");
    assert!(reason.contains("configuration"), "{what}: {reason}");
}

/// Changes that take an idle socket's place away.
const GONE: [(&str, fn(&mut Value)); 5] = [
    ("its user is removed", without_alice),
    ("its credential is removed", without_a),
    ("its credential is no member any more", |service| {
        service["credentials"][2]["credentials"] = json!(["b"])
    }),
    ("its user's token is another", |service| {
        service["users"][0]["token"] = json!("token-new")
    }),
    ("its user is given another pool", |service| {
        service["users"][0]["credential"] = json!("b")
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_socket_without_a_place_is_closed_with_1012() {
    for (what, edit) in GONE {
        let (mut rig, config, client) = team().await;
        let mut sockets = [open(&client).await, open(&client.http2()).await];
        assert_eq!(
            sockets[0].turn(&turn("one")).await.last().expect("an end")["type"],
            "response.completed"
        );
        change(&rig, &config, edit).await;
        for socket in &mut sockets {
            is_closed_to_connect_again(what, socket).await;
        }
        drop(sockets);
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_loses_its_place_during_a_turn_ends_that_turn_first() {
    for (what, edit) in GONE {
        let (mut rig, config, client) = team().await;
        let gate = Gate::new();
        rig.account("a")
            .always_socket(SocketReply::begun().hold(&gate).completed());
        let mut socket = open(&client).await;
        socket.create(&turn("one")).await;
        gate.wait_until_reached().await;
        change(&rig, &config, edit).await;
        gate.open();
        assert_eq!(
            socket.rest_of_turn().await.last().expect("an end")["type"],
            "response.completed",
            "{what}"
        );
        is_closed_to_connect_again(what, &mut socket).await;
        let rows = wait_for_rows(&rig.ledger(), 1).await;
        let found = ["user", "credential", "end"].map(|column| rows[0].text(column));
        assert_eq!(
            found,
            [Some("alice"), Some("a"), Some("complete")],
            "{what}"
        );
        drop(socket);
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_no_change_affects_stays_open() {
    for (what, edit) in [
        (
            "another user is removed",
            (|service| drop(service["users"].as_array_mut().expect("a list").remove(1)))
                as fn(&mut Value),
        ),
        ("another credential is removed", |service| {
            service["credentials"]
                .as_array_mut()
                .expect("a list")
                .remove(1);
            service["credentials"][1]["credentials"] = json!(["a"]);
        }),
        ("credentials stand in another order", |service| {
            service["credentials"]
                .as_array_mut()
                .expect("a list")
                .swap(0, 1);
        }),
        ("pools stand in another order", |service| {
            service["credentials"]
                .as_array_mut()
                .expect("a list")
                .insert(
                    0,
                    json!({ "tag": "new", "type": "balancer", "credentials": ["b"] }),
                );
        }),
        ("a rewriter comes", priced_otherwise),
        ("a cap that is not reached", |service| {
            service["credentials"][0]["limit_5h"] = json!(99)
        }),
    ] {
        let (mut rig, config, client) = team().await;
        let mut socket = open(&client).await;
        socket.turn(&turn("one")).await;
        change(&rig, &config, edit).await;
        assert_eq!(
            socket.turn(&turn("one")).await.last().expect("an end")["type"],
            "response.completed",
            "{what}"
        );
        let rows = wait_for_rows(&rig.ledger(), 2).await;
        let found = rows
            .iter()
            .map(|row| (row.text("user"), row.text("credential")));
        assert!(found.eq([(Some("alice"), Some("a")); 2]), "{what}");
        assert_eq!(rig.upstream.open_socket_count(), 1, "{what}");
        drop(socket);
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_whose_credential_is_capped_is_closed_with_1012() {
    let (mut rig, config, client) = team().await;
    let standing = tollgate_tests::upstream::Standing::new("plus").five_hour_used(50.0);
    rig.account("a").set_standing(standing);
    assert_eq!(
        client.turn(&turn("learns of the use")).await.status,
        StatusCode::OK
    );
    let mut socket = open(&client).await;
    socket.turn(&turn("one")).await;
    change(&rig, &config, |service| {
        service["credentials"][0]["limit_5h"] = json!(40)
    })
    .await;
    let event = socket.next_message().await;
    assert!(matches!(event, Event::Close(RESTART, _)), "{event:?}");
    drop(socket);
    rig.stop().await;
}

// What lasts

#[tokio::test(flavor = "multi_thread")]
async fn sessions_stay_on_their_credentials() {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a", "b", "c"], json!({ "strategy": "round_robin" }));
    let client = rig.start(config.clone()).await.token("token-alice");
    let homes = async |rig: &Rig| {
        let before = rig.upstream.turns().len();
        for session in 0..6 {
            assert_eq!(
                client
                    .turn(&turn(&format!("session {session}")))
                    .await
                    .status,
                StatusCode::OK
            );
        }
        rig.upstream.turns()[before..]
            .iter()
            .map(|seen| seen.account.clone())
            .collect::<Vec<_>>()
    };
    let first = homes(&rig).await;
    for change in [
        |config: &mut Value| config["services"][0]["headers"] = json!({ "x-new": "1" }),
        |config: &mut Value| config["services"][0]["credentials"][3]["strategy"] = json!("random"),
        |config: &mut Value| config["limits"] = json!({ "connect_timeout": "3s" }),
        |config: &mut Value| {
            config["services"][0]["users"][0]["allow_external_usage"] = json!(true)
        },
    ] {
        change(&mut config);
        rig.configure(&config).await.expect("it is applied");
        assert_eq!(homes(&rig).await, first);
    }
    rig.stop().await;
}

over_both!(connections_to_clients_and_upstream_are_kept);
async fn connections_to_clients_and_upstream_are_kept() {
    let (mut rig, config, client) = team().await;
    let stream = TcpStream::connect(client.address())
        .await
        .expect("connects");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    for headers in ["1", "2"] {
        let request = Request::get("/v1/models")
            .header("host", "x")
            .header("authorization", "Bearer token-alice");
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new()).expect("a request"))
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        response
            .into_body()
            .collect()
            .await
            .expect("a whole answer");
        change(&rig, &config, |service| {
            service["headers"] = json!({ "x-new": headers })
        })
        .await;
        sender.ready().await.expect("it stays open");
    }
    let used: Vec<u64> = rig.forwarded().iter().map(|seen| seen.connection).collect();
    assert!(used.len() == 2 && used[0] == used[1], "{used:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_in_progress_runs_to_its_end() {
    for (what, edit) in [
        (
            "its credential is removed",
            (|config| {
                config["services"][0]["credentials"]
                    .as_array_mut()
                    .expect("a list")
                    .remove(0);
            }) as fn(&mut Value),
        ),
        ("its credential stays", |config| {
            config["services"][0]["headers"] = json!({ "x-new": "1" })
        }),
        ("its task restarts under other limits", |config| {
            config["limits"] = json!({ "refresh_timeout": "20s" })
        }),
    ] {
        let mut rig = Rig::new().await;
        let (credential, login) = rig.login("a");
        fs::write(rig.credential_file("a"), login.renew_with(-60).to_string())
            .expect("the folder can be written");
        let before = read_json(&rig.credential_file("a"));
        let gate = Gate::new();
        login.then_for_token(TokenReply::well().behind(&gate));
        let mut config = rig.config(
            json!({ "credentials": [credential, rig.oauth("b")], "users": [
            { "name": "bob", "token": "token-bob", "credential": "b" },
        ] }),
        );
        let client = rig.start(config.clone()).await;
        gate.wait_until_reached().await;
        edit(&mut config);
        rig.configure(&config).await.expect("it is applied");
        assert_eq!(
            client.token("token-bob").turn(&turn("one")).await.status,
            StatusCode::OK,
            "{what}"
        );
        gate.open();
        // A stop waits for it.
        rig.stop().await;
        let after = read_json(&rig.credential_file("a"));
        assert_ne!(
            after["tokens"]["refresh_token"], before["tokens"]["refresh_token"],
            "{what}"
        );
        assert_eq!((login.rotations(), login.reuses()), (1, 0), "{what}");
    }
}

// TLS

fn connector(certificate: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM"))
        .expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_a_changed_certificate_and_old_ones_continue() {
    let made = || {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()])
                .expect("a certificate can be made");
        (cert.pem(), signing_key.serialize_pem())
    };
    let (old, new) = (made(), made());
    let mut rig = Rig::new().await;
    let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let tls = |(certificate, key): &(String, String)| json!({ "enabled": true, "certificate": certificate, "key": key });
    config["services"][0]["tls"] = tls(&old);
    let address = rig.start(config.clone()).await.address();
    let connect = async |certificate: &str| {
        let stream = TcpStream::connect(address).await.expect("connects");
        connector(certificate)
            .connect(ServerName::try_from("localhost").expect("a name"), stream)
            .await
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(connect(&old.0).await.expect("a handshake")))
            .await
            .expect("a connection");
    tokio::spawn(connection);
    config["services"][0]["tls"] = tls(&new);
    rig.configure(&config).await.expect("it is applied");
    connect(&old.0)
        .await
        .expect_err("the old one is not shown any more");
    connect(&new.0).await.expect("the new one is");
    let request = Request::get("/v1/models")
        .header("host", "x")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    assert_eq!(
        sender
            .send_request(request)
            .await
            .expect("an answer")
            .status(),
        StatusCode::OK
    );
    rig.stop().await;
}
