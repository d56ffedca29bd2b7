//! What the token endpoint is told to answer: a builder over [`Reply`], which carries the answer itself.
//! Invariant: what a reply grants is granted before any of it goes out, and whether or not it arrives.

use std::time::Duration;

use bytes::Bytes;

use crate::WAIT_MAX;
use crate::gate::Gate;
use crate::reply::{Content, Cut, Reply};

const TRICKLE_PAUSE: Duration = Duration::from_millis(100);
/// An endless answer ends after all, long after any test has given up.
const TRICKLE_SPACES: usize = (6 * WAIT_MAX.as_millis() / TRICKLE_PAUSE.as_millis()) as usize;

/// One scripted reply to a refresh with the current token. Any other token is refused, whatever is scripted.
#[derive(Clone, Debug)]
pub struct TokenReply {
    pub(crate) reply: Reply,
    pub(crate) grant: Grant,
}

/// What the login gets when a reply is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// New tokens, all of them; the refresh token that was shown is spent.
    Rotation,
    /// A new access token; the refresh token stays current.
    Renewal,
    /// Nothing: the refresh token stays current.
    Nothing,
}

impl TokenReply {
    /// New tokens, as when all goes well.
    pub fn well() -> Self {
        TokenReply {
            reply: Reply::ok().without_rate_limits(),
            grant: Grant::Rotation,
        }
    }

    /// A status with no body and no Content-Type; the refresh token stays current unless
    /// [`rotating`](Self::rotating) is added.
    ///
    /// # Panics
    /// If `status` is none.
    pub fn status(status: u16) -> Self {
        TokenReply {
            reply: Reply::raw(status, "").without_rate_limits(),
            grant: Grant::Nothing,
        }
    }

    /// These bytes as the body, in place of any other.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.reply.content = Content::Raw {
            body: body.into(),
            media: None,
        };
        self
    }

    /// Adds a header.
    ///
    /// # Panics
    /// If name or value is none that HTTP allows.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.reply = self.reply.header(name, value);
        self
    }

    /// The answer has a new access token only, and the refresh token stays current.
    pub fn without_refresh_token(mut self) -> Self {
        self.grant = Grant::Renewal;
        self
    }

    /// The refresh token is spent, though the answer does not have the next one.
    pub fn rotating(mut self) -> Self {
        self.grant = Grant::Rotation;
        self
    }

    /// Sends nothing, not even the head, until the gate opens.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.reply = self.reply.hold_head(gate);
        self
    }

    /// Closes the connection in place of an answer.
    pub fn cut(mut self) -> Self {
        self.reply.cut = Some(Cut::BeforeHead);
        self
    }

    /// In place of the body come spaces, ten in a second, until the client leaves or a minute has passed.
    pub fn endless(mut self) -> Self {
        // Nobody knows how long an event stream will be, so that no Content-Length gives the end away.
        let stream = Reply::sse(" ".repeat(TRICKLE_SPACES));
        self.reply = Reply {
            content: stream.content,
            ..self.reply
        }
        .header("content-type", "application/json")
        .chunks(&[1])
        .pause_between(TRICKLE_PAUSE);
        self
    }
}
