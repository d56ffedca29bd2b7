//! One account: its standing, its scripted replies, and how many requests came with its tokens.

use std::sync::{Arc, Mutex};

use http::HeaderMap;

use crate::accounts::script::Script;
use crate::requests::asked::Create;
use crate::responses::answer::{Prepared, Route};
use crate::responses::reply::Reply;
use crate::responses::standing::{HeaderForm, Standing};
use crate::sockets::handshake::{Handshake, Outcome, Upgrade};
use crate::sockets::socket_reply::SocketReply;
use crate::waits::count::Count;

/// A handle on an account. Clones are the same account.
#[derive(Clone, Debug)]
pub struct Account {
    state: Arc<AccountState>,
}

#[derive(Debug)]
struct AccountState {
    id: String,
    standing: Mutex<Told>,
    turns: Script<Prepared>,
    polls: Script<Prepared>,
    handshakes: Script<Handshake>,
    socket_turns: Script<SocketReply>,
    prewarms: Script<SocketReply>,
    turn_count: Count,
    poll_count: Count,
    token_post_count: Count,
    handshake_count: Count,
    socket_count: Count,
    socket_turn_count: Count,
}

/// The standing and its headers, which always match it.
#[derive(Debug)]
struct Told {
    standing: Standing,
    headers: HeaderMap,
}

impl Account {
    pub(crate) fn new(id: &str, header_form: HeaderForm) -> Self {
        let standing = Standing::new("plus").header_form(header_form);
        let headers = standing.headers();
        let state = AccountState {
            id: id.to_owned(),
            standing: Mutex::new(Told { standing, headers }),
            turns: Script::default(),
            polls: Script::default(),
            handshakes: Script::default(),
            socket_turns: Script::default(),
            prewarms: Script::default(),
            turn_count: Count::default(),
            poll_count: Count::default(),
            token_post_count: Count::default(),
            handshake_count: Count::default(),
            socket_count: Count::default(),
            socket_turn_count: Count::default(),
        };
        Account {
            state: Arc::new(state),
        }
    }

    /// The account's id: what `ChatGPT-Account-Id` must say, if it says anything.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// Returns the current standing.
    pub fn standing(&self) -> Standing {
        self.told().standing.clone()
    }

    /// Replaces the standing. Responses whose head was not sent yet report the new one.
    pub fn set_standing(&self, standing: Standing) {
        let headers = standing.headers();
        *self.told() = Told { standing, headers };
    }

    /// Queues the reply to one turn (a POST to a model route). Queued replies precede
    /// [`always`](Self::always).
    pub fn then(&self, reply: Reply) -> &Self {
        self.state.turns.push(Prepared::new(reply));
        self
    }

    /// Sets the reply to every turn for which nothing is queued.
    pub fn always(&self, reply: Reply) -> &Self {
        self.state.turns.set_always(Prepared::new(reply));
        self
    }

    /// Removes all scripted replies: turns succeed again.
    pub fn clear_script(&self) -> &Self {
        self.state.turns.clear();
        self.state.polls.clear();
        self.state.handshakes.clear();
        self.state.socket_turns.clear();
        self.state.prewarms.clear();
        self
    }

    /// Queues the answer to one WebSocket handshake: a [`Reply`], or an [`Upgrade`] with something
    /// unusual about it. Queued answers precede [`always_handshake`](Self::always_handshake).
    pub fn then_handshake(&self, handshake: impl Into<Handshake>) -> &Self {
        self.state.handshakes.push(handshake.into());
        self
    }

    /// Sets the answer to every handshake for which nothing is queued.
    pub fn always_handshake(&self, handshake: impl Into<Handshake>) -> &Self {
        self.state.handshakes.set_always(handshake.into());
        self
    }

    /// Queues the reply to one `response.create`, on any of the account's sockets; prewarms do not
    /// count. Queued replies precede [`always_socket`](Self::always_socket).
    pub fn then_socket(&self, reply: impl Into<SocketReply>) -> &Self {
        self.state.socket_turns.push(reply.into());
        self
    }

    /// Sets the reply to every `response.create` for which nothing is queued. A scripted reply
    /// ignores the previous response id.
    pub fn always_socket(&self, reply: impl Into<SocketReply>) -> &Self {
        self.state.socket_turns.set_always(reply.into());
        self
    }

