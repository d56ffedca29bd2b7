//! The path of a request, and what it becomes upstream.

use http::{Method, StatusCode};
use serde_json::json;
use tollgate_tests::{Rig, over_both, turn};

use super::{NOT_UNDER_V1, check_error, open_rig, team_rig};

// 2. The path

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_under_v1_is_not_found() {
    let (mut rig, client) = team_rig().await;
    for path in [
        "/",
        "/v1",
        "/v2/responses",
        "/v1x/responses",
        "/responses",
        "/ocm/v1/other",
        "/V1/responses",
    ] {
        let answer = client.token("token-alice").get(path).await;
        check_error(&answer, 404, "invalid_request_error", None, NOT_UNDER_V1);
    }
    assert!(rig.forwarded().is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dot_segments_do_not_lead_out_of_v1() {
    let (mut rig, client) = team_rig().await;
    for path in [
        "/v1/../wham/usage",
        "/v1/./../../wham/usage",
        "/v1/%2e%2e/wham/usage",
        "/v1/x/.%2E/../../y",
    ] {
        // By the rules of RFC 3986, section 5.2.4, and for whatever server stands at upstream,
        // these are not under /v1/: with the operator's token they would reach the rest of the
        // backend.
        let answer = client.token("token-alice").get(path).await;
        let sent: Vec<String> = rig
            .forwarded()
            .into_iter()
            .map(|seen| seen.target)
            .collect();
        assert!(sent.is_empty(), "{path} went to upstream as {sent:?}");
        check_error(&answer, 404, "invalid_request_error", None, NOT_UNDER_V1);
    }
    rig.stop().await;
}

// Paths

/// What the client asks, on what credential, and where it must go.
struct Way {
    oauth: bool,
    asked: &'static str,
    sent: &'static str,
}

const WAYS: [Way; 8] = [
    Way {
        oauth: true,
        asked: "/v1/responses",
        sent: "/backend-api/codex/responses",
    },
    Way {
        oauth: true,
        asked: "/v1/responses/compact",
        sent: "/backend-api/codex/responses/compact",
    },
    Way {
        oauth: true,
        asked: "/v1/models?client_version=1.2",
        sent: "/backend-api/codex/models?client_version=1.2",
    },
    Way {
        oauth: true,
        asked: "/v1/a%2Fb/v1/c?x=%20&y=/v1&&z",
        sent: "/backend-api/codex/a%2Fb/v1/c?x=%20&y=/v1&&z",
    },
    Way {
        oauth: true,
        asked: "/v1/?x",
        sent: "/backend-api/codex/?x",
    },
    Way {
        oauth: false,
        asked: "/v1/responses?a=1&a=2",
        sent: "/v1/responses?a=1&a=2",
    },
    Way {
        oauth: false,
        asked: "/v1/chat/completions",
        sent: "/v1/chat/completions",
    },
    Way {
        oauth: false,
        asked: "/v1/models/gpt-5.4",
        sent: "/v1/models/gpt-5.4",
    },
];

over_both!(paths_are_mapped_by_the_kind_of_credential_and_queries_are_kept);
async fn paths_are_mapped_by_the_kind_of_credential_and_queries_are_kept() {
    let mut rig = Rig::new().await;
    let config = rig.config(json!({
        "credentials": [rig.oauth("a"), rig.api_key("k")],
        "users": [
            {"name": "alice", "token": "token-alice", "credential": "a"},
            {"name": "bob", "token": "token-bob", "credential": "k"},
        ],
    }));
    let client = rig.start(config).await;
    for way in WAYS {
        let token = if way.oauth {
            "token-alice"
        } else {
            "token-bob"
        };
        client
            .token(token)
            .ask(Method::POST, way.asked, turn("one").to_string())
            .await;
        let seen = rig.forwarded().pop().expect("a request");
        assert_eq!(
            (seen.target.as_str(), seen.method),
            (way.sent, Method::POST),
            "{}",
            way.asked
        );
    }
    rig.stop().await;
}

over_both!(the_method_is_kept);
async fn the_method_is_kept() {
    let (mut rig, client) = open_rig().await;
    for method in [
        Method::GET,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::HEAD,
    ] {
        let answer = client.ask(method.clone(), "/v1/elsewhere", "").await;
        assert_eq!(
            answer.status,
            StatusCode::NOT_FOUND,
            "upstream's own answer to {method}"
        );
        assert_eq!(rig.forwarded().pop().expect("a request").method, method);
    }
    rig.stop().await;
}
