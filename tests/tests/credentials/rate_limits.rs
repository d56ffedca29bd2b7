//! Rate limits: how headers are read, how long a refusal lasts, and which credential is used
//! instead.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tollgate_tests::upstream::{Account, Encoding, Gate, HeaderForm, Reply, Slots, Standing};
use tollgate_tests::{
    Answer, Client, Rig, oauth_file, over_both, replace_file, turn, unix_in, user, wait_for_rows,
};

/// A gateway with `count` accounts `c0`, `c1`, …, each with a pool and a user.
async fn separate(count: usize) -> (Rig, Vec<(Client, Account)>) {
    let mut rig = Rig::new().await;
    let (mut credentials, mut users) = (Vec::new(), Vec::new());
    for place in 0..count {
        let (tag, pool) = (format!("c{place}"), format!("pool{place}"));
        credentials.push(rig.oauth(&tag));
        credentials.push(json!({ "tag": pool, "type": "balancer", "credentials": [tag] }));
        users.push(user(&tag, &pool));
    }
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    let tags = (0..count).map(|place| format!("c{place}"));
    let each = tags
        .map(|tag| (client.token(&format!("token-{tag}")), rig.account(&tag)))
        .collect();
    (rig, each)
}

/// A running team on a pool in that order, and alice's client.
async fn pool(tags: &[&str]) -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let config = rig.team(tags, json!({ "strategy": "fallback" }));
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// A refusal without rate-limit headers.
fn refusal() -> Reply {
    Reply::usage_limit_reached().without_rate_limits()
}

fn outcomes(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(credential, outcome)| ((*credential).to_owned(), (*outcome).to_owned()))
        .collect()
}

// Headers

/// Checks the known usage of the two windows. An unset reserve of 1 counts as used.
#[track_caller]
fn check_known(name: &str, status: &Answer, five_hour: f64, weekly: f64) {
    let body = status.json();
    let found =
        [&body["five_hour_utilization"], &body["weekly_utilization"]].map(|value| value.as_f64());
    let near = |found: Option<f64>, used: f64| {
        found.is_some_and(|found| (found - used - 1.0).abs() < 1e-6)
    };
    assert!(
        near(found[0], five_hour) && near(found[1], weekly),
        "{name}: {body}, expected {five_hour} and {weekly}"
    );
}

async fn status(client: &Client) -> Answer {
    client.get("/ocm/v1/status").await
}

over_both!(every_form_of_the_headers_is_read_for_windows_in_either_slot);
async fn every_form_of_the_headers_is_read_for_windows_in_either_slot() {
    let forms = [
        HeaderForm::Plain,
        HeaderForm::ActiveLimit,
        HeaderForm::PlainBesideActiveLimit,
    ];
    let cases = forms
        .map(|form| [(form, Slots::FiveHourFirst), (form, Slots::WeeklyFirst)])
        .concat();
    let (mut rig, each) = separate(cases.len()).await;
    for ((form, slots), (client, account)) in cases.into_iter().zip(each) {
        let standing = Standing::new("plus").five_hour_used(40.5).weekly_used(30.0);
        account.set_standing(standing.header_form(form).slots(slots));
        client.turn(&turn("one")).await;
        check_known(
            &format!("{form:?}, {slots:?}"),
            &status(&client).await,
            40.5,
            30.0,
        );
    }
    rig.stop().await;
}

