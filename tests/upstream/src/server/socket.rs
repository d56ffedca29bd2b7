//! A socket after its upgrade: one future reads and records what the client sends, another plays
//! the replies, one after the other. Invariant: the reader waits for no reply, so a reply that
//! waits at a gate hides nothing that the client does.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::HeaderMap;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::accounts::account::Account;
use crate::accounts::script::Script;
use crate::requests::asked::Create;
use crate::requests::seen::SeenRequest;
use crate::responses::events::{self, Event, TurnResponse, filler};
use crate::responses::reply::{End, Turn};
use crate::sockets::handshake::{Messages, Upgrade};
use crate::sockets::seen_socket::{SeenMessage, SocketEnd, Sockets};
use crate::sockets::socket_reply::{NO_CLOSE_CODE, SocketError, SocketReply, SocketStep};
use crate::transport::wire::Wire;
use crate::waits::gate::Gate;

type Frames = WebSocketStream<TokioIo<Upgraded>>;

/// The most turns that wait for the one before; past it the socket is not read.
const TURNS_QUEUED_MAX: usize = 64;
/// Allocated for each socket; small, as there may be thousands.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// A handshake that will be accepted, and everything its socket needs.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) upgrade: OnUpgrade,
    pub(crate) wish: Arc<Upgrade>,
    pub(crate) account: Account,
    /// The upstream-wide reply to a turn, if the account has no script.
    pub(crate) script: Arc<Script<SocketReply>>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) sockets: Arc<Sockets>,
}

/// A socket whose handshake is accepted, as upstream's record knows it.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    opening: Opening,
    index: usize,
}

/// One reply to play.
#[derive(Debug)]
struct Task {
    create: Create,
    /// The reply from the account's script or the upgrade; the default reply if `None`.
    reply: Option<Arc<SocketReply>>,
}

/// What the player does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curtain {
    /// Play the next reply.
    Open,
    /// Wait for the reader, which sees the end.
    Closed,
    Reset,
}

impl Opening {
    /// Returns the header fields of the 101.
    pub(crate) fn head(&self, request: &HeaderMap) -> HeaderMap {
        self.wish.head(request, self.account.rate_limit_headers())
    }

    /// Records the socket, before the client can know of it.
    pub(crate) fn accept(self, request: SeenRequest) -> AcceptedSocket {
        self.account.opened_socket();
        let index = self.sockets.add(self.account.id().to_owned(), request);
        AcceptedSocket {
            opening: self,
            index,
        }
    }
}

impl AcceptedSocket {
    /// Plays until the socket has ended.
    pub(crate) async fn play(self) {
        let AcceptedSocket { opening, index } = self;
        let Opening {
            upgrade,
            wish,
            account,
            script,
            wire,
            sockets,
        } = opening;
        let Ok(upgraded) = upgrade.await else {
            return sockets.ended(index, SocketEnd::Gone);
        };
        let io = TokioIo::new(upgraded);
        let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits()))
            .await
            .split();
        let (asked, tasks) = mpsc::channel(TURNS_QUEUED_MAX);
        let reader = Reader {
            stream,
            sockets: &sockets,
            index,
            account: &account,
            messages: wish.messages,
            asked,
        };
        let player = Player {
            sink,
            wire: &wire,
            account: &account,
            script: &script,
            made: HashSet::new(),
        };
        let end = tokio::select! {
            end = reader.read(wish.reading_gate.clone()) => end,
            () = player.play(wish.greeting.clone(), tasks) => SocketEnd::Reset,
        };
        sockets.ended(index, end);
    }
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(None)
        .max_frame_size(None)
}

struct Reader<'a> {
    stream: SplitStream<Frames>,
    sockets: &'a Sockets,
    index: usize,
    account: &'a Account,
    messages: Messages,
    asked: mpsc::Sender<Task>,
}