    /// Queues the reply to one prewarm: a `response.create` whose `generate` is false.
    pub fn then_for_prewarm(&self, reply: impl Into<SocketReply>) -> &Self {
        self.state.prewarms.push(reply.into());
        self
    }

    /// Sets the reply to every prewarm for which nothing is queued.
    pub fn always_for_prewarm(&self, reply: impl Into<SocketReply>) -> &Self {
        self.state.prewarms.set_always(reply.into());
        self
    }

    /// Queues the reply to one `GET /backend-api/wham/usage`.
    pub fn then_for_poll(&self, reply: Reply) -> &Self {
        self.state.polls.push(Prepared::new(reply));
        self
    }

    /// Sets the reply to every poll for which nothing is queued.
    pub fn always_for_poll(&self, reply: Reply) -> &Self {
        self.state.polls.set_always(Prepared::new(reply));
        self
    }

    /// Returns how many turns came with a token of this account, rejected ones included.
    pub fn turn_count(&self) -> usize {
        self.state.turn_count.now()
    }

    /// Returns how many polls (`GET /backend-api/wham/usage`) came with a token of this account,
    /// rejected ones included.
    pub fn poll_count(&self) -> usize {
        self.state.poll_count.now()
    }

    /// Waits until `count` polls came with a token of this account.
    ///
    /// # Panics
    /// Panics after [`WAIT_MAX`](crate::WAIT_MAX), with what was seen instead.
    pub async fn wait_for_polls(&self, count: usize) {
        self.state
            .poll_count
            .wait_for(count, &format!("polls of {}", self.id()))
            .await;
    }

    /// Returns how many WebSocket handshakes came with a token of this account, rejected ones
    /// included.
    pub fn handshake_count(&self) -> usize {
        self.state.handshake_count.now()
    }

    /// Returns how many of its handshakes were accepted.
    pub fn socket_count(&self) -> usize {
        self.state.socket_count.now()
    }

    /// Returns how many `response.create` came on its sockets, without prewarms.
    pub fn socket_turn_count(&self) -> usize {
        self.state.socket_turn_count.now()
    }

    pub(crate) fn token_post_count(&self) -> usize {
        self.state.token_post_count.now()
    }

    pub(crate) async fn wait_for_token_posts(&self, count: usize) {
        self.state
            .token_post_count
            .wait_for(count, &format!("token posts of {}", self.id()))
            .await;
    }

    /// Counts a request that was recorded.
    pub(crate) fn saw(&self, route: Route) {
        match route {
            Route::Responses | Route::Compact | Route::ChatCompletions => {
                self.state.turn_count.add_one()
            }
            Route::Usage => self.state.poll_count.add_one(),
            Route::Token => self.state.token_post_count.add_one(),
            Route::Socket => self.state.handshake_count.add_one(),
            Route::Models | Route::CodexModels => {}
        }
    }

    pub(crate) fn next_turn(&self) -> Option<Arc<Prepared>> {
        self.state.turns.next()
    }

    pub(crate) fn next_poll(&self) -> Option<Arc<Prepared>> {
        self.state.polls.next()
    }

    pub(crate) fn next_handshake(&self) -> Outcome {
        let scripted = self
            .state
            .handshakes
            .next()
            .map(|handshake| handshake.0.clone());
        scripted.unwrap_or_else(|| Outcome::Upgrade(Arc::new(Upgrade::new())))
    }

    pub(crate) fn opened_socket(&self) {
        self.state.socket_count.add_one();
    }

    /// Counts a `response.create` and returns the reply scripted for it.
    pub(crate) fn next_on_socket(&self, create: &Create) -> Option<Arc<SocketReply>> {
        if create.is_prewarm {
            return self.state.prewarms.next();
        }
        self.state.socket_turn_count.add_one();
        self.state.socket_turns.next()
    }

    pub(crate) fn rate_limit_headers(&self) -> HeaderMap {
        self.told().headers.clone()
    }

    pub(crate) fn use_one_turn(&self) {
        let mut told = self.told();
        if told.standing.use_one_turn() {
            told.headers = told.standing.headers();
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.state
            .standing
            .lock()
            .expect("no holder of the standing panics")
    }
}