over_both!(fields_are_read_by_the_active_limit_and_windows_by_their_minutes);
async fn fields_are_read_by_the_active_limit_and_windows_by_their_minutes() {
    let cases: [(&str, &[(&str, &str)], (f64, f64)); 7] = [
        (
            "about as long",
            &[
                ("x-codex-primary-used-percent", "12"),
                ("x-codex-primary-window-minutes", "10079"),
                ("x-codex-secondary-used-percent", "34"),
                ("x-codex-secondary-window-minutes", "299"),
            ],
            (34.0, 12.0),
        ),
        (
            "a weekly window alone",
            &[
                ("x-codex-primary-used-percent", "12"),
                ("x-codex-primary-window-minutes", "10080"),
            ],
            (0.0, 12.0),
        ),
        (
            "a window of another length is neither",
            &[
                ("x-codex-primary-used-percent", "90"),
                ("x-codex-primary-window-minutes", "43200"),
            ],
            (0.0, 0.0),
        ),
        (
            "the limit's name in another spelling",
            &[
                ("x-codex-active-limit", "CODEX_Other_Limit"),
                ("x-codex-other-limit-primary-used-percent", "21"),
                ("x-codex-other-limit-primary-window-minutes", "300"),
            ],
            (21.0, 0.0),
        ),
        (
            "what is missing is looked up under codex",
            &[
                ("x-codex-active-limit", "codex_other"),
                ("x-codex-other-primary-used-percent", "22"),
                ("x-codex-primary-used-percent", "77"),
                ("x-codex-primary-window-minutes", "10080"),
                ("x-codex-secondary-used-percent", "33"),
                ("x-codex-secondary-window-minutes", "300"),
            ],
            (33.0, 22.0),
        ),
        (
            "another limit is not the active one",
            &[
                ("x-codex-active-limit", "codex_other"),
                ("x-codex-bengalfox-primary-used-percent", "88"),
                ("x-codex-bengalfox-primary-window-minutes", "300"),
            ],
            (0.0, 0.0),
        ),
        (
            "no number",
            &[
                ("x-codex-primary-used-percent", "lots"),
                ("x-codex-primary-window-minutes", "300"),
            ],
            (0.0, 0.0),
        ),
    ];
    let (mut rig, each) = separate(cases.len()).await;
    for ((name, fields, (five_hour, weekly)), (client, account)) in cases.into_iter().zip(each) {
        let reply = Reply::ok().without_rate_limits();
        account.then(
            fields
                .iter()
                .fold(reply, |reply, (name, value)| reply.header(name, value)),
        );
        client.turn(&turn("one")).await;
        check_known(name, &status(&client).await, five_hour, weekly);
    }
    rig.stop().await;
}

over_both!(usage_never_falls_within_a_window_and_resets_with_the_next);
async fn usage_never_falls_within_a_window_and_resets_with_the_next() {
    let (mut rig, each) = separate(1).await;
    let (client, account) = &each[0];
    let (resets, week) = (unix_in(3600), unix_in(7 * 24 * 3600));
    let told = |five_hour: f64, resets: u64| {
        let standing = Standing::new("plus")
            .five_hour_used(five_hour)
            .five_hour_resets_at(resets);
        standing.weekly_resets_at(week).weekly_used(10.0)
    };
    for (standing, known) in [
        (told(40.0, resets), 40.0),
        (told(30.0, resets), 40.0),
        (told(45.0, resets), 45.0),
        (told(3.0, resets + 5 * 3600), 3.0),
    ] {
        account.set_standing(standing);
        client.turn(&turn("one")).await;
        check_known("after a turn", &status(client).await, known, 10.0);
    }
    rig.stop().await;
}

over_both!(the_headers_of_every_response_are_read_even_of_failed_ones);
async fn the_headers_of_every_response_are_read_even_of_failed_ones() {
    let replies = [
        Reply::raw(400, "no"),
        Reply::server_error(500),
        Reply::raw(204, ""),
        Reply::json(200, &json!({})),
    ];
    let (mut rig, each) = separate(replies.len() + 1).await;
    for (reply, (client, account)) in replies.into_iter().zip(&each) {
        account.set_standing(Standing::new("plus").five_hour_used(40.0).weekly_used(30.0));
        account.then(reply.clone());
        client.turn(&turn("one")).await;
        check_known(&format!("{reply:?}"), &status(client).await, 40.0, 30.0);
    }
    let (client, account) = &each[each.len() - 1];
    account.set_standing(Standing::new("plus").five_hour_used(40.0).weekly_used(30.0));
    client.get("/v1/models").await;
    check_known("models", &status(client).await, 40.0, 30.0);
    rig.stop().await;
}

// How long a refusal lasts

