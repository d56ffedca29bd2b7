//! A scripted stand-in for the OpenAI backend: chatgpt.com/backend-api, api.openai.com and the
//! token endpoint of auth.openai.com on one listener, with the WebSockets of the first two. It
//! speaks HTTP/1.1 in clear, or HTTP/2 and HTTP/1.1 over TLS, as the real one does.
//!
//! Owns what upstream answers (accounts, their standing and logins, scripted replies) and what it
//! saw. Knows nothing of the gateway. Invariant: it never waits for time to pass unless a reply
//! asks for a pause; a test controls it by explicit signals ([`Gate`]) and observes it by bounded
//! waits.
//!
//! ```no_run
//! # async fn example() {
//! use scripted_upstream::{Reply, Standing, Upstream};
//! let upstream = Upstream::start().await;
//! let ana = upstream.account("at-ana", "acct-ana");
//! ana.set_standing(Standing::new("pro").five_hour_used(12.0).weekly_used(30.0));
//! ana.then(Reply::usage_limit_reached().resets_in_seconds(600));
//! // ... point a gateway at upstream.chatgpt_url(), send one request ...
//! let turns = upstream.wait_for_turns(1).await;
//! assert_eq!(turns[0].account.as_deref(), Some("acct-ana"));
//! # }
//! ```

mod account;
mod answer;
mod asked;
mod body;
mod count;
mod encoding;
mod events;
mod gate;
mod handshake;
mod http2;
mod login;
mod reply;
mod script;
mod seen;
mod seen_socket;
mod server;
mod socket;
mod socket_reply;
mod sse;
mod standing;
mod token_reply;
mod tokens;
mod wire;

#[cfg(test)]
mod tests;

pub use account::Account;
pub use encoding::Encoding;
pub use gate::Gate;
pub use h2::Reason;
pub use handshake::{Handshake, Upgrade};
pub use login::Login;
pub use reply::{End, Reply, Usage};
pub use seen::SeenRequest;
pub use seen_socket::{SeenMessage, SeenSocket, SocketEnd};
pub use server::{Options, Remember, TlsOptions, Upstream};
pub use socket_reply::{NO_CLOSE_CODE, SocketError, SocketReply};
pub use standing::{HeaderForm, Slots, Standing, Window};
pub use token_reply::TokenReply;

/// How long any wait in this crate lasts before it panics with what was seen instead.
pub const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);
