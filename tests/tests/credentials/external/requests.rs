//! Another gateway as a credential: what it receives, and what is recorded.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_tests::upstream::Standing;
use tollgate_tests::{Rig, over_both, turn, wait_for_rows};

use super::{TOKEN, alone, external, outcomes, pool, remote, started, users};

over_both!(a_request_has_its_path_and_the_credentials_token_and_no_secret_of_the_client);
async fn a_request_has_its_path_and_the_credentials_token_and_no_secret_of_the_client() {
    for folder in ["", "/", "/team/gateway"] {
        let mut rig = Rig::new().await;
        // The scripted upstream stands in for it, since it records requests.
        rig.upstream.api_key(TOKEN, "front");
        let url = format!("{}{folder}", rig.upstream.api_url());
        let credentials = json!([external("x", &url), pool("least_used", &["x"])]);
        let config = rig.config(json!({ "credentials": credentials, "users": [users()[0]] }));
        let client = rig.start(config).await.token("token-alice");
        let client = client
            .header("chatgpt-account-id", "mine")
            .header("cookie", "mine")
            .header("x-theirs", "kept");

        client
            .ask(Method::POST, "/v1/responses?x=1", turn("one").to_string())
            .await;

        let seen = rig.upstream.turns();
        assert_eq!(seen.len(), 1);
        assert_eq!(
            seen[0].target,
            format!("{}/v1/responses?x=1", folder.trim_end_matches('/'))
        );
        assert_eq!(
            seen[0].header("authorization"),
            Some(format!("Bearer {TOKEN}").as_str())
        );
        assert_eq!(
            (
                seen[0].header("chatgpt-account-id"),
                seen[0].header("cookie")
            ),
            (None, None)
        );
        assert_eq!(seen[0].header("x-theirs"), Some("kept"));
        assert!(seen[0].body == turn("one").to_string());
        for seen in rig.upstream.requests() {
            assert!(
                !format!("{seen:?}").contains("token-alice"),
                "{} {}",
                seen.method,
                seen.target
            );
        }
        rig.stop().await;
    }
}

over_both!(a_turn_through_two_gateways_is_whole_and_recorded_by_both);
async fn a_turn_through_two_gateways_is_whole_and_recorded_by_both() {
    let (mut back, url) = remote(&[Standing::new("plus")]).await;
    let mut rig = Rig::new().await;
    let mut other = external("x", &url);
    other["usages_path"] = json!(rig.path("x-usages.json"));
    let config = rig.config(
        json!({ "credentials": [other, pool("least_used", &["x"])], "users": [users()[0]] }),
    );
    let client = rig.start(config).await.token("token-alice");

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert!(answer.whole && answer.text().contains("response.completed"));
    for (rig, user, credential) in [(&rig, "alice", "x"), (&back, "front", "r0")] {
        let row = &wait_for_rows(&rig.ledger(), 1).await[0];
        assert_eq!(
            (row.text("user"), row.text("credential")),
            (Some(user), Some(credential))
        );
        assert_eq!(row.attempts(), outcomes(&[(credential, "200")]));
        assert_eq!(
            (row.number("input_tokens"), row.number("output_tokens")),
            (Some(1200), Some(150))
        );
        assert!(
            row.number("cost_nanousd").is_some_and(|cost| cost > 0),
            "{row:?}"
        );
        assert_eq!(
            (row.text("session"), row.text("end")),
            (Some("one"), Some("complete"))
        );
    }
    rig.stop().await;
    let file =
        std::fs::read_to_string(rig.path("x-usages.json")).expect("the usage file is written");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let total = &file["combinations"][0]["total"];
    assert_eq!(
        (&total["request_count"], &total["output_tokens"]),
        (&json!(1), &json!(150)),
        "{file}"
    );
    assert!(
        file["combinations"][0]["by_user"]["alice"].is_object(),
        "{file}"
    );
    back.stop().await;
}

over_both!(chat_completions_pass_to_another_gateway_with_an_api_key);
async fn chat_completions_pass_to_another_gateway_with_an_api_key() {
    let back = Rig::new().await;
    let front = json!({ "name": "front", "token": TOKEN, "credential": "k" });
    let config = back.config(json!({ "credentials": [back.api_key("k")], "users": [front] }));
    let (mut back, url) = started(back, config).await;
    let (mut rig, client) = alone(external("x", &url)).await;

    let body = json!({ "model": "gpt-5.4", "messages": [{ "role": "user", "content": "hello" }] });
    let answer = client
        .ask(Method::POST, "/v1/chat/completions", body.to_string())
        .await;

    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(back.upstream.turns()[0].target, "/v1/chat/completions");
    let row = &wait_for_rows(&rig.ledger(), 1).await[0];
    assert_eq!(
        (row.text("credential"), row.number("output_tokens")),
        (Some("x"), Some(150))
    );
    rig.stop().await;
    back.stop().await;
}
