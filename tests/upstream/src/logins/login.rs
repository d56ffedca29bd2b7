//! A login: one account's family of single-use refresh tokens, and the access tokens issued with
//! them. Owns what the token endpoint decides; the reply describes how the answer is sent.
//! Invariant: one refresh token of a family is current, and presenting a spent one revokes the
//! whole family for good.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accounts::account::Account;
use crate::accounts::script::Script;
use crate::logins::token_reply::{Grant, TokenReply};
use crate::logins::tokens::{Tokens, access_token};
use crate::responses::reply::Reply;
use crate::responses::standing::unix_now;

/// The client id with which Codex requests tokens.
const CLIENT_ID: &str = "app_EMoamEEZ73f0CkXaXp7hrann";
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A handle on a login. Clones are the same login.
#[derive(Clone, Debug)]
pub struct Login {
    state: Arc<LoginState>,
}

#[derive(Debug)]
struct LoginState {
    account: Account,
    script: Script<TokenReply>,
    family: Mutex<Family>,
}

#[derive(Debug)]
struct Family {
    newest: Tokens,
    /// Every access token issued, and the Unix second from which it is rejected.
    access: HashMap<String, i64>,
    /// Every refresh token that was current before.
    spent: HashSet<String>,
    lifetime: Duration,
    revoked: bool,
    reuses: usize,
}

/// A presented refresh token, as its family knows it.
enum Shown {
    Current,
    /// Spent: presenting it has just revoked the family.
    Spent,
    /// Its family was revoked before.
    Revoked,
}

/// Whether an access token is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// It expired, or was revoked.
    Refused,
}

/// The token endpoint's decision.
pub(crate) struct Redeemed {
    /// The account whose token was presented, if it is known.
    pub(crate) account: Option<Account>,
    pub(crate) reply: Reply,
    /// The tokens, for a successful reply.
    pub(crate) body: Option<Value>,
}

impl Login {
    fn new(account: Account) -> Self {
        let family = Mutex::new(Family::new(&account));
        Login {
            state: Arc::new(LoginState {
                account,
                script: Script::default(),
                family,
            }),
        }
    }

    /// Returns the account. A token states the account's plan at the time it is issued.
    pub fn account(&self) -> Account {
        self.state.account.clone()
    }

    /// Returns auth.json as Codex writes it, with the newest tokens of the family, delivered or
    /// not.
    pub fn auth_json(&self) -> Value {
        self.family().newest.auth_json(&self.state.account)
    }

    /// Sets how long access tokens issued from now on are accepted, in whole seconds: an hour by
    /// default.
    pub fn lifetime(&self, lifetime: Duration) -> &Self {
        self.family().lifetime = lifetime;
        self
    }

    /// Issues an access token that expires in `seconds` (negative: it has expired) and returns
    /// auth.json with it. The refresh token stays current.
    pub fn renew_with(&self, lifetime_seconds: i64) -> Value {
        let mut family = self.family();
        family.renew(&self.state.account, now() + lifetime_seconds);
        family.newest.auth_json(&self.state.account)
    }

    /// Queues the reply to one POST with the current refresh token. Queued replies precede
    /// [`always_for_token`](Self::always_for_token).
    pub fn then_for_token(&self, reply: TokenReply) -> &Self {
        self.state.script.push(reply);
        self
    }

    /// Sets the reply to every POST with the current refresh token for which nothing is queued.
    pub fn always_for_token(&self, reply: TokenReply) -> &Self {
        self.state.script.set_always(reply);
        self
    }

    /// Removes all scripted replies to POSTs: they succeed again.
    pub fn clear_token_script(&self) -> &Self {
        self.state.script.clear();
        self
    }

    /// Returns how many POSTs presented a refresh token of the family, rejected ones included.
    pub fn post_count(&self) -> usize {
        self.state.account.token_post_count()
    }

    /// Waits until `count` POSTs have presented a refresh token of the family and taken effect.
    ///
    /// # Panics
    /// Panics after [`WAIT_MAX`](crate::WAIT_MAX), with what was seen instead.
    pub async fn wait_for_posts(&self, count: usize) {
        self.state.account.wait_for_token_posts(count).await;
    }

    /// Returns how many refresh tokens are spent, also by answers that never arrived.
    pub fn rotations(&self) -> usize {
        self.family().spent.len()
    }

    /// Returns how many POSTs presented a spent refresh token.
    pub fn reuses(&self) -> usize {
        self.family().reuses
    }

    /// Returns `true` if a reuse has revoked the family.
    pub fn is_revoked(&self) -> bool {
        self.family().revoked
    }

    /// Returns `None` if the refresh token does not belong to this family.
    fn redeem(&self, refresh_token: &str) -> Option<Redeemed> {
        let mut family = self.family();
        let (reply, body) = match family.show(refresh_token)? {
            Shown::Current => self.grant(&mut family),
            Shown::Spent => (reused(), None),
            Shown::Revoked => (invalidated(), None),
        };
        Some(Redeemed {
            account: Some(self.account()),
            reply,
            body,
        })
    }

    fn grant(&self, family: &mut Family) -> (Reply, Option<Value>) {
        let account = &self.state.account;
        let TokenReply { reply, grant } = self
            .state
            .script
            .next()
            .map_or_else(TokenReply::well, |scripted| TokenReply::clone(&scripted));
        match grant {
            Grant::Rotation => family.rotate(account),
            Grant::Renewal => family.renew(account, family.expiry()),
            Grant::Nothing => {}
        }
        (reply, family.answer(grant))
    }

