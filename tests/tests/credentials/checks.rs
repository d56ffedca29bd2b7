//! What the tests about refreshes check alike: served and failed requests, and the number of
//! requests to the token endpoint.

use std::time::{Duration, Instant};

use http::StatusCode;
use tollgate_tests::Answer;
use tollgate_tests::upstream::Login;

/// The shortest time until the gateway tries again after a failure without `Retry-After`.
const FIRST_BACK_OFF: Duration = Duration::from_secs(5);

/// The longest time until the gateway tries again after such a failure.
pub(crate) const FIRST_BACK_OFF_MAX: Duration = Duration::from_secs(15);

/// Checks that a request failed because no credential is available.
#[track_caller]
pub(crate) fn check_unavailable(name: &str, answer: &Answer) {
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{name}: {}",
        answer.text()
    );
    assert_eq!(
        answer.json()["error"]["code"],
        "credentials_unavailable",
        "{name}"
    );
}

#[track_caller]
pub(crate) fn check_served(name: &str, answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
}

/// Checks that the token endpoint received one request of `login` since `begun`, or as many as the
/// back-off allows by now.
#[track_caller]
pub(crate) fn check_asked(name: &str, login: &Login, state: &str, begun: Instant) {
    let posts = login.post_count();
    let due = begun.elapsed().as_secs() / FIRST_BACK_OFF.as_secs();
    let most = if state == "login_needed" {
        1
    } else {
        1 + due as usize
    };
    assert!(
        (1..=most).contains(&posts),
        "{name}: {posts} times in {:?}",
        begun.elapsed()
    );
    assert_eq!(login.reuses(), 0, "{name}");
}
