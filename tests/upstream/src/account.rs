//! One account: the bearer token that names it, its standing, and the replies it has been told to give.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http::HeaderMap;

use crate::answer::Prepared;
use crate::reply::Reply;
use crate::standing::{HeaderForm, Standing};

/// A handle on an account. Clones are the same account.
#[derive(Clone, Debug)]
pub struct Account {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    id: String,
    standing: Mutex<Told>,
    turns: Script,
    polls: Script,
}

/// The standing and the headers that tell it; the headers are always those of the standing.
#[derive(Debug)]
struct Told {
    standing: Standing,
    headers: HeaderMap,
}

impl Account {
    pub(crate) fn new(id: &str, header_form: HeaderForm) -> Self {
        let standing = Standing::new("plus").header_form(header_form);
        let headers = standing.headers();
        let state = State {
            id: id.to_owned(),
            standing: Mutex::new(Told { standing, headers }),
            turns: Script::default(),
            polls: Script::default(),
        };
        Account { state: Arc::new(state) }
    }

    /// The account's id: what `ChatGPT-Account-Id` must say, if it says anything.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// Where the account stands now.
    pub fn standing(&self) -> Standing {
        self.told().standing.clone()
    }

    /// Replaces the standing; responses whose head is not out yet tell the new one.
    pub fn set_standing(&self, standing: Standing) {
        let headers = standing.headers();
        *self.told() = Told { standing, headers };
    }

    /// Queues the reply to one turn (a POST to a model route). The queue goes before [`always`](Self::always).
    pub fn then(&self, reply: Reply) -> &Self {
        self.state.turns.push(reply);
        self
    }

    /// The reply to every turn for which nothing is queued.
    pub fn always(&self, reply: Reply) -> &Self {
        self.state.turns.set_always(Some(reply));
        self
    }

    /// Forgets queued and standing replies: turns are answered well again.
    pub fn clear_script(&self) -> &Self {
        self.state.turns.clear();
        self.state.polls.clear();
        self
    }

    /// Queues the reply to one `GET /backend-api/wham/usage`.
    pub fn then_for_poll(&self, reply: Reply) -> &Self {
        self.state.polls.push(reply);
        self
    }

    /// The reply to every poll for which nothing is queued.
    pub fn always_for_poll(&self, reply: Reply) -> &Self {
        self.state.polls.set_always(Some(reply));
        self
    }

    pub(crate) fn next_turn(&self) -> Option<Arc<Prepared>> {
        self.state.turns.next()
    }

    pub(crate) fn next_poll(&self) -> Option<Arc<Prepared>> {
        self.state.polls.next()
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
        self.state.standing.lock().expect("no holder of the standing panics")
    }
}

/// Replies to give: those queued, then the one for always.
#[derive(Debug, Default)]
pub(crate) struct Script {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    queue: VecDeque<Arc<Prepared>>,
    always: Option<Arc<Prepared>>,
}

impl Script {
    pub(crate) fn push(&self, reply: Reply) {
        self.lines().queue.push_back(Arc::new(Prepared::new(reply)));
    }

    pub(crate) fn set_always(&self, reply: Option<Reply>) {
        self.lines().always = reply.map(|reply| Arc::new(Prepared::new(reply)));
    }

    pub(crate) fn clear(&self) {
        *self.lines() = Lines::default();
    }

    pub(crate) fn next(&self) -> Option<Arc<Prepared>> {
        let mut lines = self.lines();
        lines.queue.pop_front().or_else(|| lines.always.clone())
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().expect("no holder of the script panics")
    }
}
