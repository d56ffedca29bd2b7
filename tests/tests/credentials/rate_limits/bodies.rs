//! Bodies that are too large to be sent again.

use http::{Method, StatusCode};
use tollgate_tests::over_both;

use super::{REPLAY_BYTES, body_of, pool_with_little_room, refusal};

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