/// Checks that all three places of the response say that everything is used up for about `seconds`.
#[track_caller]
fn check_exhausted(name: &str, answer: &Answer, seconds: u64) {
    assert_eq!(
        answer.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{name}: {}",
        answer.text()
    );
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "usage_limit_reached", "{name}: {error}");
    assert_eq!(error["code"], "credentials_exhausted", "{name}: {error}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{name}: {error}"
    );
    let near = |found: Option<u64>, expected: u64| {
        found.is_some_and(|found| found.abs_diff(expected) <= 4)
    };
    assert!(
        near(error["resets_in_seconds"].as_u64(), seconds),
        "{name}: {error}, expected {seconds} s"
    );
    assert!(
        near(error["resets_at"].as_u64(), unix_in(seconds)),
        "{name}: {error}, expected in {seconds} s"
    );
    let retry_after = answer
        .header("retry-after")
        .and_then(|value| value.parse().ok());
    assert!(
        near(retry_after, seconds),
        "{name}: Retry-After {retry_after:?}, expected {seconds} s"
    );
}

/// Checks how long each refusal lasts: in the response to its request and to the next one, which is
/// not sent to upstream.
async fn check_refusals(cases: Vec<(&str, Standing, Reply, u64)>) {
    let (mut rig, each) = separate(cases.len()).await;
    for ((name, standing, reply, seconds), (client, account)) in cases.into_iter().zip(each) {
        account.set_standing(standing);
        account.then(reply);
        let before = rig.upstream.turns().len();
        check_exhausted(name, &client.turn(&turn("one")).await, seconds);
        check_exhausted(name, &client.turn(&turn("one")).await, seconds);
        assert_eq!(rig.upstream.turns().len(), before + 1, "{name}");
    }
    rig.stop().await;
}

fn http_date(seconds_from_now: i64) -> String {
    let moment =
        OffsetDateTime::from(SystemTime::now()) + time::Duration::seconds(seconds_from_now);
    moment
        .format(&Rfc2822)
        .expect("a date of our time")
        .replace("+0000", "GMT")
}

over_both!(a_refusal_lasts_as_its_headers_else_its_body_else_retry_after_say);
async fn a_refusal_lasts_as_its_headers_else_its_body_else_retry_after_say() {
    let free = || Standing::new("plus");
    let limits = || Reply::usage_limit_reached();
    check_refusals(vec![
        (
            "the 5-hour window's reset, before the body's word",
            free()
                .five_hour_used(100.0)
                .five_hour_resets_at(unix_in(700)),
            limits().resets_in_seconds(60).retry_after("30"),
            700,
        ),
        (
            "the weekly window's reset, by the active limit",
            free()
                .weekly_used(100.0)
                .weekly_resets_at(unix_in(7000))
                .header_form(HeaderForm::ActiveLimit),
            limits().resets_in_seconds(60),
            7000,
        ),
        (
            "the body's time",
            free(),
            refusal().resets_at(unix_in(900)).retry_after("30"),
            900,
        ),
        (
            "the body's span",
            free(),
            refusal().resets_in_seconds(800).retry_after("30"),
            800,
        ),
        (
            "Retry-After in seconds",
            free(),
            refusal().retry_after("120"),
            120,
        ),
        (
            "Retry-After as a date",
            free(),
            refusal().retry_after(&http_date(1200)),
            1200,
        ),
        (
            "a page with Retry-After",
            free(),
            Reply::raw(429, "<html>")
                .without_rate_limits()
                .retry_after("90"),
            90,
        ),
    ])
    .await;
}

over_both!(a_refusal_without_an_end_or_with_one_in_the_past_lasts_five_minutes);
async fn a_refusal_without_an_end_or_with_one_in_the_past_lasts_five_minutes() {
    let free = || Standing::new("plus");
    check_refusals(vec![
        ("nothing", free(), refusal(), 300),
        (
            "an empty body",
            free(),
            Reply::raw(429, "").without_rate_limits(),
            300,
        ),
        (
            "a page",
            free(),
            Reply::raw(429, "<html>slow down</html>").without_rate_limits(),
            300,
        ),
        (
            "a past time in the body",
            free(),
            refusal().resets_at(unix_in(0) - 100),
            300,
        ),
        (
            "a past date",
            free(),
            refusal().retry_after("Sun, 06 Nov 1994 08:49:37 GMT"),
            300,
        ),
        ("no date", free(), refusal().retry_after("soon"), 300),
        (
            "a past reset of the window",
            free()
                .five_hour_used(100.0)
                .five_hour_resets_at(unix_in(0) - 100),
            Reply::usage_limit_reached(),
            300,
        ),
    ])
    .await;
}