impl Reader<'_> {
    async fn read(mut self, gate: Option<Gate>) -> SocketEnd {
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let mut closed = None;
        loop {
            match self.stream.next().await {
                Some(Ok(message)) => closed = self.take(message).await.or(closed),
                Some(Err(error)) => return closed.unwrap_or_else(|| SocketEnd::of(&error)),
                None => return closed.unwrap_or(SocketEnd::Gone),
            }
        }
    }

    /// Returns how the socket will end, if the message decides that.
    async fn take(&mut self, message: Message) -> Option<SocketEnd> {
        match message {
            Message::Text(text) => {
                let text = Bytes::from(text);
                self.sockets
                    .message(self.index, SeenMessage::Text(text.clone()));
                self.ask(self.task(text)).await;
            }
            Message::Binary(payload) => {
                self.sockets
                    .message(self.index, SeenMessage::Binary(payload.clone()));
                if self.messages == Messages::Echoed {
                    self.ask(Some(Task::of(SocketReply::silent().binary(payload))))
                        .await;
                }
            }
            Message::Ping(payload) => self.sockets.ping(self.index, payload),
            Message::Pong(payload) => self.sockets.pong(self.index, payload),
            Message::Close(frame) => return Some(SocketEnd::closed(frame)),
            // Tungstenite writes raw frames and never reads them.
            Message::Frame(_) => {}
        }
        None
    }

    fn task(&self, text: Bytes) -> Option<Task> {
        match self.messages {
            Messages::Echoed => Some(Task::of(SocketReply::silent().text(text))),
            Messages::Answered => {
                let create = Create::read(&text)?;
                let reply = self.account.next_on_socket(&create);
                Some(Task { create, reply })
            }
        }
    }

    async fn ask(&self, task: Option<Task>) {
        if let Some(task) = task {
            // Fails only if the player has ended, and then this future is dropped too.
            let _ = self.asked.send(task).await;
        }
    }
}

impl Task {
    /// A reply to nothing.
    fn of(reply: SocketReply) -> Self {
        Task {
            create: Create::default(),
            reply: Some(Arc::new(reply)),
        }
    }
}

impl SocketEnd {
    fn closed(frame: Option<CloseFrame>) -> Self {
        frame.map_or_else(
            || SocketEnd::Closed {
                code: NO_CLOSE_CODE,
                reason: String::new(),
            },
            |frame| SocketEnd::Closed {
                code: frame.code.into(),
                reason: frame.reason.as_str().to_owned(),
            },
        )
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::Io(_)
            | Error::ConnectionClosed
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => SocketEnd::Gone,
            error => SocketEnd::Violated(error.to_string()),
        }
    }
}

struct Player<'a> {
    sink: SplitSink<Frames, Message>,
    wire: &'a Wire,
    account: &'a Account,
    script: &'a Script<SocketReply>,
    /// The ids of the responses that this socket has made.
    made: HashSet<String>,
}

/// A reply that is being sent, and the request that it belongs to.
struct Performance<'a> {
    reply: &'a SocketReply,
    create: &'a Create,
    id: String,
    text: String,
    usage: String,
    message_told: bool,
    sequence: usize,
}

