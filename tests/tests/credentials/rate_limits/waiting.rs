//! Requests that wait while their credential becomes rate-limited.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::timeout;
use tollgate_tests::upstream::{Gate, Reply};
use tollgate_tests::{over_both, turn, wait_for_rows};

use super::{REPLAY_BYTES, body_of, outcomes, pool, pool_with_little_room, refusal};

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
