//! Sessions between both sides of this implementation, and with a peer that writes single frames.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bounds::{FRAME_BYTES, MuxLimits, WINDOW_BYTES};
use super::end::{MuxEnd, MuxViolation};
use super::header::{ACK, FIN, HEADER_BYTES, MuxFrameKind, MuxHeader, RST, SYN};
use super::multiplex;
use super::session::{MuxOpenError, MuxSession};
use super::state::MuxSide;
use super::stream::{MuxStream, StreamRefused};

const WAIT_MAX: Duration = Duration::from_secs(20);

const LIMITS: MuxLimits = MuxLimits {
    streams: 8,
    keep_alive: Duration::from_secs(60),
    write_timeout: Duration::from_secs(10),
};

/// How many bytes the connection between both sides holds.
const PIPE_BYTES: usize = 64 * 1024;

fn start(io: DuplexStream, side: MuxSide, limits: MuxLimits) -> (MuxSession, JoinHandle<MuxEnd>) {
    let (session, driver) = multiplex(io, Bytes::new(), side, limits);
    (session, tokio::spawn(driver))
}

/// Returns both sides of a session.
fn pair() -> (MuxSession, MuxSession) {
    let (one, two) = duplex(PIPE_BYTES);
    let (opener, _) = start(one, MuxSide::Opener, LIMITS);
    let (acceptor, _) = start(two, MuxSide::Acceptor, LIMITS);
    (opener, acceptor)
}

/// A peer that reads and writes single frames.
struct FramePeer(DuplexStream);

impl FramePeer {
    fn new(side: MuxSide, limits: MuxLimits) -> (Self, MuxSession, JoinHandle<MuxEnd>) {
        let (one, two) = duplex(PIPE_BYTES);
        let (session, end) = start(two, side, limits);
        (Self(one), session, end)
    }

    async fn send(&mut self, kind: MuxFrameKind, flags: u16, stream: u32, length: u32) {
        let header = MuxHeader::new(kind, flags, stream, length);
        self.0
            .write_all(&header.to_bytes())
            .await
            .expect("it is read");
    }

    async fn frame(&mut self) -> (MuxHeader, Vec<u8>) {
        let reading = async {
            let mut header = [0; HEADER_BYTES];
            self.0.read_exact(&mut header).await.expect("a header");
            let header = MuxHeader::parse(&header).expect("a header");
            let mut data = Vec::new();
            if header.kind == MuxFrameKind::Data {
                data.resize(header.length as usize, 0);
                self.0.read_exact(&mut data).await.expect("data");
            }
            (header, data)
        };
        timeout(WAIT_MAX, reading).await.expect("a frame in time")
    }
}

async fn ended(end: JoinHandle<MuxEnd>) -> MuxEnd {
    timeout(WAIT_MAX, end)
        .await
        .expect("the session ends")
        .expect("no panic")
}

#[tokio::test]
async fn streams_carry_both_directions_to_their_ends() {
    let (opener, acceptor) = pair();
    let mut asking = opener.open().expect("a stream");
    asking.write_all(b"question").await.expect("sent");
    asking.shutdown().await.expect("ended");
    let mut answering = acceptor.accept().await.expect("a stream");
    let mut question = String::new();
    answering.read_to_string(&mut question).await.expect("text");
    assert_eq!(question, "question");
    answering.write_all(b"answer").await.expect("sent");
    answering.shutdown().await.expect("ended");
    drop(answering);
    let mut answer = String::new();
    asking.read_to_string(&mut answer).await.expect("text");
    assert_eq!(answer, "answer");
    drop(asking);
    timeout(WAIT_MAX, async {
        opener.until_idle().await;
        acceptor.until_idle().await;
    })
    .await
    .expect("both sides forget the stream");
}

#[tokio::test]
async fn a_stream_that_is_not_read_stalls_no_other_one() {
    let (opener, acceptor) = pair();
    let mut stalled = opener.open().expect("a stream");
    let writing = tokio::spawn(async move { stalled.write_all(&vec![1; 4 << 20]).await });
    let mut unread = acceptor.accept().await.expect("a stream");
    let mut moving = opener.open().expect("a stream");
    let sending = tokio::spawn(async move {
        moving.write_all(&vec![2; 4 << 20]).await.expect("sent");
        moving.shutdown().await.expect("ended");
        moving
    });
    let mut read = acceptor.accept().await.expect("a stream");
    let mut data = Vec::new();
    timeout(WAIT_MAX, read.read_to_end(&mut data))
        .await
        .expect("in time")
        .expect("data");
    assert_eq!(data.len(), 4 << 20);
    assert!(data.iter().all(|byte| *byte == 2));
    sending.await.expect("no panic");
    // What was stored of the other stream is its window.
    let mut stored = vec![0; WINDOW_BYTES as usize];
    timeout(WAIT_MAX, unread.read_exact(&mut stored))
        .await
        .expect("in time")
        .expect("data");
    drop(unread);
    let written = timeout(WAIT_MAX, writing).await.expect("in time");
    assert!(written.expect("no panic").is_err(), "the stream is aborted");
}

