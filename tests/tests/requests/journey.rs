//! A request's journey, end to end.

use http::StatusCode;
use serde_json::json;
use tollgate_tests::{Rig, over_both, turn, wait_for_rows};

over_both!(a_streamed_turn_reaches_its_client_and_the_ledger);
async fn a_streamed_turn_reaches_its_client_and_the_ledger() {
    let mut rig = Rig::new().await;
    let config = rig.team(&["a", "b"], json!({}));
    let client = rig.start(config).await.token("token-alice");

    let answer = client.turn(&turn("one")).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.whole && answer.text().contains("response.completed"));
    let rows = wait_for_rows(&rig.ledger(), 1).await;
    assert_eq!(rows[0].text("user"), Some("alice"));
    assert_eq!(rows[0].text("end"), Some("complete"));
    assert_eq!(
        rows[0].text("request_id"),
        Some(answer.request_id().as_str())
    );
    assert_eq!(rows[0].number("input_tokens"), Some(1200));
    assert!(rows[0].number("cost_nanousd").is_some_and(|cost| cost > 0));
    rig.stop().await;
}
