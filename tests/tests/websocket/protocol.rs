//! The WebSocket protocol (RFC 6455) through the gateway, byte by byte: the cases of the Autobahn test suite, by its numbers,
//! and what peers do besides. Upstream echoes; a ping is answered by the other end, a violation by the gateway.

mod closing;
mod framing;
mod handshake;
mod large;
mod many;
mod texts;
mod upstreams;
mod vanishing;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tollgate_tests::frames::{close, text};
use tollgate_tests::{EchoScene, Event, Socket};

/// No wait of these tests is longer.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Held by tests that take a whole machine: one of them beside another would run into limits of the gateway's.
static HEAVY: Mutex<()> = Mutex::const_new(());

/// What is sent, and what comes back, one after the other.
struct Case {
    name: String,
    exchanges: Vec<(Vec<u8>, Vec<Event>)>,
}

fn case(name: impl Into<String>) -> Case {
    Case {
        name: name.into(),
        exchanges: Vec::new(),
    }
}

impl Case {
    fn then(mut self, sent: impl Into<Vec<u8>>, back: impl IntoIterator<Item = Event>) -> Self {
        self.exchanges
            .push((sent.into(), back.into_iter().collect()));
        self
    }

    /// A message that comes back, then what the gateway closes with that code.
    fn broken(name: impl Into<String>, sent: impl Into<Vec<u8>>, code: u16) -> Self {
        case(name)
            .then(text("sound"), [echo("sound")])
            .then(sent, [closed(code)])
    }

    fn closes(&self) -> bool {
        let last = self.exchanges.last().and_then(|(_, back)| back.last());
        matches!(last, Some(Event::Close(..) | Event::Gone))
    }

    fn sent_bytes(&self) -> usize {
        self.exchanges.iter().map(|(sent, _)| sent.len()).sum()
    }
}

fn echo(text: impl Into<String>) -> Event {
    Event::Text(text.into())
}

/// A close frame with that code; its reason is not looked at.
fn closed(code: u16) -> Event {
    Event::Close(code, String::new())
}

/// Checks each case sent at once, in pieces, and byte by byte.
async fn check(mut scene: EchoScene, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        for size in [usize::MAX, 997, 1] {
            let bytes = case.sent_bytes();
            if size == usize::MAX || (size == 997 && bytes > size) || (size == 1 && bytes < 3_000) {
                check_case(&mut scene, &case, size).await;
            }
        }
    }
    scene.end().await;
}

async fn check_case(scene: &mut EchoScene, case: &Case, size: usize) {
    let mut socket = scene.socket().await;
    for (place, (sent, back)) in case.exchanges.iter().enumerate() {
        let found = exchange(&mut socket, sent, size, back.len()).await;
        assert_eq!(
            found,
            in_order(back),
            "{}, exchange {place}, in pieces of {size}",
            case.name
        );
    }
    if !case.closes() {
        socket.send_raw(close(1000, b"over")).await;
        assert_eq!(
            socket.next().await,
            Event::Close(1000, "over".to_owned()),
            "{}",
            case.name
        );
    }
    assert_eq!(
        socket.next().await,
        Event::Gone,
        "{}, in pieces of {size}",
        case.name
    );
}

/// Sends in pieces, and returns the first events that come.
async fn exchange(socket: &mut Socket, sent: &[u8], size: usize, count: usize) -> Vec<Event> {
    for piece in sent.chunks(size) {
        socket.send_raw(piece).await;
        tokio::task::yield_now().await;
    }
    let mut found = Vec::new();
    while found.len() < count {
        found.push(socket.next().await);
    }
    in_order(&found)
}

/// Pongs first: how they and messages are mixed is up to the end that answers. Reasons are left out.
fn in_order(events: &[Event]) -> Vec<Event> {
    let plain = events.iter().map(|event| match event {
        Event::Close(code, _) => closed(*code),
        event => event.clone(),
    });
    let (mut pongs, others): (Vec<_>, Vec<_>) =
        plain.partition(|event| matches!(event, Event::Pong(_)));
    pongs.extend(others);
    pongs
}

const LONGEST: &[u8] = &[0xfe; 125];

const BOUND: usize = 1 << 20;

async fn read_exactly(from: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut read = vec![0; length];
    timeout(WAIT_MAX, from.read_exact(&mut read))
        .await
        .expect("in time")
        .expect("so many bytes");
    read
}