impl Player<'_> {
    /// Plays every reply. Returns only if the connection must be reset.
    async fn play(mut self, greeting: Option<Arc<SocketReply>>, mut tasks: mpsc::Receiver<Task>) {
        let mut next = greeting.map(|reply| Task {
            create: Create::default(),
            reply: Some(reply),
        });
        loop {
            let task = match next.take() {
                Some(task) => task,
                None => match tasks.recv().await {
                    Some(task) => task,
                    None => return pending().await,
                },
            };
            let reply = task.reply.unwrap_or_else(|| self.natural(&task.create));
            match self.perform(&reply, &task.create).await {
                Ok(Curtain::Open) => {}
                Ok(Curtain::Reset) => return self.wire.reset_on_close(),
                // An error means that the connection has ended.
                Ok(Curtain::Closed) | Err(_) => return pending().await,
            }
        }
    }

    fn natural(&self, create: &Create) -> Arc<SocketReply> {
        if let Some(id) = create
            .previous_response_id
            .as_ref()
            .filter(|id| !self.made.contains(*id))
        {
            return Arc::new(SocketError::previous_response_not_found(id).into());
        }
        if create.is_prewarm {
            return Arc::new(SocketReply::prewarm());
        }
        self.script
            .next()
            .unwrap_or_else(|| Arc::new(SocketReply::ok()))
    }

    async fn perform(&mut self, reply: &SocketReply, create: &Create) -> Result<Curtain, Error> {
        let mut show = Performance::new(reply, create);
        for step in &reply.steps {
            match step {
                SocketStep::Created => self.event(&mut show, |response| response.created()).await?,
                SocketStep::Message => self.message(&mut show).await?,
                SocketStep::End(end) => self.last_event(&mut show, *end).await?,
                SocketStep::Text(payload) => self.data(reply, Data::Text, payload.clone()).await?,
                SocketStep::Binary(payload) => {
                    self.data(reply, Data::Binary, payload.clone()).await?
                }
                SocketStep::Ping(payload) => self.sink.send(Message::Ping(payload.clone())).await?,
                SocketStep::Pong(payload) => self.sink.send(Message::Pong(payload.clone())).await?,
                SocketStep::Raw(bytes) => self.wire.write_bare(bytes).await?,
                SocketStep::Hold(gate) => gate.clone().pass().await,
                SocketStep::Close { code, reason } => {
                    self.sink
                        .send(Message::Close(close_frame(*code, reason)))
                        .await?;
                    return Ok(Curtain::Closed);
                }
                SocketStep::Finish => {
                    self.wire.finish();
                    return Ok(Curtain::Closed);
                }
                SocketStep::Reset => return Ok(Curtain::Reset),
            }
        }
        Ok(Curtain::Open)
    }

    async fn message(&mut self, show: &mut Performance<'_>) -> Result<(), Error> {
        for event in show.response().message_begun() {
            self.numbered(show, event).await?;
        }
        let piece = filler(show.turn().delta_bytes);
        for _ in 0..show.turn().deltas {
            self.numbered(show, events::delta(&piece)).await?;
        }
        show.message_told = true;
        for event in show.response().message_done() {
            self.numbered(show, event).await?;
        }
        Ok(())
    }

    async fn last_event(&mut self, show: &mut Performance<'_>, end: End) -> Result<(), Error> {
        let Some(event) = show.response().ended(end) else {
            return Ok(());
        };
        // Before it is sent: a client that sees the last event sees its use and may name its
        // response.
        if !show.create.is_prewarm {
            self.account.use_one_turn();
        }
        self.made.insert(show.id.clone());
        self.numbered(show, event).await
    }

    async fn event(
        &mut self,
        show: &mut Performance<'_>,
        tell: impl FnOnce(TurnResponse<'_>) -> Event,
    ) -> Result<(), Error> {
        let event = tell(show.response());
        self.numbered(show, event).await
    }

    async fn numbered(&mut self, show: &mut Performance<'_>, event: Event) -> Result<(), Error> {
        let data = event.data(show.sequence);
        show.sequence += 1;
        self.data(show.reply, Data::Text, data.into()).await
    }

    /// Writes a message in the frames that the reply asks for.
    async fn data(
        &mut self,
        reply: &SocketReply,
        kind: Data,
        mut rest: Bytes,
    ) -> Result<(), Error> {
        if let Some(pause) = reply.pause {
            tokio::time::sleep(pause).await;
        }
        let (mut kind, mut sizes) = (kind, reply.fragments.iter().cycle());
        loop {
            let size = sizes
                .next()
                .map_or(rest.len(), |size| rest.len().min(*size));
            let part = rest.split_to(size);
            let last = rest.is_empty();
            self.sink
                .feed(Message::Frame(Frame::message(
                    part,
                    OpCode::Data(kind),
                    last,
                )))
                .await?;
            if last {
                return self.sink.flush().await;
            }
            if let Some(ping) = reply
                .ping_within
                .as_ref()
                .filter(|_| kind != Data::Continue)
            {
                self.sink.feed(Message::Ping(ping.clone())).await?;
            }
            kind = Data::Continue;
        }
    }
}

impl<'a> Performance<'a> {
    fn new(reply: &'a SocketReply, create: &'a Create) -> Self {
        let Turn {
            deltas,
            delta_bytes,
            response_id,
            usage,
            ..
        } = &reply.turn;
        let text = match reply.output_bytes {
            Some(bytes) => filler(bytes),
            None => filler(*delta_bytes).repeat(*deltas),
        };
        Performance {
            reply,
            create,
            id: response_id
                .clone()
                .unwrap_or_else(|| format!("resp_{:032x}", events::next_number())),
            text,
            usage: usage.map_or_else(
                || "null".to_owned(),
                |usage| usage.for_responses().to_string(),
            ),
            message_told: false,
            sequence: 0,
        }
    }

    fn turn(&self) -> &'a Turn {
        &self.reply.turn
    }

    fn response(&self) -> TurnResponse<'_> {
        TurnResponse {
            id: &self.id,
            model: self.turn().model(&self.create.asked),
            service_tier: self.turn().service_tier(&self.create.asked),
            text: self.message_told.then_some(self.text.as_str()),
            usage: &self.usage,
        }
    }
}

fn close_frame(code: u16, reason: &str) -> Option<CloseFrame> {
    let frame = || CloseFrame {
        code: code.into(),
        reason: Utf8Bytes::from(reason.to_owned()),
    };
    (code != NO_CLOSE_CODE).then(frame)
}
