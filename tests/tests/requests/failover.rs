//! Failover: what sends a request to the next credential before a byte of an answer is out, what
//! bounds that, and which requests move when their credential turns unusable.

use std::fs;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tollgate_tests::upstream::{Gate, Reply, Standing};
use tollgate_tests::{Answer, Client, Nowhere, Rig, over_both, turn, wait_for_rows};

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

// What sends a request on

/// What may keep a credential from answering.
struct Trouble {
    /// As in `limits.failover`.
    name: &'static str,
    /// None: its port is closed.
    reply: Option<Reply>,
    /// In the ledger.
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

/// All of `limits.failover`, `name` set otherwise than the rest.
fn switches(name: &str, on: bool) -> Value {
    troubles()
        .iter()
        .map(|trouble| (trouble.name.to_owned(), json!((trouble.name == name) == on)))
        .collect()
}

over_both!(one_request_goes_past_every_kind_of_trouble_and_meets_each_credential_once);
async fn one_request_goes_past_every_kind_of_trouble_and_meets_each_credential_once() {
    let mut rig = Rig::new().await;
    let nowhere = Nowhere::new();
    let troubles = troubles();
    let mut members: Vec<Value> = troubles
        .iter()
        .map(|trouble| troubled(&rig, &nowhere, trouble))
        .collect();
    members.push(rig.oauth("good"));
    let client = start(
        &mut rig,
        members,
        json!({ "upstream_head_timeout": HEAD_TIMEOUT }),
    )
    .await;

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole && answer.text().contains("response.completed"));
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    let met = troubles
        .iter()
        .map(|trouble| (trouble.name, trouble.outcome))
        .chain([("good", "200")]);
    assert_eq!(row.attempts(), outcomes(&met.collect::<Vec<_>>()));
    assert_eq!(
        (row.text("credential"), row.number("status")),
        (Some("good"), Some(200))
    );
    assert_eq!(
        (row.text("end"), row.number("output_tokens")),
        (Some("complete"), Some(150))
    );
    rig.stop().await;
}

over_both!(each_kind_of_trouble_sends_a_request_on_though_all_others_are_switched_off);
async fn each_kind_of_trouble_sends_a_request_on_though_all_others_are_switched_off() {
    for trouble in troubles() {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "failover": switches(trouble.name, true) });
        let (mut rig, client) = beside(&trouble, limits).await;
        assert_eq!(
            client.turn(&turn("one")).await.status,
            StatusCode::OK,
            "{}",
            trouble.name
        );
        assert_eq!(
            attempts(&rig).await,
            outcomes(&[(trouble.name, trouble.outcome), ("good", "200")])
        );
        rig.stop().await;
    }
}

over_both!(a_kind_of_trouble_that_is_switched_off_is_the_clients_answer_as_it_is);
async fn a_kind_of_trouble_that_is_switched_off_is_the_clients_answer_as_it_is() {
    for trouble in troubles() {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "failover": switches(trouble.name, false) });
        let (mut rig, client) = beside(&trouble, limits).await;
        let answer = client.turn(&turn("one")).await;
        check_answered(&rig, &trouble, &answer).await;
        rig.stop().await;
    }
}

over_both!(no_other_status_is_tried_elsewhere);
async fn no_other_status_is_tried_elsewhere() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    for status in [400, 402, 403, 404, 408, 409, 413, 422, 500, 501, 505, 529] {
        rig.account("a").then(Reply::raw(status, "theirs"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, "theirs")
        );
    }
    assert_eq!(rig.account("b").turn_count(), 0);
    rig.stop().await;
}

over_both!(a_request_that_may_have_been_processed_is_not_sent_again);
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let breaks = [
        ("closed", Reply::close_before_head()),
        ("reset", Reply::close_before_head().by_reset()),
        ("no HTTP", Reply::garbage("\u{1}\u{2}nonsense\r\n\r\n")),
    ];
    for (name, reply) in breaks {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        // On a new connection, and on a reused one.
        rig.account("a")
            .then(reply.clone())
            .then(Reply::ok())
            .then(reply);
        for expected in [
            StatusCode::BAD_GATEWAY,
            StatusCode::OK,
            StatusCode::BAD_GATEWAY,
        ] {
            let answer = client.turn(&turn("one")).await;
            assert_eq!(answer.status, expected, "{name}: {}", answer.text());
        }
        assert_eq!(asked(&rig), ["a", "a", "a"], "{name}");
        for row in wait_for_rows(&rig.ledger(), 3).await.iter().step_by(2) {
            assert_eq!(row.attempts(), outcomes(&[("a", "broken")]), "{name}");
            assert_eq!(row.text("end"), Some("upstream_gone"), "{name}");
        }
        rig.stop().await;
    }
}

