//! The rig: a client, the real gateway, and a scripted upstream. Every scenario arranges with it,
//! acts once, and asserts what the client, the upstream or the ledger sees.
//!
//! [`Rig::start`] runs the gateway in this process, [`Rig::spawn`] runs the real binary. Ports are
//! free ones, folders are temporary, and nothing waits by sleeping.

mod auth;
mod clients;
mod gateway;
mod inputs;
mod policies;
mod scenes;
mod surroundings;

pub use auth::{days_ago, key_file, make_fifo, oauth_file, read_json, replace_file, token_of};
pub use clients::authority::{Authority, Certificate, TLS_VERSIONS};
pub use clients::client::{Answer, Client, Stream};
pub use clients::frames;
pub use clients::peer;
pub use clients::socket::{Event, Part, Socket};
pub use gateway::Rig;
pub use gateway::command::{Said, tollgate};
pub use gateway::ledger::{Row, ends, rows, wait_for_rows};
pub use gateway::metrics::Metrics;
pub use gateway::program::{Program, binary};
pub use gateway::status::{ask_socket, policy};
pub use inputs::{turn, unix_in, user};
pub use policies::component::component;
pub use policies::conduct::{Conduct, guest, marked_pricer};
pub use policies::pricing::OWN;
pub use scenes::bad_peer::BadPeerScene;
pub use scenes::canary;
pub use scenes::echo::EchoScene;
pub use scenes::login::{LoginGroup, LoginScene};
pub use scenes::reverse;
pub use scenes::team::TeamScene;
pub use scenes::tls::TlsScene;
pub use scenes::upgrade::{UpgradeScene, is_running, send_signal};
pub use scenes::watched_file::{AuthVersion, WatchedFileScene};
pub use scripted_upstream as upstream;
pub use surroundings::acme::AcmeServer;
pub use surroundings::chance::Chance;
#[cfg(target_os = "linux")]
pub use surroundings::mount::Mounted;
pub use surroundings::nowhere::Nowhere;
pub use surroundings::protocol::Protocol;
pub use surroundings::proxy::{AfterBytes, Proxy, SeenTunnel};
