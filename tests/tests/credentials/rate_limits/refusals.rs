//! How long a credential stays rate-limited after a refusal.

use std::time::SystemTime;

use http::StatusCode;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tollgate_tests::upstream::{Encoding, HeaderForm, Reply, Standing};
use tollgate_tests::{Rig, over_both, turn, unix_in};

use super::{check_exhausted, refusal, separate};

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

over_both!(the_end_of_a_rejection_is_read_from_headers_then_body_then_retry_after);
async fn the_end_of_a_rejection_is_read_from_headers_then_body_then_retry_after() {
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