over_both!(the_end_of_a_refusal_is_read_from_a_compressed_body);
async fn the_end_of_a_refusal_is_read_from_a_compressed_body() {
    let packed = |encoding| refusal().resets_in_seconds(800).encoded(encoding);
    check_refusals(vec![
        ("gzip", Standing::new("plus"), packed(Encoding::Gzip), 800),
        (
            "deflate",
            Standing::new("plus"),
            packed(Encoding::Deflate),
            800,
        ),
        ("zstd", Standing::new("plus"), packed(Encoding::Zstd), 800),
        ("br", Standing::new("plus"), packed(Encoding::Brotli), 800),
    ])
    .await;
}

over_both!(a_pool_over_its_caps_is_exhausted_until_its_windows_reset);
async fn a_pool_over_its_caps_is_exhausted_until_its_windows_reset() {
    let (mut rig, each) = separate(1).await;
    let (client, account) = &each[0];
    let standing = Standing::new("plus")
        .five_hour_used(99.5)
        .five_hour_resets_at(unix_in(500));
    account.set_standing(standing);
    client.turn(&turn("one")).await;
    check_exhausted("over a cap", &client.turn(&turn("one")).await, 500);
    rig.stop().await;
}

over_both!(a_single_credential_that_is_rate_limited_gets_no_requests);
async fn a_single_credential_that_is_rate_limited_gets_no_requests() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
    let client = rig.start(config).await;
    rig.account("a").then(refusal().resets_in_seconds(600));
    assert_eq!(
        client.turn(&turn("one")).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    check_exhausted("the next", &client.turn(&turn("one")).await, 600);
    assert_eq!(rig.upstream.turns().len(), 1);
    rig.stop().await;
}

// Failover

over_both!(a_refused_request_is_sent_to_the_next_credential_unchanged);
async fn a_refused_request_is_sent_to_the_next_credential_unchanged() {
    let (mut rig, client) = pool(&["a", "b", "c"]).await;
    for tag in ["a", "b"] {
        rig.account(tag).then(refusal().resets_in_seconds(600));
    }
    let body = format!(
        "{{ \"model\":\"gpt-5.4\",\t\"stream\":true, \"input\":\"{}\" }}\n",
        "é".repeat(700_000)
    );
    let client = client
        .header("x-theirs", "kept")
        .header("accept", "text/event-stream");

    let answer = client
        .ask(Method::POST, "/v1/responses?x=1", body.clone())
        .await;

    assert_eq!(answer.status, StatusCode::OK);
    let seen = rig.upstream.turns();
    let accounts: Vec<&str> = seen
        .iter()
        .filter_map(|seen| seen.account.as_deref())
        .collect();
    assert_eq!(accounts, ["account-a", "account-b", "account-c"]);
    for seen in &seen {
        assert!(seen.body == body, "another body");
        assert_eq!(seen.target, "/backend-api/codex/responses?x=1");
        assert_eq!(
            (seen.header("x-theirs"), seen.header("accept")),
            (Some("kept"), Some("text/event-stream"))
        );
    }
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "429"), ("b", "429"), ("c", "200")])
    );
    assert_eq!(
        (row.text("credential"), row.number("status")),
        (Some("c"), Some(200))
    );
    rig.stop().await;
}

over_both!(if_all_are_refused_the_response_has_the_earliest_reset);
async fn if_all_are_refused_the_response_has_the_earliest_reset() {
    let (mut rig, client) = pool(&["a", "b", "c"]).await;
    for (tag, seconds) in [("a", 900), ("b", 400), ("c", 600)] {
        rig.account(tag).then(refusal().resets_in_seconds(seconds));
    }
    check_exhausted("all tried", &client.turn(&turn("one")).await, 400);
    check_exhausted("none tried", &client.turn(&turn("one")).await, 400);
    assert_eq!(rig.upstream.turns().len(), 3, "each at most once");
    let rows = wait_for_rows(&rig.ledger(), 2).await;
    assert_eq!(
        rows[0].attempts(),
        outcomes(&[("a", "429"), ("b", "429"), ("c", "429")])
    );
    assert_eq!(rows[1].attempts(), []);
    for row in rows {
        assert_eq!(
            (row.text("end"), row.number("status")),
            (Some("failed"), Some(429))
        );
        assert_eq!(
            (row.number("cost_nanousd"), row.text("unpriced_reason")),
            (None, None)
        );
    }
    rig.stop().await;
}

