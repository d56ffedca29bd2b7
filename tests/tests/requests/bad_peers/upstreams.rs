//! Bad upstreams: what they send reaches the client as far as it goes, or is an error of the
//! gateway's own.

mod cuts;
mod heads;
mod streams;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tollgate_tests::Answer;
use tollgate_tests::peer::Peer;

/// What a good upstream answers, byte by byte.
const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n{\"id\": \"resp_one\"}";

/// What a bare upstream does when its bytes are out.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    /// Waits for the gateway to close.
    Stay,
}

/// An upstream that answers the first turn with these bytes, and all other requests well.
async fn bare(bytes: impl Into<Vec<u8>>, then: Then) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let first = Arc::new(Mutex::new(Some(bytes.into())));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let first = Arc::clone(&first);
            tokio::spawn(async move {
                let mut peer = Peer::new(stream);
                while let Some(request) = peer.message().await {
                    // The gateway asks for the account's use besides, whenever it likes.
                    let is_turn = request.head.starts_with("post ");
                    let bad = is_turn
                        .then(|| first.lock().expect("no holder panics").take())
                        .flatten();
                    let Some(bytes) = bad else {
                        peer.send(GOOD).await;
                        continue;
                    };
                    peer.send(bytes).await;
                    if then == Then::Stay {
                        peer.rest().await;
                    }
                    return;
                }
            });
        }
    });
    address
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some("api_error"), Some(code))
    );
}
