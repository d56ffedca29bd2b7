//! Many sockets at once.

use std::fs;

use serde_json::json;
use tollgate_tests::EchoScene;

use super::{HEAVY, echo};

/// The open sockets of the test: as many as the limit on open files lets be, up to this.
const IDLE_MAX: usize = 10_000;

/// So many are closed before it is waited for their ends.
const CLOSED_AT_ONCE: usize = 500;

/// A socket has four ends in this process.
const ENDS: usize = 4;

/// Files of this process that are no socket of the test, those of tests beside it among them.
const OTHER_FILES: usize = 2_000;

/// The limit on open files, raised as far as it goes.
fn file_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls are given a valid struct, and keep no pointer to it.
    unsafe {
        assert_eq!(
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit),
            0,
            "the limit can be read"
        );
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit),
            0,
            "it can be raised to the hard one"
        );
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// What of this process is in memory.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("the system tells of this process");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a count of pages");
    // SAFETY: sysconf has no memory to be unsafe with.
    pages * usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page's size")
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_sockets_stay_open_and_a_sample_of_them_still_works() {
    let _heavy = HEAVY.lock().await;
    let count = IDLE_MAX.min(file_limit().saturating_sub(OTHER_FILES) / ENDS);
    // These clients do not read while they are idle, so they answer no pings.
    let mut scene = EchoScene::with(
        json!({ "websockets_per_user": count + 1, "websocket_ping_interval": "1h" }),
    )
    .await;
    let before = resident_bytes();
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        sockets.push(scene.socket().await);
    }
    assert_eq!(scene.rig.upstream.open_socket_count(), count + 1);
    let each = resident_bytes().saturating_sub(before) / count.max(1);
    println!(
        "{count} idle sockets: {each} bytes each, with the client's and upstream's ends in the same process"
    );
    let step = (count / 200).max(1);
    for (place, socket) in sockets.iter_mut().enumerate().step_by(step) {
        let words = format!("message {place}");
        socket.send_text(words.clone()).await;
        assert_eq!(socket.next_message().await, echo(words));
    }
    assert_eq!(
        scene.rig.upstream.open_socket_count(),
        count + 1,
        "all stayed open"
    );
    for ended in (0..count).step_by(CLOSED_AT_ONCE) {
        let closing = sockets.len().min(CLOSED_AT_ONCE);
        sockets.truncate(sockets.len() - closing);
        scene
            .rig
            .upstream
            .wait_for_sockets_ended(ended + closing)
            .await;
    }
    scene.end().await;
}