over_both!(an_answer_that_breaks_after_its_head_is_not_asked_for_elsewhere);
async fn an_answer_that_breaks_after_its_head_is_not_asked_for_elsewhere() {
    for (stream, bytes) in [(true, 0), (true, 1), (false, 0), (false, 10)] {
        let (mut rig, client) = pool(&["a", "b"], json!({})).await;
        rig.account("a").then(Reply::ok().close_after(bytes));
        let mut body = turn("one");
        body["stream"] = json!(stream);
        // A head that did not get out before the break is no answer at all.
        if let Ok(answer) = client
            .try_send(Method::POST, "/v1/responses", body.to_string())
            .await
        {
            let answer = answer.finish().await;
            let failed = !answer.whole || answer.status == StatusCode::BAD_GATEWAY;
            assert!(
                failed,
                "stream {stream}, {bytes} bytes: {}: {}",
                answer.status,
                answer.text()
            );
        }
        assert_eq!(asked(&rig), ["a"], "stream {stream}, {bytes} bytes");
        rig.stop().await;
    }
}

// Which response the client gets when no credential is left

over_both!(where_all_answer_503_the_client_gets_the_last_one_as_it_is);
async fn where_all_answer_503_the_client_gets_the_last_one_as_it_is() {
    let (mut rig, client) = pool(&["a", "b", "c"], json!({})).await;
    for tag in ["a", "b", "c"] {
        rig.account(tag).then(
            Reply::raw(503, format!("busy {tag}"))
                .retry_after("7")
                .header("x-theirs", tag),
        );
    }
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "busy c")
    );
    assert_eq!(
        (answer.header("retry-after"), answer.header("x-theirs")),
        (Some("7"), Some("c"))
    );
    assert_eq!(
        attempts(&rig).await,
        outcomes(&[("a", "503"), ("b", "503"), ("c", "503")])
    );
    rig.stop().await;
}

over_both!(nobody_is_told_that_all_are_used_up_while_one_is_only_busy);
async fn nobody_is_told_that_all_are_used_up_while_one_is_only_busy() {
    let [limited, expired, ..] = troubles();
    for other in [limited, expired] {
        for busy_first in [true, false] {
            let mut rig = Rig::new().await;
            let mut members = vec![rig.oauth("busy"), troubled(&rig, &Nowhere::new(), &other)];
            rig.account("busy").always(Reply::raw(503, "theirs"));
            if !busy_first {
                members.reverse();
            }
            let client = start(&mut rig, members, json!({})).await;
            let answer = client.turn(&turn("one")).await;
            let found = (answer.status.as_u16(), answer.text());
            assert_eq!(
                found,
                (503, "theirs".to_owned()),
                "beside {}, busy first: {busy_first}",
                other.name
            );
            assert_eq!(attempts(&rig).await.len(), 2);
            rig.stop().await;
        }
    }
}

// limits.failover_timeout

over_both!(no_further_attempt_begins_after_the_failover_timeout);
async fn no_further_attempt_begins_after_the_failover_timeout() {
    let limits = json!({ "upstream_head_timeout": "400ms", "failover_timeout": "200ms" });
    let (mut rig, client) = pool(&["a", "b"], limits).await;
    rig.account("a").always(Reply::ok().hold_head(&Gate::new()));
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        answer.text()
    );
    assert_eq!(attempts(&rig).await, outcomes(&[("a", "timed_out")]));
    assert_eq!(rig.account("b").turn_count(), 0);
    rig.stop().await;
}

over_both!(a_further_attempt_waits_only_for_what_is_left_of_the_failover_timeout);
async fn a_further_attempt_waits_only_for_what_is_left_of_the_failover_timeout() {
    // One after the other, the second without its bound, would take eight seconds.
    let limits = json!({ "upstream_head_timeout": "4s", "failover_timeout": "5s" });
    let (mut rig, client) = pool(&["a", "b", "c", "d"], limits).await;
    for tag in ["a", "b", "c"] {
        rig.account(tag).always(Reply::ok().hold_head(&Gate::new()));
    }
    let answer = client.turn(&turn("one")).await;
    assert_eq!(
        answer.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        answer.text()
    );
    assert_eq!(
        attempts(&rig).await,
        outcomes(&[("a", "timed_out"), ("b", "timed_out")])
    );
    let took = wait_for_rows(&rig.ledger(), 1).await[0]
        .number("duration_ms")
        .expect("a duration");
    assert!((5000..7500).contains(&took), "{took} ms");
    rig.stop().await;
}

/// `a` answers so after the time-out. Returns what the client gets; no other credential was tried.
async fn answered_late(reply: Reply) -> Answer {
    let (mut rig, client) = pool(&["a", "b"], json!({ "failover_timeout": "200ms" })).await;
    let gate = Gate::new();
    rig.account("a").then(reply.hold_head(&gate));
    let waiting = tokio::spawn(async move { client.turn(&turn("one")).await });
    gate.wait_until_reached().await;
    // The time-out is what is tested: it must be over.
    sleep(Duration::from_millis(300)).await;
    gate.open();
    let answer = waiting.await.expect("no panic");
    assert_eq!(attempts(&rig).await.len(), 1, "{}", answer.text());
    assert_eq!(asked(&rig), ["a"]);
    rig.stop().await;
    answer
}

