//! The listener, its connections, and the way of a request to its reply; what that is, `decide` says.
//! Invariant: when the last [`Upstream`] handle goes, listener and connections are closed.

mod decide;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::account::Account;
use crate::answer::{Answer, Call, Prepared, Route};
use crate::asked::Asked;
use crate::body::{Broken, ScriptedBody, Underway};
use crate::events;
use crate::handshake::Outcome;
use crate::login::{Login, Logins};
use crate::reply::{Content, Cut, Reply};
use crate::script::Script;
use crate::seen::{Record, SeenRequest};
use crate::seen_socket::{SeenSocket, Sockets};
use crate::socket::{AcceptedSocket, Opening};
use crate::socket_reply::SocketReply;
use crate::standing::HeaderForm;
use crate::wire::{Wire, WireIo};

use decide::{Decided, route};

/// After a failed accept (no file descriptors, usually) the next try waits this long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const HEADER_LIST_BYTES_MAX: u32 = 1 << 20;
const TOKEN_PATH: &str = "/oauth/token";

/// A running upstream. Clones are the same one; it stops when the last is dropped.
#[derive(Clone, Debug)]
pub struct Upstream {
    stage: Arc<Stage>,
    listening: Arc<Listening>,
}

/// How an upstream starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Whether requests are kept.
    pub remember: Remember,
}

/// Whether requests are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remember {
    /// All of them, with their bodies.
    #[default]
    Everything,
    /// Only how many there were: for a bench.
    Counts,
}

/// What every connection shares.
#[derive(Debug)]
struct Stage {
    /// By the token that names each; accounts of logins are not among them.
    accounts: Mutex<HashMap<String, Account>>,
    logins: Logins,
    record: Arc<Record>,
    /// The upstream-wide reply, where an account has none of its own.
    script: Script<Prepared>,
    well: Arc<Prepared>,
    sockets: Arc<Sockets>,
    /// As `script`, for the turns on sockets.
    socket_script: Arc<Script<SocketReply>>,
}

/// A connection's socket, once its handshake has been accepted.
type PendingSocket = Mutex<Option<AcceptedSocket>>;

/// The accepting task; dropping it ends the task, and with it the connections that it holds.
#[derive(Debug)]
struct Listening {
    address: SocketAddr,
    task: Mutex<Option<JoinHandle<()>>>,
    record: Arc<Record>,
}

impl Upstream {
    /// Starts on a free port of 127.0.0.1, remembering every request.
    ///
    /// # Panics
    /// If there is no port to listen on.
    pub async fn start() -> Self {
        Self::start_with(Options::default())
            .await
            .expect("a free port on 127.0.0.1")
    }

    /// Starts as told.
    ///
    /// # Errors
    /// If the port can't be listened on.
    pub async fn start_with(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record::new(options.remember));
        let stage = Arc::new(Stage {
            accounts: Mutex::default(),
            logins: Logins::default(),
            record: Arc::clone(&record),
            script: Script::default(),
            well: Arc::new(Prepared::new(Reply::ok())),
            sockets: Arc::new(Sockets::new(options.remember)),
            socket_script: Arc::default(),
        });
        let task = Mutex::new(Some(tokio::spawn(accept(listener, Arc::clone(&stage)))));
        Ok(Upstream {
            stage,
            listening: Arc::new(Listening {
                address,
                task,
                record,
            }),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// For the `chatgpt` endpoint: `http://127.0.0.1:PORT/backend-api`.
    pub fn chatgpt_url(&self) -> String {
        format!("http://{}/backend-api", self.address())
    }

    /// For the `api` endpoint: `http://127.0.0.1:PORT`.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// For the `token` endpoint: `http://127.0.0.1:PORT/oauth/token`.
    pub fn token_url(&self) -> String {
        format!("http://{}{TOKEN_PATH}", self.address())
    }

    /// The account that this access token names; made if it is new, with nothing used and the plan `plus`.
    pub fn account(&self, access_token: &str, account_id: &str) -> Account {
        self.account_with(access_token, account_id, HeaderForm::Plain)
    }

    /// The account that this API key names. Its `id` is `name`; it tells no rate-limit windows.
    pub fn api_key(&self, key: &str, name: &str) -> Account {
        self.account_with(key, name, HeaderForm::Absent)
    }

    /// A new login, for an account of its own with nothing used and the plan `plus`.
    pub fn login(&self, account_id: &str) -> Login {
        self.stage
            .logins
            .add(Account::new(account_id, HeaderForm::Plain))
    }

    fn account_with(&self, token: &str, id: &str, form: HeaderForm) -> Account {
        let mut accounts = self
            .stage
            .accounts
            .lock()
            .expect("no holder of the accounts panics");
        accounts
            .entry(token.to_owned())
            .or_insert_with(|| Account::new(id, form))
            .clone()
    }

    /// The reply to every turn of every account that has no script of its own.
    pub fn always(&self, reply: Reply) {
        self.stage.script.set_always(Prepared::new(reply));
    }

    /// The reply to every turn on a socket, prewarms left out, where the account has no script of its own and knows
    /// the previous response.
    pub fn always_socket(&self, reply: impl Into<SocketReply>) {
        self.stage.socket_script.set_always(reply.into());
    }

    /// Every request so far, in order of arrival (of its last byte).
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.stage.record.requests()
    }

    /// The turns among [`requests`](Self::requests): POSTs to a model route.
    pub fn turns(&self) -> Vec<SeenRequest> {
        self.requests()
            .into_iter()
            .filter(SeenRequest::is_turn)
            .collect()
    }

    /// How many requests there were, kept or not.
    pub fn request_count(&self) -> usize {
        self.stage.record.counts().requests
    }

    /// Waits until there were `count` requests of any kind, polls too.
    ///
    /// # Panics
    /// After [`WAIT_MAX`](crate::WAIT_MAX), with what was seen instead.
    pub async fn wait_for_requests(&self, count: usize) -> Vec<SeenRequest> {
        self.stage
            .record
            .wait(&format!("{count} requests"), |counts| {
                counts.requests >= count
            })
            .await;
        self.requests()
    }

    /// Waits until there were `count` turns.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_turns(&self, count: usize) -> Vec<SeenRequest> {
        self.stage
            .record
            .wait(&format!("{count} turns"), |counts| counts.turns >= count)
            .await;
        self.turns()
    }

