//! API keys beside accounts.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;
use tollgate_tests::{Rig, key_file, over_both, rows, user};

use super::{served, without_session};

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_an_api_key_is_an_error_at_load() {
    for kind in ["balancer", "fallback"] {
        let mut rig = Rig::new().await;
        let pool = json!({ "tag": "pool", "type": kind, "credentials": ["a", "k"] });
        let config = rig.config(json!({ "credentials": [rig.oauth("a"), rig.api_key("k"), pool] }));
        let error = rig
            .try_start(config)
            .await
            .err()
            .expect("no gateway")
            .to_string();
        assert!(
            error.contains("services[0].credentials[2].credentials[1]: ")
                && error.contains("\"k\""),
            "{error}"
        );
        assert!(!error.contains("sk-k"), "{error}");
    }
}

over_both!(a_credential_that_becomes_an_api_key_is_skipped_by_its_pool);
async fn a_credential_that_becomes_an_api_key_is_skipped_by_its_pool() {
    let mut rig = Rig::new().await;
    let later = json!({ "tag": "k", "credential_path": rig.path("k.json") });
    let pool = json!({ "tag": "pool", "type": "fallback", "credentials": ["k", "a"] });
    let users = json!([user("alice", "pool"), user("k", "k")]);
    let config =
        rig.config(json!({ "credentials": [later, rig.oauth("a"), pool], "users": users }));
    let client = rig.start(config).await;
    rig.upstream.api_key("sk-k", "k");
    rig.write("k.json", key_file("sk-k").to_string());
    let begun = Instant::now();
    while client
        .token("token-k")
        .turn(&without_session())
        .await
        .status
        != StatusCode::OK
    {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the key is not picked up"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        served(&rig, &client.token("token-alice"), &without_session()).await,
        "a"
    );
    let last = rows(&rig.ledger()).pop().expect("a row");
    assert_eq!(
        last.attempts(),
        [("a".to_owned(), "200".to_owned())],
        "the key was not even tried"
    );
    rig.stop().await;
}