over_both!(a_503_after_the_failover_timeout_is_the_clients_answer);
async fn a_503_after_the_failover_timeout_is_the_clients_answer() {
    let answer = answered_late(Reply::raw(503, "theirs")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.text().as_str()),
        (503, "theirs")
    );
}

over_both!(a_429_after_the_failover_timeout_is_told_as_one_that_is_worth_another_try);
async fn a_429_after_the_failover_timeout_is_told_as_one_that_is_worth_another_try() {
    let answer = answered_late(
        Reply::usage_limit_reached()
            .without_rate_limits()
            .resets_in_seconds(600),
    )
    .await;
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["error"]["code"], "credential_usage_exhausted");
}

// limits.replay_bytes

const REPLAY_BYTES: usize = 1000;

/// One byte more than is kept.
fn large_body() -> String {
    let empty = r#"{"model":"gpt-5.4","stream":true,"input":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"input":"{}"}}"#,
        "x".repeat(REPLAY_BYTES + 1 - empty)
    )
}

over_both!(a_request_that_is_not_kept_gets_the_answer_of_the_one_credential_that_was_asked);
async fn a_request_that_is_not_kept_gets_the_answer_of_the_one_credential_that_was_asked() {
    for trouble in troubles().into_iter().skip(2) {
        let limits = json!({ "upstream_head_timeout": HEAD_TIMEOUT, "replay_bytes": REPLAY_BYTES });
        let (mut rig, client) = beside(&trouble, limits).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        check_answered(&rig, &trouble, &answer).await;
        rig.stop().await;
    }
}

over_both!(a_request_that_is_not_kept_is_told_to_try_again_where_its_credential_is_refused_and_another_is_not);
async fn a_request_that_is_not_kept_is_told_to_try_again_where_its_credential_is_refused_and_another_is_not()
 {
    for trouble in troubles().into_iter().take(2) {
        let (mut rig, client) = beside(&trouble, json!({ "replay_bytes": REPLAY_BYTES })).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        assert_eq!(
            answer.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "{}: {}",
            trouble.name,
            answer.text()
        );
        let error = &answer.json()["error"];
        assert_eq!(
            error["code"], "credential_usage_exhausted",
            "{}",
            trouble.name
        );
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|told| told.contains("limits.replay_bytes")),
            "{error}"
        );
        assert!(answer.header("retry-after").is_some(), "{}", trouble.name);
        let row = &wait_for_rows(&rig.ledger(), 1).await[0];
        assert_eq!(row.attempts(), outcomes(&[(trouble.name, trouble.outcome)]));
        assert_eq!(
            (row.number("status"), row.text("end")),
            (Some(503), Some("failed")),
            "{}",
            trouble.name
        );
        assert_eq!(
            client
                .ask(Method::POST, "/v1/responses", large_body())
                .await
                .status,
            StatusCode::OK
        );
        rig.stop().await;
    }
}

over_both!(the_error_of_a_request_that_is_not_kept_is_chosen_without_asking_a_policy);
async fn the_error_of_a_request_that_is_not_kept_is_chosen_without_asking_a_policy() {
    for trouble in troubles().into_iter().take(2) {
        let (mut rig, client) = beside(&trouble, json!({ "replay_bytes": REPLAY_BYTES })).await;
        let answer = client
            .ask(Method::POST, "/v1/responses", large_body())
            .await;
        assert_eq!(
            answer.json()["error"]["code"],
            "credential_usage_exhausted",
            "{}",
            trouble.name
        );
        assert_eq!(
            rig.policy("fallback").await["calls"],
            1,
            "{}: the balancer chose the credential and nothing else",
            trouble.name
        );
        rig.stop().await;
    }
}

over_both!(a_request_that_is_not_kept_is_told_when_where_nobody_has_room);
async fn a_request_that_is_not_kept_is_told_when_where_nobody_has_room() {
    let (mut rig, client) = pool(&["a", "b"], json!({ "replay_bytes": REPLAY_BYTES })).await;
    for (tag, seconds) in [("a", 900), ("b", 600)] {
        rig.account(tag).always(
            Reply::usage_limit_reached()
                .without_rate_limits()
                .resets_in_seconds(seconds),
        );
    }
    let first = client
        .ask(Method::POST, "/v1/responses", large_body())
        .await;
    assert_eq!(
        first.json()["error"]["code"],
        "credential_usage_exhausted",
        "b may have room"
    );
    let second = client
        .ask(Method::POST, "/v1/responses", large_body())
        .await;
    assert_eq!(
        second.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        second.text()
    );
    let error = &second.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (
            &json!("usage_limit_reached"),
            &json!("credentials_exhausted")
        )
    );
    assert!(
        error["resets_in_seconds"]
            .as_u64()
            .is_some_and(|seconds| (590..=600).contains(&seconds)),
        "{error}"
    );
    assert_eq!(asked(&rig), ["a", "b"]);
    rig.stop().await;
}