over_both!(a_rejected_token_fails_over_to_the_next_credential);
async fn a_rejected_token_fails_over_to_the_next_credential() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.account("a")
        .always(Reply::error(401, "invalid_request_error", "expired"));
    assert_eq!(client.turn(&turn("one")).await.status, StatusCode::OK);
    let attempts = wait_for_rows(&rig.ledger(), 1).await[0].attempts();
    assert_eq!(attempts.last(), outcomes(&[("b", "200")]).last());
    assert!(
        attempts[..attempts.len() - 1]
            .iter()
            .all(|attempt| *attempt == outcomes(&[("a", "401")])[0])
    );
    rig.stop().await;
}

over_both!(other_errors_are_passed_on_and_not_retried);
async fn other_errors_are_passed_on_and_not_retried() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    for status in [400, 403, 404, 500, 501] {
        rig.account("a").then(Reply::raw(status, "theirs"));
        let answer = client.turn(&turn("one")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, "theirs")
        );
    }
    assert!(
        rig.upstream
            .turns()
            .iter()
            .all(|seen| seen.account.as_deref() == Some("account-a"))
    );
    rig.stop().await;
}

over_both!(no_request_is_sent_again_after_a_byte_of_its_response);
async fn no_request_is_sent_again_after_a_byte_of_its_response() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.account("a").then(Reply::ok().close_after(100));
    client.turn_cut_off(&turn("one")).await;
    assert_eq!(rig.upstream.turns().len(), 1);
    rig.stop().await;
}

over_both!(a_refusal_of_one_request_does_not_end_the_stream_of_another);
async fn a_refusal_of_one_request_does_not_end_the_stream_of_another() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    let gate = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_after(2, &gate))
        .then(refusal().resets_in_seconds(600));
    let mut stream = client.start_turn(&turn("one")).await;
    stream.until("output_text.delta").await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);
    gate.open();
    let rest = stream.finish().await;
    assert!(rest.whole && rest.text().contains("response.completed"));
    rig.stop().await;
}

// Bodies that are not buffered

const REPLAY_BYTES: usize = 1000;

/// As [`pool`], with room to buffer bodies of this length.
async fn pool_with_little_room() -> (Rig, Client) {
    let mut rig = Rig::new().await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    config["limits"] = json!({ "replay_bytes": REPLAY_BYTES });
    let client = rig.start(config).await.token("token-alice");
    (rig, client)
}

/// Returns a turn with a text of `bytes`.
fn body_of(bytes: usize) -> String {
    let empty = r#"{"model":"gpt-5.4","stream":true,"input":""}"#.len();
    format!(
        r#"{{"model":"gpt-5.4","stream":true,"input":"{}"}}"#,
        "x".repeat(bytes - empty)
    )
}

over_both!(a_body_of_the_buffered_length_is_sent_again);
async fn a_body_of_the_buffered_length_is_sent_again() {
    let (mut rig, client) = pool_with_little_room().await;
    rig.account("a").then(refusal().resets_in_seconds(600));
    let body = body_of(REPLAY_BYTES);
    let answer = client
        .ask(Method::POST, "/v1/responses", body.clone())
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = rig.upstream.turns();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.body == body));
    rig.stop().await;
}

over_both!(a_body_past_the_buffered_length_is_forwarded_whole);
async fn a_body_past_the_buffered_length_is_forwarded_whole() {
    let (mut rig, client) = pool_with_little_room().await;
    for bytes in [REPLAY_BYTES + 1, 3 << 20] {
        let body = body_of(bytes);
        let answer = client
            .header("x-theirs", "kept")
            .ask(Method::POST, "/v1/responses", body.clone())
            .await;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = rig.upstream.turns().pop().expect("a turn");
        assert!(
            seen.body == body && seen.header("x-theirs") == Some("kept"),
            "{bytes} bytes"
        );
    }
    rig.stop().await;
}

