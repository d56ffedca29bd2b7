//! What the token endpoint answers: a builder over [`Reply`], which describes the answer itself.
//! Invariant: a reply's effect on the login precedes its first byte, whether or not it arrives.

use std::time::Duration;

use bytes::Bytes;

use crate::responses::reply::{Content, Cut, Reply};
use crate::waits::WAIT_MAX;
use crate::waits::gate::Gate;

const TRICKLE_PAUSE: Duration = Duration::from_millis(100);
/// An endless answer does end, long after any test has given up.
const TRICKLE_SPACES: usize = (6 * WAIT_MAX.as_millis() / TRICKLE_PAUSE.as_millis()) as usize;

/// One scripted reply to a refresh with the current token. Any other token is rejected regardless
/// of the script.
#[derive(Clone, Debug)]
pub struct TokenReply {
    pub(crate) reply: Reply,
    pub(crate) grant: Grant,
}

/// A reply's effect on the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// New tokens, all of them; the presented refresh token is spent.
    Rotation,
    /// A new access token; the refresh token stays current.
    Renewal,
    /// Nothing: the refresh token stays current.
    Nothing,
}

impl TokenReply {
    /// Creates a successful reply with new tokens.
    pub fn well() -> Self {
        TokenReply {
            reply: Reply::ok().without_rate_limits(),
            grant: Grant::Rotation,
        }
    }

    /// Creates a response of this status with no body and no Content-Type. The refresh token stays
    /// current unless [`rotating`](Self::rotating) is added.
    ///
    /// # Panics
    /// Panics if `status` is not an HTTP status.
    pub fn status(status: u16) -> Self {
        TokenReply {
            reply: Reply::raw(status, "").without_rate_limits(),
            grant: Grant::Nothing,
        }
    }

    /// Sets these bytes as the body.
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
    /// Panics if HTTP does not allow the name or the value.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.reply = self.reply.header(name, value);
        self
    }

    /// Issues a new access token only; the refresh token stays current.
    pub fn without_refresh_token(mut self) -> Self {
        self.grant = Grant::Renewal;
        self
    }

    /// Spends the refresh token although the answer does not contain the next one.
    pub fn rotating(mut self) -> Self {
        self.grant = Grant::Rotation;
        self
    }

    /// Sends nothing, not even the head, until the gate opens.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.reply = self.reply.hold_head(gate);
        self
    }

    /// Closes the connection instead of answering.
    pub fn cut(mut self) -> Self {
        self.reply.cut = Some(Cut::BeforeHead);
        self
    }

    /// Sends spaces instead of the body, ten a second, until the client leaves or a minute has
    /// passed.
    pub fn endless(mut self) -> Self {
        // An event stream has no Content-Length that would reveal the end.
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
