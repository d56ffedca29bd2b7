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

mod accounts;
mod logins;
mod requests;
mod responses;
mod server;
mod sockets;
mod transport;
mod waits;

#[cfg(test)]
mod tests;

pub use accounts::account::Account;
pub use h2::Reason;
pub use logins::login::Login;
pub use logins::token_reply::TokenReply;
pub use requests::seen::{Remember, SeenRequest};
pub use responses::encoding::Encoding;
pub use responses::reply::{End, Reply, Usage};
pub use responses::standing::{HeaderForm, Slots, Standing, Window};
pub use server::Upstream;
pub use server::stage::{Options, TlsOptions};
pub use sockets::handshake::{Handshake, Upgrade};
pub use sockets::seen_socket::{SeenMessage, SeenSocket, SocketEnd};
pub use sockets::socket_reply::{NO_CLOSE_CODE, SocketError, SocketReply};
pub use waits::WAIT_MAX;
pub use waits::gate::Gate;
