//! A response's body as a list of steps: bytes, waits, and an end that may be abrupt.
//! Invariant: a body dropped before its last step counts as abandoned by the client, exactly once.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use hyper::body::{Body, Frame, SizeHint};

use crate::requests::seen::Record;
use crate::transport::http2_side::Ending;
use crate::transport::wire::Wire;
use crate::waits::gate::Gate;

/// One step of a body.
#[derive(Debug)]
pub(crate) enum Step {
    /// Hands bytes to the connection.
    Send(Bytes),
    /// Waits until a test opens the gate.
    Hold(Gate),
    /// Waits for a time.
    Pause(Duration),
    /// Waits until all bytes so far are written.
    Flush,
    /// Ends the connection here.
    Break(Break),
}

/// How a response is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The connection ends by FIN.
    Close,
    /// The connection ends by RST.
    Reset,
    /// The stream ends by RST_STREAM. Over HTTP/1.1, as `Close`.
    ResetStream(Reason),
    /// GOAWAY goes out. Over HTTP/1.1, as `Close`.
    GoAway(Reason),
}

/// Counts a request as abandoned if it is dropped before `finish`.
#[derive(Debug)]
pub(crate) struct Underway {
    record: Arc<Record>,
    finished: bool,
}

impl Underway {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Underway {
            record,
            finished: false,
        }
    }

    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.finished {
            self.record.abandoned();
        }
    }
}

/// The body that hyper sends.
pub(crate) struct ScriptedBody {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    length: Option<u64>,
    wire: Arc<Wire>,
    underway: Underway,
}

impl ScriptedBody {
    /// `length` becomes the Content-Length; without it HTTP/1.1 sends chunks.
    pub(crate) fn new(
        steps: VecDeque<Step>,
        length: Option<u64>,
        wire: Arc<Wire>,
        underway: Underway,
    ) -> Self {
        let mut body = ScriptedBody {
            steps,
            waiting: None,
            length,
            wire,
            underway,
        };
        body.finish_if_done();
        body
    }

    fn finish_if_done(&mut self) {
        if self.steps.is_empty() && self.waiting.is_none() {
            self.underway.finish();
        }
    }

    fn wait_for(&mut self, event: impl Future<Output = ()> + Send + 'static) {
        self.waiting = Some(Box::pin(event));
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = &mut this.waiting {
                ready!(event.as_mut().poll(cx));
                this.waiting = None;
                this.finish_if_done();
            }
            match this.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Send(bytes)) => {
                    this.finish_if_done();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Step::Hold(gate)) => this.wait_for(gate.pass()),
                Some(Step::Pause(time)) => this.wait_for(tokio::time::sleep(time)),
                Some(Step::Flush) => this.wait_for(Arc::clone(&this.wire).wait_for_flush()),
                Some(Step::Break(how)) => {
                    this.underway.finish();
                    if let (Break::GoAway(reason), Some(side)) = (how, this.wire.http2()) {
                        side.go_away(side.newest_stream(), reason);
                        side.end(Ending::AfterFlush);
                        // The connection's end is what ends this body.
                        return Poll::Pending;
                    }
                    return Poll::Ready(Some(Err(Broken::now(&this.wire, how))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The error that makes hyper drop the connection, or over HTTP/2 the stream.
#[derive(Debug)]
pub(crate) struct Broken(Option<h2::Error>);

impl Broken {
    /// The client broke off its request.
    pub(crate) fn by_client() -> Self {
        Broken(None)
    }

    pub(crate) fn now(wire: &Wire, how: Break) -> Self {
        match how {
            Break::Close | Break::GoAway(_) => {}
            Break::Reset => wire.reset_on_close(),
            Break::ResetStream(reason) => return Broken(Some(reason.into())),
        }
        if let Some(side) = wire.http2() {
            side.end(Ending::Now);
        }
        Broken(None)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the script breaks the response here")
    }
}

impl std::error::Error for Broken {
    /// hyper takes the code of its RST_STREAM from here.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|error| error as _)
    }
}
