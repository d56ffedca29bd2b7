//! Which credentials are usable.

use http::StatusCode;
use serde_json::{Value, json};
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Rig, over_both, unix_in, user};

use super::{tell, without_session};

/// Returns names, fields of the credential, its standing, and whether it is usable.
fn below_and_at_caps() -> Vec<(&'static str, Value, Standing, bool)> {
    let standing = |five_hour: f64, weekly: f64| {
        Standing::new("plus")
            .five_hour_used(five_hour)
            .weekly_used(weekly)
    };
    vec![
        ("unset", json!({}), standing(98.9, 98.9), true),
        ("unset 5h", json!({}), standing(99.0, 0.0), false),
        ("unset weekly", json!({}), standing(0.0, 99.0), false),
        (
            "reserve 5h below",
            json!({"reserve_5h": 20}),
            standing(79.9, 98.0),
            true,
        ),
        (
            "reserve 5h",
            json!({"reserve_5h": 20}),
            standing(80.0, 0.0),
            false,
        ),
        (
            "reserve weekly below",
            json!({"reserve_weekly": 99}),
            standing(98.0, 0.9),
            true,
        ),
        (
            "reserve weekly",
            json!({"reserve_weekly": 99}),
            standing(0.0, 1.0),
            false,
        ),
        (
            "limit 5h below",
            json!({"limit_5h": 50}),
            standing(49.9, 0.0),
            true,
        ),
        (
            "limit 5h",
            json!({"limit_5h": 50}),
            standing(50.0, 0.0),
            false,
        ),
        (
            "limit weekly below",
            json!({"limit_weekly": 100}),
            standing(0.0, 99.9),
            true,
        ),
        (
            "limit weekly",
            json!({"limit_weekly": 100}),
            standing(0.0, 100.0),
            false,
        ),
    ]
}

/// As [`below_and_at_caps`], with windows that have reset.
fn after_resets() -> Vec<(&'static str, Value, Standing, bool)> {
    let past = unix_in(0) - 60;
    vec![
        (
            "5h reset",
            json!({}),
            Standing::new("plus")
                .five_hour_used(100.0)
                .five_hour_resets_at(past),
            true,
        ),
        (
            "weekly reset",
            json!({}),
            Standing::new("plus")
                .weekly_used(100.0)
                .weekly_resets_at(past),
            true,
        ),
    ]
}

over_both!(a_credential_is_usable_below_its_caps_and_not_at_them);
async fn a_credential_is_usable_below_its_caps_and_not_at_them() {
    let cases = [below_and_at_caps(), after_resets()].concat();
    let mut rig = Rig::new().await;
    let tag = |place: usize| format!("c{place}");
    let mut credentials = Vec::new();
    for (place, (_, fields, ..)) in cases.iter().enumerate() {
        let mut credential = rig.oauth(&tag(place));
        let fields = fields.as_object().expect("an object").clone();
        credential
            .as_object_mut()
            .expect("an object")
            .extend(fields);
        credentials.push(credential);
    }
    let users: Vec<Value> = (0..cases.len())
        .map(|place| user(&tag(place), &tag(place)))
        .collect();
    let config = rig.config(json!({ "credentials": credentials, "users": users }));
    let client = rig.start_polled(config).await;
    for (place, (name, _, standing, usable)) in cases.into_iter().enumerate() {
        tell(&rig, &client, &tag(place), standing).await;
        let answer = client
            .token(&format!("token-{}", tag(place)))
            .turn(&without_session())
            .await;
        let expected = if usable {
            StatusCode::OK
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(answer.status, expected, "{name}");
    }
    rig.stop().await;
}
