//! The running upstream: where it listens, its scripts, and what it saw. `connection` serves
//! connections; `decide` chooses replies; `socket` plays those on WebSockets.
//! Invariant: when the last [`Upstream`] handle is dropped, listener and connections are closed.

mod connection;
mod decide;
mod socket;
pub(crate) mod stage;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use h2::Reason;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::accounts::account::Account;
use crate::accounts::script::Script;
use crate::logins::login::{Login, Logins};
use crate::requests::seen::{Record, SeenRequest};
use crate::responses::answer::Prepared;
use crate::responses::reply::Reply;
use crate::responses::standing::HeaderForm;
use crate::sockets::seen_socket::{SeenSocket, Sockets};
use crate::sockets::socket_reply::SocketReply;

use connection::accept;
use stage::{Options, Stage, TOKEN_PATH};

/// A running upstream. Clones are the same upstream; it stops when the last is dropped.
#[derive(Clone, Debug)]
pub struct Upstream {
    stage: Arc<Stage>,
    listening: Arc<Listening>,
}

/// The accepting task. Dropping it ends the task and its connections.
#[derive(Debug)]
struct Listening {
    address: SocketAddr,
    task: Mutex<Option<JoinHandle<()>>>,
    record: Arc<Record>,
}

impl Upstream {
    /// Starts on a free port of 127.0.0.1 and records every request.
    ///
    /// # Panics
    /// Panics if there is no port to listen on.
    pub async fn start() -> Self {
        Self::start_with(Options::default())
            .await
            .expect("a free port on 127.0.0.1")
    }

    /// Starts with these options.
    ///
    /// # Errors
    /// Returns an error if it cannot listen on the port.
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
            tls: options.tls,
            go_away: watch::Sender::default(),
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

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.listening.address
    }

    /// Returns the URL for the `chatgpt` endpoint: `http://127.0.0.1:PORT/backend-api`, or `https`
    /// if it serves TLS.
    pub fn chatgpt_url(&self) -> String {
        format!("{}/backend-api", self.api_url())
    }

    /// Returns the URL for the `api` endpoint: `http://127.0.0.1:PORT`, or `https` if it serves
    /// TLS.
    pub fn api_url(&self) -> String {
        let scheme = if self.stage.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address())
    }

    /// Returns the URL for the `token` endpoint: `http://127.0.0.1:PORT/oauth/token`, or `https` if
    /// it serves TLS.
    pub fn token_url(&self) -> String {
        format!("{}{TOKEN_PATH}", self.api_url())
    }

    /// Returns the account of this access token. A new one has nothing used and the plan `plus`.
    pub fn account(&self, access_token: &str, account_id: &str) -> Account {
        self.account_with(access_token, account_id, HeaderForm::Plain)
    }

    /// Returns the account of this API key. Its `id` is `name`, and its responses have no
    /// rate-limit headers.
    pub fn api_key(&self, key: &str, name: &str) -> Account {
        self.account_with(key, name, HeaderForm::Absent)
    }

    /// Creates a login for a new account with nothing used and the plan `plus`.
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

    /// Sets the reply to every turn of accounts without a script.
    pub fn always(&self, reply: Reply) {
        self.stage.script.set_always(Prepared::new(reply));
    }

    /// Sets the reply to every turn on a socket, without prewarms, if the account has no script and
    /// knows the previous response.
    pub fn always_socket(&self, reply: impl Into<SocketReply>) {
        self.stage.socket_script.set_always(reply.into());
    }

    /// Returns every request so far, in order of the arrival of its last byte.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.stage.record.requests()
    }

    /// Returns the turns among [`requests`](Self::requests): POSTs to a model route.
    pub fn turns(&self) -> Vec<SeenRequest> {
        self.requests()
            .into_iter()
            .filter(SeenRequest::is_turn)
            .collect()
    }

    /// Returns the number of requests, recorded or not.
    pub fn request_count(&self) -> usize {
        self.stage.record.counts().requests
    }

    /// Waits until `count` requests of any kind, polls included, have arrived.
    ///
    /// # Panics
    /// Panics after [`WAIT_MAX`](crate::WAIT_MAX), with what was seen instead.
    pub async fn wait_for_requests(&self, count: usize) -> Vec<SeenRequest> {
        self.stage
            .record
            .wait(&format!("{count} requests"), |counts| {
                counts.requests >= count
            })
            .await;
        self.requests()
    }

    /// Waits until `count` turns have arrived.
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

    /// Returns how many requests the client abandoned before upstream had handed over the whole
    /// answer. A reply without gates, pauses or chunks is handed over at once, so use a
    /// [`Gate`](crate::Gate) to see a client leave.
    pub fn abandoned(&self) -> usize {
        self.stage.record.counts().abandoned
    }

    /// Waits until clients have abandoned `count` requests.
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

    /// Returns the codes of the RST_STREAMs that clients have sent so far, over HTTP/2.
    pub fn stream_resets(&self) -> Vec<Reason> {
        self.stage.record.resets()
    }

    /// Ends every HTTP/2 connection gracefully: sends GOAWAY and answers the requests in flight.
    pub fn go_away(&self) {
        self.stage.go_away.send_modify(|times| *times += 1);
    }

    /// Returns every accepted socket so far, in order of its handshake. Rejected handshakes are
    /// only among [`requests`](Self::requests).
    pub fn sockets(&self) -> Vec<SeenSocket> {
        self.stage.sockets.all()
    }

    /// Returns how many sockets are open, recorded or not.
    pub fn open_socket_count(&self) -> usize {
        let counts = self.stage.sockets.counts();
        counts.accepted - counts.ended
    }

    /// Waits until `count` sockets have been accepted.
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

    /// Waits until `count` text and binary messages have arrived, on all sockets together.
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

    /// Waits until the sockets are as `expected` describes and `enough` decides.
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
            // It was aborted, so the only outcome is that it was cancelled.
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