over_both!(a_body_past_the_buffered_length_is_not_sent_again);
async fn a_body_past_the_buffered_length_is_not_sent_again() {
    for bytes in [REPLAY_BYTES + 1, 3 << 20] {
        let (mut rig, client) = pool_with_little_room().await;
        rig.account("a").then(refusal().resets_in_seconds(600));
        let answer = client
            .ask(Method::POST, "/v1/responses", body_of(bytes))
            .await;
        let accounts: Vec<Option<String>> = rig
            .upstream
            .turns()
            .into_iter()
            .map(|seen| seen.account)
            .collect();
        assert_eq!(
            accounts,
            [Some("account-a".to_owned())],
            "{bytes} bytes, {}: {}",
            answer.status,
            answer.text()
        );
        rig.stop().await;
    }
}

over_both!(a_request_that_cannot_be_sent_again_gets_503_while_another_credential_is_usable);
async fn a_request_that_cannot_be_sent_again_gets_503_while_another_credential_is_usable() {
    let (mut rig, client) = pool_with_little_room().await;
    rig.account("a").then(refusal().resets_in_seconds(600));
    let answer = client
        .ask(Method::POST, "/v1/responses", body_of(REPLAY_BYTES + 1))
        .await;
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["error"]["code"], "credential_usage_exhausted");
    rig.stop().await;
}

// Requests that wait while their credential is refused

/// The longest that a request may stay with a credential that was rate-limited: it should move at
/// once.
const MOVED_MAX: Duration = Duration::from_secs(5);

over_both!(a_request_without_a_response_moves_when_its_credential_is_rate_limited);
async fn a_request_without_a_response_moves_when_its_credential_is_rate_limited() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    let never = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_head(&never))
        .then(refusal().resets_in_seconds(600));
    let first = client.clone();
    let waiting = tokio::spawn(async move { first.turn(&turn("one")).await });
    never.wait_until_reached().await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);

    let moved = timeout(MOVED_MAX, waiting)
        .await
        .expect("an answer from the other credential")
        .expect("no panic");

    assert_eq!(moved.status, StatusCode::OK);
    let row = wait_for_rows(&rig.ledger(), 2)
        .await
        .pop()
        .expect("two rows");
    assert_eq!(row.attempts().last(), outcomes(&[("b", "200")]).last());
    rig.stop().await;
}

over_both!(
    a_waiting_request_that_cannot_be_sent_again_gets_503_when_its_credential_is_rate_limited
);
async fn a_waiting_request_that_cannot_be_sent_again_gets_503_when_its_credential_is_rate_limited()
{
    let (mut rig, client) = pool_with_little_room().await;
    let never = Gate::new();
    rig.account("a")
        .then(Reply::ok().hold_head(&never))
        .then(refusal().resets_in_seconds(600));
    let first = client.clone();
    let waiting = tokio::spawn(async move {
        first
            .ask(Method::POST, "/v1/responses", body_of(REPLAY_BYTES + 1))
            .await
    });
    never.wait_until_reached().await;
    assert_eq!(client.turn(&turn("two")).await.status, StatusCode::OK);

    let answer = timeout(MOVED_MAX, waiting)
        .await
        .expect("an answer of the gateway's")
        .expect("no panic");

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"]["code"], "credential_usage_exhausted");
    rig.stop().await;
}

// Upstream unreachable

/// A forwarder to upstream that can stop accepting connections while those it has stay open.
async fn door(upstream: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let accepting = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let mut far = TcpStream::connect(upstream)
                    .await
                    .expect("upstream listens");
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, accepting)
}