// Becoming unusable

/// For how long a request may stay where it was after its credential turned unusable: it should
/// leave at once.
const MOVED_MAX: Duration = Duration::from_secs(5);

/// `a` has a stream under way and a request that waits for its head when `turn_unusable` is called:
/// the stream goes on, the request moves to `b`.
async fn check_moved(rig: &Rig, client: &Client, turn_unusable: impl FnOnce()) {
    let (rest, never) = (Gate::new(), Gate::new());
    rig.account("a")
        .then(Reply::ok().hold_after(2, &rest))
        .then(Reply::ok().hold_head(&never));
    let mut stream = client.start_turn(&turn("stream")).await;
    stream.until("output_text.delta").await;
    let other = client.clone();
    let waiting = tokio::spawn(async move { other.turn(&turn("waiting")).await });
    never.wait_until_reached().await;

    turn_unusable();

    let moved = timeout(MOVED_MAX, waiting)
        .await
        .expect("an answer from the other credential")
        .expect("no panic");
    assert_eq!(moved.status, StatusCode::OK, "{}", moved.text());
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "withdrawn"), ("b", "200")])
    );
    rest.open();
    let rest = stream.finish().await;
    assert!(
        rest.whole && rest.text().contains("response.completed"),
        "{}",
        rest.text()
    );
    let row = &wait_for_rows(&rig.ledger(), 2).await[1];
    assert_eq!(row.attempts(), outcomes(&[("a", "200")]));
    assert_eq!(row.text("end"), Some("complete"));
}

over_both!(when_its_file_is_removed_a_waiting_request_moves_and_a_stream_goes_on);
async fn when_its_file_is_removed_a_waiting_request_moves_and_a_stream_goes_on() {
    let (mut rig, client) = pool(&["a", "b"], json!({})).await;
    let file = rig.credential_file("a");
    check_moved(&rig, &client, || {
        fs::remove_file(file).expect("it is there")
    })
    .await;
    rig.stop().await;
}

over_both!(when_a_poll_tells_that_it_is_used_up_a_waiting_request_moves_and_a_stream_goes_on);
async fn when_a_poll_tells_that_it_is_used_up_a_waiting_request_moves_and_a_stream_goes_on() {
    for used_up in [
        Standing::new("plus").weekly_used(100.0),
        Standing::new("plus").five_hour_used(99.0),
    ] {
        let mut rig = Rig::new().await;
        let members = vec![rig.oauth("a"), rig.oauth("b")];
        let (poll, account) = (Gate::new(), rig.account("a"));
        account.always_for_poll(Reply::ok().hold_head(&poll));
        let client = start(&mut rig, members, json!({ "poll_timeout": "30s" })).await;
        poll.wait_until_reached().await;
        let turn_unusable = || {
            account.set_standing(used_up);
            poll.open();
        };
        check_moved(&rig, &client, turn_unusable).await;
        rig.stop().await;
    }
}

over_both!(a_waiting_request_that_nobody_else_can_serve_is_answered);
async fn a_waiting_request_that_nobody_else_can_serve_is_answered() {
    let cases: [(&str, StatusCode, &str, fn(&Rig)); 2] = [
        (
            "file removed",
            StatusCode::SERVICE_UNAVAILABLE,
            "credentials_unavailable",
            |rig| {
                fs::remove_file(rig.credential_file("a")).expect("it is there");
            },
        ),
        (
            "used up",
            StatusCode::TOO_MANY_REQUESTS,
            "credentials_exhausted",
            |rig| {
                rig.account("a")
                    .set_standing(Standing::new("plus").weekly_used(100.0));
            },
        ),
    ];
    for (name, status, code, turn_unusable) in cases {
        let (mut rig, client) = pool(&["a"], json!({})).await;
        let never = Gate::new();
        rig.account("a").then(Reply::ok().hold_head(&never));
        let other = client.clone();
        let waiting = tokio::spawn(async move { other.turn(&turn("waiting")).await });
        never.wait_until_reached().await;
        turn_unusable(&rig);
        // Where the account is used up, this one's answer tells so.
        let _ = client.turn(&turn("two")).await;
        let answer = timeout(MOVED_MAX, waiting)
            .await
            .expect("an answer of the gateway's")
            .expect("no panic");
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (status, &json!(code)),
            "{name}"
        );
        rig.stop().await;
    }
}
