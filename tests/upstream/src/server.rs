//! The listener, its connections, and the way of a request from its route to its reply.
//! Invariant: when the last [`Upstream`] handle goes, listener and connections are closed.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::account::Account;
use crate::answer::{Answer, Call, Prepared, Route};
use crate::asked::Asked;
use crate::body::{Broken, ScriptedBody, Underway};
use crate::login::{Access, Login, Logins, Redeemed};
use crate::reply::{Content, Cut, Reply};
use crate::script::Script;
use crate::seen::{Record, SeenRequest};
use crate::standing::HeaderForm;
use crate::wire::{Wire, WireIo};

/// After a failed accept (no file descriptors, usually) the next try waits this long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const HEADER_LIST_BYTES_MAX: u32 = 1 << 20;
const TOKEN_PATH: &str = "/oauth/token";

/// Where response numbers come from; one for the process, so that ids differ between upstreams too.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

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
}

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
        Self::start_with(Options::default()).await.expect("a free port on 127.0.0.1")
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
        });
        let task = Mutex::new(Some(tokio::spawn(accept(listener, Arc::clone(&stage)))));
        Ok(Upstream { stage, listening: Arc::new(Listening { address, task, record }) })
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
        self.stage.logins.add(Account::new(account_id, HeaderForm::Plain))
    }

    fn account_with(&self, token: &str, id: &str, form: HeaderForm) -> Account {
        let mut accounts = self.stage.accounts.lock().expect("no holder of the accounts panics");
        accounts.entry(token.to_owned()).or_insert_with(|| Account::new(id, form)).clone()
    }

    /// The reply to every turn of every account that has no script of its own.
    pub fn always(&self, reply: Reply) {
        self.stage.script.set_always(Prepared::new(reply));
    }

    /// Every request so far, in order of arrival (of its last byte).
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.stage.record.requests()
    }

    /// The turns among [`requests`](Self::requests): POSTs to a model route.
    pub fn turns(&self) -> Vec<SeenRequest> {
        self.requests().into_iter().filter(SeenRequest::is_turn).collect()
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
        self.stage.record.wait(&format!("{count} requests"), |counts| counts.requests >= count).await;
        self.requests()
    }

    /// Waits until there were `count` turns.
    ///
    /// # Panics
    /// As [`wait_for_requests`](Self::wait_for_requests).
    pub async fn wait_for_turns(&self, count: usize) -> Vec<SeenRequest> {
        self.stage.record.wait(&format!("{count} turns"), |counts| counts.turns >= count).await;
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
        self.stage.record.wait(&format!("{count} abandoned requests"), |counts| counts.abandoned >= count).await;
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
        let task = self.task.lock().expect("no holder of the task panics").take();
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
    let service = service_fn(move |request| stage.clone().serve(Arc::clone(&wire), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_header_list_size(HEADER_LIST_BYTES_MAX);
    // An error here is the client's leaving or a break that the script asked for; the record tells them apart.
    let _ = builder.serve_connection(io, service).await;
}

impl Stage {
    async fn serve(
        self: Arc<Self>,
        wire: Arc<Wire>,
        request: Request<Incoming>,
    ) -> Result<Response<ScriptedBody>, Broken> {
        let mut underway = Underway::new(Arc::clone(&self.record));
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let route = route(&head.method, head.uri.path());
        let asked = Asked::read(&head.headers, &body);
        let Decided { account, prepared, body: told } = match route {
            Some(Route::Token) => self.logins.redeem(&head.headers, &body).into(),
            _ => self.decide(route, &head.headers, asked.as_ref()),
        };
        self.record.add(SeenRequest {
            method: head.method,
            target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: head.headers,
            body,
            account: account.as_ref().map(|account| account.id().to_owned()),
            connection: wire.number,
            version: head.version,
        });
        if let (Some(account), Some(route)) = (&account, route) {
            account.saw(route);
        }
        if let Some(gate) = &prepared.reply.head_gate {
            gate.clone().pass().await;
        }
        break_before_head(&prepared.reply, &wire, &mut underway).await?;
        let call = call(route, account.as_ref(), &prepared.reply, asked.unwrap_or_default());
        Ok(respond(prepared.answer(Call { body: told.or(call.body), ..call }), wire, underway))
    }

    fn decide(&self, route: Option<Route>, headers: &HeaderMap, asked: Option<&Asked>) -> Decided {
        let bearer = self.bearer(headers);
        let prepared = match admit(route, bearer.as_ref(), headers) {
            Ok((route, account)) => self.choose(route, account, asked),
            Err(refusal) => refusal,
        };
        Decided { account: bearer.map(|(account, _)| account), prepared, body: None }
    }

    /// The account that the bearer token names, and whether the token is taken.
    fn bearer(&self, headers: &HeaderMap) -> Option<(Account, Access)> {
        let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        let account = self.accounts.lock().expect("no holder of the accounts panics").get(token).cloned();
        account.map(|account| (account, Access::Granted)).or_else(|| self.logins.bearer(token))
    }

    fn choose(&self, route: Route, account: &Account, asked: Option<&Asked>) -> Arc<Prepared> {
        let scripted = match route {
            Route::Responses | Route::Compact | Route::ChatCompletions => {
                account.next_turn().or_else(|| self.script.next())
            }
            Route::Usage => account.next_poll(),
            Route::Models | Route::CodexModels | Route::Token => None,
        };
        if let Some(scripted) = scripted {
            return scripted;
        }
        // Only where nothing was scripted: a script answers whatever the body is.
        if route.is_turn() && asked.is_none() {
            return error(400, "invalid_request_error", "We could not parse the JSON body of your request.");
        }
        Arc::clone(&self.well)
    }
}

/// Route and account of a request that is to be answered, or the refusal.
fn admit<'a>(
    route: Option<Route>,
    bearer: Option<&'a (Account, Access)>,
    headers: &HeaderMap,
) -> Result<(Route, &'a Account), Arc<Prepared>> {
    let Some(route) = route else {
        return Err(error(404, "invalid_request_error", "no such path on the scripted upstream"));
    };
    let account = match bearer {
        Some((account, Access::Granted)) => account,
        Some((_, Access::Refused)) => return Err(token_expired()),
        None => return Err(error(401, "invalid_request_error", "Incorrect API key or access token provided.")),
    };
    let named = headers.get("chatgpt-account-id");
    if named.is_some_and(|id| id.as_bytes() != account.id().as_bytes()) {
        return Err(error(401, "invalid_request_error", "The account id is not that of the token."));
    }
    Ok((route, account))
}

/// What a request will be answered, and whose it is. Decided at once when its body is there, so that a client that
/// leaves before the answer has still changed what it asked to change.
struct Decided {
    account: Option<Account>,
    prepared: Arc<Prepared>,
    /// The tokens that a refresh brings.
    body: Option<Value>,
}

impl From<Redeemed> for Decided {
    fn from(Redeemed { account, reply, body }: Redeemed) -> Self {
        Decided { account, prepared: Arc::new(Prepared::new(reply)), body }
    }
}

fn route(method: &Method, path: &str) -> Option<Route> {
    match (method, path) {
        (&Method::POST, "/backend-api/codex/responses" | "/v1/responses") => Some(Route::Responses),
        (&Method::POST, "/backend-api/codex/responses/compact" | "/v1/responses/compact") => Some(Route::Compact),
        (&Method::POST, "/v1/chat/completions") => Some(Route::ChatCompletions),
        (&Method::GET, "/v1/models") => Some(Route::Models),
        (&Method::GET, "/backend-api/codex/models") => Some(Route::CodexModels),
        (&Method::GET, "/backend-api/wham/usage") => Some(Route::Usage),
        (&Method::POST, TOKEN_PATH) => Some(Route::Token),
        _ => None,
    }
}

fn error(status: u16, error_type: &str, message: &str) -> Arc<Prepared> {
    Arc::new(Prepared::new(Reply::error(status, error_type, message)))
}

fn token_expired() -> Arc<Prepared> {
    let message = "Provided authentication token is expired. Please try signing in again.";
    let reply = Reply::error(401, "invalid_request_error", message).error_field("code", json!("token_expired"));
    Arc::new(Prepared::new(reply.without_rate_limits()))
}

/// Ends the connection in place of an answer, if the reply says so.
async fn break_before_head(reply: &Reply, wire: &Wire, underway: &mut Underway) -> Result<(), Broken> {
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
        body: account.filter(|_| route == Some(Route::Usage)).map(|account| account.standing().usage_body()),
        rate_limits: account.map(Account::rate_limit_headers).unwrap_or_default(),
        number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
    }
}

fn respond(answer: Answer, wire: Arc<Wire>, underway: Underway) -> Response<ScriptedBody> {
    let mut response = Response::new(ScriptedBody::new(answer.steps, answer.length, wire, underway));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