    /// How many requests the client left before upstream had handed over all of the answer. A reply without gates,
    /// pauses or chunks is handed over whole, so use a [`Gate`](crate::Gate) to see a client leave.
    pub fn abandoned(&self) -> usize {
        self.stage.record.counts().abandoned
    }

    /// Waits until clients left `count` requests unfinished.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_abandoned(&self, count: usize) {
        self.stage
            .record
            .wait(&format!("{count} abandoned requests"), |counts| {
                counts.abandoned >= count
            })
            .await;
    }

    /// Every accepted socket so far, in order of its handshake. Refused handshakes are among
    /// [`requests`](Self::requests) only.
    pub fn sockets(&self) -> Vec<SeenSocket> {
        self.stage.sockets.all()
    }

    /// How many sockets are open now, kept or not.
    pub fn open_socket_count(&self) -> usize {
        let counts = self.stage.sockets.counts();
        counts.accepted - counts.ended
    }

    /// Waits until `count` sockets were accepted.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_sockets(&self, count: usize) -> Vec<SeenSocket> {
        self.stage
            .sockets
            .wait(&format!("{count} sockets"), |counts| {
                counts.accepted >= count
            })
            .await;
        self.sockets()
    }

    /// Waits until `count` text and binary messages came, on all sockets together.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_socket_messages(&self, count: usize) -> Vec<SeenSocket> {
        self.stage
            .sockets
            .wait(&format!("{count} messages"), |counts| {
                counts.messages >= count
            })
            .await;
        self.sockets()
    }

    /// Waits until `count` sockets have ended.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_sockets_ended(&self, count: usize) -> Vec<SeenSocket> {
        self.stage
            .sockets
            .wait(&format!("{count} ended sockets"), |counts| {
                counts.ended >= count
            })
            .await;
        self.sockets()
    }

    /// Waits until the sockets are as `expected` says and `enough` finds: of one socket, or for pings.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_until_sockets(
        &self,
        expected: &str,
        enough: impl FnMut(&[SeenSocket]) -> bool,
    ) -> Vec<SeenSocket> {
        self.stage.sockets.wait_until(expected, enough).await;
        self.sockets()
    }

    /// Closes the listener and every connection; both are closed when this returns.
    pub async fn stop(&self) {
        let task = self.listening.end();
        if let Some(task) = task {
            // It was just told to end, so the only outcome is that it was cancelled.
            let _ = task.await;
        }
    }
}

impl Listening {
    fn end(&self) -> Option<JoinHandle<()>> {
        self.record.stopping();
        let task = self
            .task
            .lock()
            .expect("no holder of the task panics")
            .take();
        task.inspect(JoinHandle::abort)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end();
    }
}

