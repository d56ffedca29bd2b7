//! Rate-limit headers: their forms, and which window they are about.

use serde_json::json;
use tollgate_tests::upstream::{HeaderForm, Reply, Slots, Standing};
use tollgate_tests::{Answer, Client, over_both, turn, unix_in};

use super::separate;

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

/// Names, header fields, and the used percent of the 5-hour and the weekly window that they report.
const ACTIVE_LIMITS: [(&str, &[(&str, &str)], (f64, f64)); 7] = [
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

over_both!(fields_are_read_by_the_active_limit_and_windows_by_their_minutes);
async fn fields_are_read_by_the_active_limit_and_windows_by_their_minutes() {
    let (mut rig, each) = separate(ACTIVE_LIMITS.len()).await;
    for ((name, fields, (five_hour, weekly)), (client, account)) in
        ACTIVE_LIMITS.into_iter().zip(each)
    {
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
