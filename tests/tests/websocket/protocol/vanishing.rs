//! Peers that vanish.

use tollgate_tests::frames::{BINARY, FIN, Length, TEXT, frame, lying, text};
use tollgate_tests::upstream::{SocketEnd, SocketReply};
use tollgate_tests::{EchoScene, Event};

use super::{closed, echo, exchange};

#[derive(Clone, Copy, Debug)]
enum Vanish {
    Fin,
    Reset,
}

const WAYS: [Vanish; 2] = [Vanish::Fin, Vanish::Reset];

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_to_upstream_closes_if_the_client_vanishes() {
    let mut scene = EchoScene::new().await;
    let whole = text("a message");
    let cases: [(&str, &[u8]); 5] = [
        ("between messages", &whole),
        ("within a header", &whole[..3]),
        ("within a payload", &whole[..whole.len() - 1]),
        ("between fragments", &frame(TEXT, b"half")),
        (
            "a length that lies",
            &lying(FIN | BINARY, Length::Eight(1 << 20), b"a little"),
        ),
    ];
    for (name, sent) in cases {
        for way in WAYS {
            let mut socket = scene.socket().await;
            socket.send_raw(sent).await;
            match way {
                Vanish::Reset => socket.reset(),
                Vanish::Fin => {
                    socket.finish().await;
                    if sent == whole {
                        // Its echo may still come before the end.
                        while socket.next().await != Event::Gone {}
                    } else {
                        assert_eq!(socket.next().await, Event::Gone, "{name}");
                    }
                }
            }
            let seen = scene
                .rig
                .upstream
                .wait_for_sockets_ended(scene.opened)
                .await;
            let end = seen.last().and_then(|socket| socket.end.clone());
            assert_eq!(end, Some(SocketEnd::Gone), "{name}, {way:?}");
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_vanishes_between_frames_is_1011_and_within_one_a_cut() {
    let mut scene = EchoScene::new().await;
    let cases: [(&str, &[u8], &[Event]); 5] = [
        ("before anything", b"", &[closed(1011), Event::Gone]),
        (
            "between messages",
            b"\x81\x02hi",
            &[echo("hi"), closed(1011), Event::Gone],
        ),
        (
            "between fragments",
            b"\x01\x02hi",
            &[closed(1011), Event::Gone],
        ),
        ("within a header", b"\x81", &[Event::Gone]),
        ("within a payload", b"\x81\x7dhi", &[Event::Gone]),
    ];
    for (name, sent, expected) in cases {
        for way in WAYS {
            let reply = SocketReply::silent().raw(sent);
            let reply = match way {
                Vanish::Fin => reply.finish(),
                Vanish::Reset => reply.reset(),
            };
            let mut socket = scene.greeted(reply).await;
            let found = exchange(&mut socket, b"", 1, expected.len()).await;
            assert_eq!(found, expected, "{name}, {way:?}");
        }
    }
    scene.end().await;
}
