//! Credentials: what upstream accepts, and how much of each account is used.
//!
//! Owns the auth.json files, the refreshes of their tokens, and what upstream reports about each
//! account's windows. Does not know how a credential is chosen. Invariant: an access token or API
//! key leaves this module only as an `Authorization` value that is marked sensitive, and a refresh
//! token only in the body of its one refresh.
//!
//! A [`Credential`] is an entry of the configuration and the `login` of its file, which it may share
//! with others. It has three rooms: it is loaded from its source (`loading`), presented to upstream
//! (`presenting`), and used up (`usage`). `state` decides, `health` reports.

mod auth_file;
mod credential;
mod health;
mod identity;
mod loading;
mod login;
mod presenting;
mod refresh;
mod state;
mod usage;

pub use auth_file::AuthFileError;
pub use credential::{Credential, InFlightGuard};
pub use health::{CredentialCondition, CredentialHealth, WindowHealth};
pub use identity::{CredentialKind, SecretFingerprint, UpstreamIdentity};
pub use loading::{BrokenFile, FileCheck};
pub use login::{LoginDirectory, LoginOrigin};
pub use refresh::{
    RefreshFileError, RefreshJob, RefreshOutcome, TokenRequestError, TokenResponse, recover_tokens,
    refresh_tokens,
};
pub use state::{CredentialLoadError, PollFailure, StartedPoll, UsageReport};