    fn family(&self) -> MutexGuard<'_, Family> {
        self.state
            .family
            .lock()
            .expect("no holder of the family panics")
    }
}

impl Family {
    fn new(account: &Account) -> Self {
        let expires_at = now() + seconds(LIFETIME);
        let newest = Tokens::new(account, expires_at);
        Family {
            access: HashMap::from([(newest.access_token.clone(), expires_at)]),
            newest,
            spent: HashSet::new(),
            lifetime: LIFETIME,
            revoked: false,
            reuses: 0,
        }
    }

    /// Checks a refresh token, and revokes the family if it is a spent one.
    fn show(&mut self, refresh_token: &str) -> Option<Shown> {
        let spent = self.spent.contains(refresh_token);
        if !spent && refresh_token != self.newest.refresh_token {
            return None;
        }
        let revoked_before = self.revoked;
        self.revoked |= spent;
        self.reuses += usize::from(spent);
        Some(match (revoked_before, spent) {
            (true, _) => Shown::Revoked,
            (false, true) => Shown::Spent,
            (false, false) => Shown::Current,
        })
    }

    fn rotate(&mut self, account: &Account) {
        let expires_at = self.expiry();
        let old = std::mem::replace(&mut self.newest, Tokens::new(account, expires_at));
        self.spent.insert(old.refresh_token);
        // Older access tokens are accepted until they expire.
        self.access
            .insert(self.newest.access_token.clone(), expires_at);
    }

    fn renew(&mut self, account: &Account, expires_at: i64) {
        self.newest.access_token = access_token(account, expires_at);
        self.access
            .insert(self.newest.access_token.clone(), expires_at);
    }

    fn expiry(&self) -> i64 {
        now() + seconds(self.lifetime)
    }

    fn answer(&self, grant: Grant) -> Option<Value> {
        let mut body = json!({
            "id_token": self.newest.id_token,
            "access_token": self.newest.access_token,
            "token_type": "Bearer",
            "expires_in": self.lifetime.as_secs(),
        });
        match grant {
            Grant::Rotation => body["refresh_token"] = json!(self.newest.refresh_token),
            Grant::Renewal => {}
            Grant::Nothing => return None,
        }
        Some(body)
    }

    /// Returns `None` if the access token does not belong to this family.
    fn access(&self, token: &str) -> Option<Access> {
        let expires_at = *self.access.get(token)?;
        let granted = !self.revoked && now() < expires_at;
        Some(if granted {
            Access::Granted
        } else {
            Access::Refused
        })
    }
}

/// The logins of an upstream.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    logins: Mutex<Vec<Login>>,
}

impl Logins {
    pub(crate) fn add(&self, account: Account) -> Login {
        let login = Login::new(account);
        self.logins().push(login.clone());
        login
    }

    /// Returns the account that this access token names, and whether the token is accepted.
    pub(crate) fn bearer(&self, token: &str) -> Option<(Account, Access)> {
        self.logins()
            .iter()
            .find_map(|login| Some((login.account(), login.family().access(token)?)))
    }

    /// Decides a POST to the token endpoint, and rotates the tokens if it succeeds.
    pub(crate) fn redeem(&self, headers: &HeaderMap, body: &[u8]) -> Redeemed {
        let Some(refresh_token) = TokenRequest::read(headers, body) else {
            return Redeemed {
                account: None,
                reply: misshapen(),
                body: None,
            };
        };
        let known = self
            .logins()
            .iter()
            .find_map(|login| login.redeem(&refresh_token));
        known.unwrap_or_else(|| Redeemed {
            account: None,
            reply: invalidated(),
            body: None,
        })
    }

    fn logins(&self) -> MutexGuard<'_, Vec<Login>> {
        self.logins.lock().expect("no holder of the logins panics")
    }
}

/// A refresh request as Codex sends it, without any other field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    client_id: String,
    grant_type: String,
    refresh_token: String,
    #[serde(rename = "scope")]
    _scope: Option<String>,
    #[serde(rename = "refresh_reason")]
    _refresh_reason: Option<String>,
}

impl TokenRequest {
    /// Returns the refresh token, or `None` if this is not a refresh request.
    fn read(headers: &HeaderMap, body: &[u8]) -> Option<String> {
        let media = headers
            .get(CONTENT_TYPE)?
            .to_str()
            .ok()?
            .split(';')
            .next()?;
        if media.trim_end() != "application/json" {
            return None;
        }
        let request: TokenRequest = serde_json::from_slice(body).ok()?;
        let refresh = request.client_id == CLIENT_ID && request.grant_type == "refresh_token";
        refresh.then_some(request.refresh_token)
    }
}

fn misshapen() -> Reply {
    refusal(
        400,
        "invalid_request",
        "The request is not one for a refresh.",
    )
}

fn reused() -> Reply {
    let message = "Your refresh token has already been used to generate a new access token. Please sign in again.";
    refusal(401, "refresh_token_reused", message)
}

fn invalidated() -> Reply {
    refusal(
        401,
        "refresh_token_invalidated",
        "Your refresh token has been invalidated. Please sign in again.",
    )
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    Reply::error(status, "invalid_request_error", message)
        .error_field("code", json!(code))
        .without_rate_limits()
}

/// Returns the current Unix second, signed so that it can be subtracted from.
fn now() -> i64 {
    unix_now()
        .try_into()
        .expect("the clock stands before the year 292 billion")
}

fn seconds(lifetime: Duration) -> i64 {
    lifetime
        .as_secs()
        .try_into()
        .expect("a lifetime of less than 292 billion years")
}