async fn accept(listener: TcpListener, stage: Arc<Stage>) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    connections.spawn(converse(stream, number, Arc::clone(&stage)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, number: u64, stage: Arc<Stage>) {
    let wire = Arc::new(Wire::new(number, stream));
    let io = TokioIo::new(WireIo(Arc::clone(&wire)));
    let socket = Arc::new(PendingSocket::default());
    let service = service_fn({
        let socket = Arc::clone(&socket);
        move |request| {
            stage
                .clone()
                .serve(Arc::clone(&wire), Arc::clone(&socket), request)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_header_list_size(HEADER_LIST_BYTES_MAX);
    // An error here is the client's leaving or a break that the script asked for; the record tells them apart.
    let _ = builder.serve_connection_with_upgrades(io, service).await;
    let socket = socket.lock().expect("no holder of a socket panics").take();
    // In this task, so that the socket ends with the upstream.
    if let Some(socket) = socket {
        socket.play().await;
    }
}

impl Stage {
    async fn serve(
        self: Arc<Self>,
        wire: Arc<Wire>,
        socket: Arc<PendingSocket>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ScriptedBody>, Broken> {
        let mut underway = Underway::new(Arc::clone(&self.record));
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let route = route(&head.method, head.uri.path(), &head.headers);
        let asked = Asked::read(&head.headers, &body);
        let Decided {
            account,
            outcome,
            body: told,
        } = match route {
            Some(Route::Token) => self.logins.redeem(&head.headers, &body).into(),
            _ => self.decide(route, &head.headers, asked.as_ref()),
        };
        let seen = SeenRequest {
            method: head.method,
            target: head
                .uri
                .path_and_query()
                .map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: head.headers,
            body,
            account: account.as_ref().map(|account| account.id().to_owned()),
            connection: wire.number,
            version: head.version,
        };
        self.record.add(seen.clone());
        if let (Some(account), Some(route)) = (&account, route) {
            account.saw(route);
        }
        let prepared = match outcome {
            Outcome::Response(prepared) => prepared,
            Outcome::Upgrade(wish) => {
                let account = account.expect("only an account's own handshake is accepted");
                let opening = Opening {
                    upgrade,
                    wish,
                    account,
                    script: Arc::clone(&self.socket_script),
                    wire,
                    sockets: Arc::clone(&self.sockets),
                };
                return Ok(accept_socket(opening, seen, &socket, underway).await);
            }
        };
        if let Some(gate) = &prepared.reply.head_gate {
            gate.clone().pass().await;
        }
        break_before_head(&prepared.reply, &wire, &mut underway).await?;
        let call = call(
            route,
            account.as_ref(),
            &prepared.reply,
            asked.unwrap_or_default(),
        );
        Ok(respond(
            prepared.answer(Call {
                body: told.or(call.body),
                ..call
            }),
            wire,
            underway,
        ))
    }
}

/// Ends the connection in place of an answer, if the reply says so.
async fn break_before_head(
    reply: &Reply,
    wire: &Wire,
    underway: &mut Underway,
) -> Result<(), Broken> {
    if let Content::Garbage(bytes) = &reply.content {
        // The client may close at the first strange byte; that is its right.
        let _ = wire.write_bare(bytes).await;
    } else if reply.cut != Some(Cut::BeforeHead) {
        return Ok(());
    }
    underway.finish();
    Err(Broken::now(wire, reply.cut_by))
}

fn call(route: Option<Route>, account: Option<&Account>, reply: &Reply, asked: Asked) -> Call {
    let turn = route.is_some_and(Route::is_turn);
    if let (Some(account), true, true) = (account, turn, reply.status.is_success()) {
        account.use_one_turn();
    }
    Call {
        // A request without a route has an error for a reply, which looks at no route.
        route: route.unwrap_or(Route::Models),
        asked,
        body: account
            .filter(|_| route == Some(Route::Usage))
            .map(|account| account.standing().usage_body()),
        rate_limits: account.map(Account::rate_limit_headers).unwrap_or_default(),
        number: events::next_number(),
    }
}

/// Accepts the socket and leaves it in `pending`, to be played once hyper is done with the connection.
async fn accept_socket(
    opening: Opening,
    seen: SeenRequest,
    pending: &PendingSocket,
    underway: Underway,
) -> Response<ScriptedBody> {
    if let Some(gate) = &opening.wish.head_gate {
        gate.clone().pass().await;
    }
    let body = ScriptedBody::new(VecDeque::new(), None, Arc::clone(&opening.wire), underway);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = opening.head(&seen.headers);
    *pending.lock().expect("no holder of a socket panics") = Some(opening.accept(seen));
    response
}

fn respond(answer: Answer, wire: Arc<Wire>, underway: Underway) -> Response<ScriptedBody> {
    let mut response = Response::new(ScriptedBody::new(
        answer.steps,
        answer.length,
        wire,
        underway,
    ));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