// Over HTTP/1.1 alone: a poll that is cut off leaves an HTTP/2 connection open.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_connect_fails_over_to_the_next_credential() {
    let mut rig = Rig::new().await;
    let (address, accepting) = door(rig.upstream.address()).await;
    let mut config = rig.team(&["a", "b"], json!({ "strategy": "fallback" }));
    let service = &mut config["services"][0];
    service["endpoints"]["chatgpt"] = json!(format!("http://{address}/backend-api"));
    let users = service["users"].as_array_mut().expect("a list");
    users.push(json!({ "name": "carol", "token": "token-carol", "credential": "b" }));
    // Some connections of b's stay open; a has none, not even that of its poll.
    rig.account("a").always_for_poll(Reply::close_before_head());
    let client = rig.start_polled(config).await;
    let gate = Gate::new();
    rig.account("b").always(Reply::ok().hold_after(1, &gate));
    let carol = client.token("token-carol");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(carol.start_turn(&turn("one")).await);
    }
    gate.open();
    for stream in streams {
        assert!(stream.finish().await.whole);
    }
    accepting.abort();
    assert!(accepting.await.is_err_and(|error| error.is_cancelled()));

    let answer = client.token("token-alice").turn(&turn("two")).await;

    assert_eq!(answer.status, StatusCode::OK);
    let rows = wait_for_rows(&rig.ledger(), 5).await;
    assert_eq!(
        rows[4].attempts(),
        outcomes(&[("a", "unreachable"), ("b", "200")])
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_no_credential_can_connect_each_is_tried_once_and_the_response_is_502() {
    let (mut rig, client) = pool(&["a", "b"]).await;
    rig.upstream.stop().await;
    let answer = client.turn(&turn("one")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.json()["error"]["type"], "api_error");
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        row.attempts(),
        outcomes(&[("a", "unreachable"), ("b", "unreachable")])
    );
    rig.stop().await;
}

// auth.json

#[tokio::test(flavor = "multi_thread")]
async fn late_responses_about_an_account_do_not_change_the_one_that_replaced_it() {
    let used_up = Standing::new("plus").weekly_used(100.0);
    for (name, late) in [
        ("a 429", refusal().resets_in_seconds(600)),
        ("headers", Reply::ok()),
    ] {
        let mut rig = Rig::new().await;
        let config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
        let client = rig.start_polled(config).await;
        let gate = Gate::new();
        rig.account("a").set_standing(used_up.clone());
        rig.account("a").then(late.hold_head(&gate));
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.turn(&turn("one")).await }
        });
        gate.wait_until_reached().await;
        let before = rig.credential("a").await["refreshed_at"].clone();
        let new = rig.upstream.account("access-new", "account-new");
        // A poll of the new account would hide the fault.
        new.always_for_poll(Reply::ok().hold_head(&Gate::new()));
        replace_file(
            &rig.credential_file("a"),
            oauth_file("access-new", "account-new").to_string(),
        );
        let is_so = |found: &Value| found["refreshed_at"] != before && found["state"] == "ready";
        rig.wait_for_credential("a", Duration::from_secs(20), "the new account", is_so)
            .await;
        gate.open();
        let answer = waiting.await.expect("no panic");
        assert_eq!(
            answer.status.as_u16(),
            if name == "headers" { 200 } else { 429 },
            "{name}: {}",
            answer.text()
        );
        let status = rig.credential("a").await;
        assert_eq!(
            (&status["state"], &status["usable"]),
            (&json!("ready"), &json!(true)),
            "{name}: {status:#}"
        );
        assert_ne!(status["weekly"]["used"], 100.0, "{name}: {status:#}");
        assert_eq!(
            client.turn(&turn("one")).await.status,
            StatusCode::OK,
            "{name}"
        );
        assert_eq!(new.turn_count(), 1, "{name}");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_file_that_appears_or_is_repaired_later_is_loaded() {
    let good = oauth_file("access-a", "account-a").to_string();
    let begin = |text: &str| Some(text.to_owned());
    for (name, first) in [
        ("missing", None),
        ("empty", begin("")),
        ("cut off", begin(&good[..40])),
        ("a list", begin("[]")),
    ] {
        let mut rig = Rig::new().await;
        rig.account("a");
        if let Some(text) = first {
            rig.write("a.json", text);
        }
        let config = rig.config(
            json!({ "credentials": [{"tag": "a", "credential_path": rig.path("a.json")}] }),
        );
        let client = rig.start(config).await;
        let answer = client.turn(&turn("one")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{name}");
        assert_eq!(
            answer.json()["error"]["code"],
            "credentials_unavailable",
            "{name}"
        );

        rig.write("a.json", &good);
        wait_until_served(&client, name).await;
        rig.stop().await;
    }
}

/// Within the 2 seconds after which the file is read again, and some for a slow machine.
async fn wait_until_served(client: &Client, name: &str) {
    let begun = Instant::now();
    loop {
        let answer: Answer = client.turn(&turn("one")).await;
        if answer.status == StatusCode::OK {
            return;
        }
        let body: Value = answer.json();
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{name}: still {body}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