#[tokio::test]
async fn a_dropped_stream_is_reset_and_its_data_is_still_read() {
    let (opener, acceptor) = pair();
    let mut stream = opener.open().expect("a stream");
    stream.write_all(b"begun").await.expect("sent");
    let mut accepted = acceptor.accept().await.expect("a stream");
    let mut begun = [0; 5];
    accepted.read_exact(&mut begun).await.expect("data");
    drop(stream);
    let error = timeout(WAIT_MAX, accepted.read(&mut begun)).await;
    assert!(error.expect("in time").is_err());
    assert!(accepted.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn streams_are_bounded_on_both_sides() {
    let (opener, _acceptor) = pair();
    let streams: Vec<_> = (0..LIMITS.streams).map(|_| opener.open()).collect();
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!(
        opener.open().expect_err("no stream"),
        MuxOpenError::TooManyStreams
    );

    let (mut peer, session, _end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    let count = LIMITS.streams as u32;
    for number in 0..=count {
        let id = 2 * number + 1;
        peer.send(MuxFrameKind::WindowUpdate, SYN, id, 0).await;
        let (answer, _) = peer.frame().await;
        let expected = if number < count { ACK } else { RST };
        assert_eq!((answer.stream, answer.flags), (id, expected));
    }
    assert_eq!(session.streams(), LIMITS.streams);
}

#[tokio::test]
async fn a_flood_of_refused_streams_and_pings_is_answered_and_stored_nowhere() {
    let (mut peer, session, _end) = FramePeer::new(MuxSide::Opener, LIMITS);
    for number in 0..10_000 {
        peer.send(MuxFrameKind::Ping, SYN, 0, number).await;
        let (pong, _) = peer.frame().await;
        assert_eq!(
            (pong.kind, pong.flags, pong.length),
            (MuxFrameKind::Ping, ACK, number)
        );
        // This side opens streams, and accepts none.
        peer.send(MuxFrameKind::Data, SYN, 2 * number + 2, 0).await;
        assert_eq!(peer.frame().await.0.flags, RST);
    }
    assert_eq!(session.streams(), 0);
}

#[tokio::test]
async fn a_stream_is_acknowledged_at_once_with_a_larger_window() {
    let (mut peer, session, _end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::WindowUpdate, SYN, 1, 256 * 1024)
        .await;
    let (answer, _) = peer.frame().await;
    assert_eq!(
        answer,
        MuxHeader::new(MuxFrameKind::WindowUpdate, ACK, 1, 256 * 1024)
    );
    // The credit of the first frame counts: 512 KiB can be sent.
    let mut stream = session.accept().await.expect("a stream");
    let sending = tokio::spawn(async move {
        stream.write_all(&vec![7; 600 * 1024]).await.expect("sent");
        stream.shutdown().await.expect("ended");
        stream
    });
    let mut received = 0;
    while received < 512 * 1024 {
        let (header, data) = peer.frame().await;
        assert_eq!(header.kind, MuxFrameKind::Data);
        assert!(data.len() <= FRAME_BYTES);
        received += data.len();
    }
    assert_eq!(received, 512 * 1024);
    peer.send(MuxFrameKind::WindowUpdate, 0, 1, 88 * 1024).await;
    while received < 600 * 1024 {
        received += peer.frame().await.1.len();
    }
    assert_eq!(peer.frame().await.0.flags, FIN);
    drop(sending.await.expect("no panic"));
}

#[track_caller]
fn check_violation(end: &MuxEnd, expected: MuxViolation) {
    assert_eq!(*end, MuxEnd::Violation(expected));
}

#[tokio::test]
async fn a_violation_ends_the_session_with_a_protocol_error() {
    let (mut peer, session, end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::Data, SYN, 1, WINDOW_BYTES + 1)
        .await;
    let (mut farewell, _) = peer.frame().await;
    // The stream may be acknowledged before its data is read.
    if farewell.flags == ACK {
        (farewell, _) = peer.frame().await;
    }
    assert_eq!((farewell.kind, farewell.length), (MuxFrameKind::GoAway, 1));
    check_violation(
        &ended(end).await,
        MuxViolation::Credit {
            stream: 1,
            credit: WINDOW_BYTES,
            found: WINDOW_BYTES + 1,
        },
    );
    assert!(session.accept().await.is_none());
}

#[tokio::test]
async fn ids_that_the_peer_cannot_open_are_violations() {
    for (side, id) in [
        (MuxSide::Acceptor, 0),
        (MuxSide::Acceptor, 2),
        (MuxSide::Opener, 1),
    ] {
        let (mut peer, _session, end) = FramePeer::new(side, LIMITS);
        peer.send(MuxFrameKind::WindowUpdate, SYN, id, 0).await;
        check_violation(&ended(end).await, MuxViolation::StreamId(id));
    }
    let (mut peer, _session, end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::WindowUpdate, SYN, 1, 0).await;
    peer.send(MuxFrameKind::WindowUpdate, SYN, 1, 0).await;
    check_violation(&ended(end).await, MuxViolation::StreamId(1));
}

#[tokio::test]
async fn garbage_ends_the_session() {
    let (mut peer, _session, end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.0.write_all(b"GET / HTTP/1.1\r\n").await.expect("read");
    check_violation(&ended(end).await, MuxViolation::Version(b'G'));
}

#[tokio::test]
async fn data_of_an_unknown_stream_is_skipped() {
    let (mut peer, _session, _end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::Data, 0, 9, 1000).await;
    peer.0.write_all(&[1; 1000]).await.expect("it is read");
    peer.send(MuxFrameKind::Ping, SYN, 0, 5).await;
    assert_eq!(peer.frame().await.0.length, 5);
}

#[tokio::test]
async fn a_connection_that_ends_in_a_frame_ends_its_streams() {
    let (mut peer, session, end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::WindowUpdate, SYN, 1, 0).await;
    let mut stream = session.accept().await.expect("a stream");
    peer.send(MuxFrameKind::Data, 0, 1, 100).await;
    peer.0.write_all(b"half").await.expect("it is read");
    drop(peer);
    assert_eq!(ended(end).await, MuxEnd::Truncated);
    let mut data = Vec::new();
    assert!(stream.read_to_end(&mut data).await.is_err());
    assert_eq!(data, b"half");
    assert!(session.accept().await.is_none());
}

#[tokio::test]
async fn bytes_that_were_read_before_belong_to_the_session() {
    let (_peer, io) = duplex(PIPE_BYTES);
    let opening = MuxHeader::new(MuxFrameKind::WindowUpdate, SYN, 1, 0).to_bytes();
    let read = Bytes::copy_from_slice(&opening);
    let (session, driver) = multiplex(io, read, MuxSide::Acceptor, LIMITS);
    tokio::spawn(driver);
    let accepted = timeout(WAIT_MAX, session.accept()).await;
    assert!(accepted.expect("in time").is_some());
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_gone() {
    let limits = MuxLimits {
        keep_alive: Duration::from_millis(20),
        write_timeout: Duration::from_millis(200),
        ..LIMITS
    };
    let (mut peer, _session, end) = FramePeer::new(MuxSide::Opener, limits);
    let (ping, _) = peer.frame().await;
    assert_eq!((ping.kind, ping.flags), (MuxFrameKind::Ping, SYN));
    peer.send(MuxFrameKind::Ping, ACK, 0, ping.length).await;
    let (next, _) = peer.frame().await;
    assert_ne!(next.length, ping.length);
    assert_eq!(ended(end).await, MuxEnd::PingLost);
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_gone() {
    let limits = MuxLimits {
        write_timeout: Duration::from_millis(100),
        ..LIMITS
    };
    let (peer, session, end) = FramePeer::new(MuxSide::Opener, limits);
    let mut stream = session.open().expect("a stream");
    let writing = tokio::spawn(async move { stream.write_all(&vec![1; 1 << 20]).await });
    assert_eq!(ended(end).await, MuxEnd::WriteTimedOut);
    assert!(writing.await.expect("no panic").is_err());
    drop(peer);
}

#[tokio::test]
async fn after_go_away_open_streams_continue_and_none_is_opened() {
    let (opener, acceptor) = pair();
    let mut stream = opener.open().expect("a stream");
    stream.write_all(b"one").await.expect("sent");
    let mut accepted = acceptor.accept().await.expect("a stream");
    acceptor.stop_accepting();
    timeout(WAIT_MAX, opener.until_closing())
        .await
        .expect("the announcement arrives");
    assert_eq!(opener.open().expect_err("none"), MuxOpenError::Closed);
    stream.write_all(b"two").await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut text = String::new();
    accepted.read_to_string(&mut text).await.expect("text");
    assert_eq!(text, "onetwo");
}

#[tokio::test]
async fn streams_that_wait_when_a_session_stops_accepting_are_still_accepted() {
    let (mut peer, session, _end) = FramePeer::new(MuxSide::Acceptor, LIMITS);
    peer.send(MuxFrameKind::WindowUpdate, SYN, 1, 0).await;
    let (answer, _) = peer.frame().await;
    assert_eq!((answer.stream, answer.flags), (1, ACK));
    session.stop_accepting();
    let accepting = async {
        assert!(session.accept().await.is_some(), "it was acknowledged");
        assert!(session.accept().await.is_none(), "there are no others");
    };
    timeout(WAIT_MAX, accepting).await.expect("no wait");
}

/// Returns whether the error of a read says that the peer processed nothing of the stream.
async fn is_refused(stream: &mut MuxStream) -> bool {
    let reading = timeout(WAIT_MAX, stream.read_u8()).await;
    let error = reading.expect("an end").expect_err("the stream is aborted");
    error
        .get_ref()
        .is_some_and(|error| error.is::<StreamRefused>())
}

#[tokio::test]
async fn a_stream_that_is_reset_in_place_of_its_acknowledgement_is_refused() {
    let (mut peer, session, _end) = FramePeer::new(MuxSide::Opener, LIMITS);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = session.open().expect("a stream");
        stream.write_all(b"one").await.expect("sent");
        streams.push(stream);
    }
    // The second one is acknowledged, and the third one carries data.
    peer.send(MuxFrameKind::WindowUpdate, ACK, 3, 0).await;
    peer.send(MuxFrameKind::Data, 0, 5, 1).await;
    peer.0.write_all(b"1").await.expect("it is read");
    assert_eq!(streams[2].read_u8().await.expect("data"), b'1');
    for id in [1, 3, 5] {
        peer.send(MuxFrameKind::WindowUpdate, RST, id, 0).await;
    }
    let mut refused = Vec::new();
    for stream in &mut streams {
        refused.push(is_refused(stream).await);
    }
    assert_eq!(refused, [true, false, false]);
    let error = streams[0].write_all(b"two").await.expect_err("no writing");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_stream_that_carried_nothing_when_its_session_ended_is_refused() {
    let (mut peer, session, _end) = FramePeer::new(MuxSide::Opener, LIMITS);
    let mut sent = session.open().expect("a stream");
    sent.write_all(b"one").await.expect("sent");
    while peer.frame().await.1 != b"one" {}
    let mut unsent = session.open().expect("a stream");
    session.close();
    assert!(is_refused(&mut unsent).await);
    assert!(!is_refused(&mut sent).await, "it may have been processed");
}

#[tokio::test]
async fn a_retired_session_opens_no_streams_and_finishes_those_that_it_has() {
    let (opener, acceptor) = pair();
    let mut stream = opener.open().expect("a stream");
    stream.write_all(b"one").await.expect("sent");
    let mut accepted = acceptor.accept().await.expect("a stream");
    opener.retire();
    assert_eq!(opener.open().expect_err("none"), MuxOpenError::Closed);
    timeout(WAIT_MAX, acceptor.until_closing())
        .await
        .expect("the announcement arrives");
    stream.write_all(b"two").await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut text = String::new();
    accepted.read_to_string(&mut text).await.expect("text");
    assert_eq!(text, "onetwo");
}

#[tokio::test]
async fn a_closed_session_tells_its_peer() {
    let (mut peer, session, end) = FramePeer::new(MuxSide::Opener, LIMITS);
    session.close();
    let (farewell, _) = peer.frame().await;
    assert_eq!((farewell.kind, farewell.length), (MuxFrameKind::GoAway, 0));
    assert_eq!(ended(end).await, MuxEnd::Closed);
    assert_eq!(session.end(), Some(MuxEnd::Closed));
    assert_eq!(session.open().expect_err("none"), MuxOpenError::Closed);
}

#[tokio::test]
async fn random_frames_end_a_session_at_worst() {
    const LENGTHS: [u32; 6] = [0, 1, 100, 256 * 1024, WINDOW_BYTES, u32::MAX];
    // A generator of Knuth's: any numbers will do, as long as they are the same each time.
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for side in [MuxSide::Opener, MuxSide::Acceptor] {
        for _ in 0..200 {
            let (mut peer, session, end) = FramePeer::new(side, LIMITS);
            let _opened = session.open();
            for _ in 0..50 {
                let mut bytes = [0; HEADER_BYTES];
                bytes[1] = random(5) as u8;
                bytes[3] = random(16) as u8;
                bytes[7] = random(7) as u8;
                let length = LENGTHS[random(6) as usize];
                bytes[8..].copy_from_slice(&length.to_be_bytes());
                let data = vec![0; length.min(300) as usize];
                // The session may have ended.
                let _ = peer.0.write_all(&bytes).await;
                let _ = peer.0.write_all(&data).await;
            }
            drop(peer);
            ended(end).await;
            assert!(session.end().is_some());
        }
    }
}
