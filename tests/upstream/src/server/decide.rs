//! Chooses the reply to a request: its route, its account, and the account's script. Knows nothing
//! of connections. Invariant: a request without an accepted token gets nothing from a script.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::stage::{Stage, TOKEN_PATH};
use crate::accounts::account::Account;
use crate::logins::login::{Access, Redeemed};
use crate::requests::asked::Asked;
use crate::responses::answer::{Prepared, Route};
use crate::responses::reply::Reply;
use crate::sockets::handshake::{self, Outcome};

/// The reply to a request, and its account. Decided as soon as the body is there, so that a client
/// that leaves before the answer has still changed what it asked to change.
pub(super) struct Decided {
    pub(super) account: Option<Account>,
    pub(super) outcome: Outcome,
    /// The new tokens, if this is a refresh.
    pub(super) body: Option<Value>,
}

impl From<Redeemed> for Decided {
    fn from(
        Redeemed {
            account,
            reply,
            body,
        }: Redeemed,
    ) -> Self {
        Decided {
            account,
            outcome: Outcome::Response(Arc::new(Prepared::new(reply))),
            body,
        }
    }
}

/// Returns the route of a request, if there is one.
pub(super) fn route(method: &Method, path: &str, headers: &HeaderMap) -> Option<Route> {
    match (method, path) {
        (&Method::GET, "/backend-api/codex/responses" | "/v1/responses")
            if handshake::is_asked(headers) =>
        {
            Some(Route::Socket)
        }
        (&Method::POST, "/backend-api/codex/responses" | "/v1/responses") => Some(Route::Responses),
        (&Method::POST, "/backend-api/codex/responses/compact" | "/v1/responses/compact") => {
            Some(Route::Compact)
        }
        (&Method::POST, "/v1/chat/completions") => Some(Route::ChatCompletions),
        (&Method::GET, "/v1/models") => Some(Route::Models),
        (&Method::GET, "/backend-api/codex/models") => Some(Route::CodexModels),
        (&Method::GET, "/backend-api/wham/usage") => Some(Route::Usage),
        (&Method::POST, TOKEN_PATH) => Some(Route::Token),
        _ => None,
    }
}

impl Stage {
    pub(super) fn decide(
        &self,
        route: Option<Route>,
        headers: &HeaderMap,
        asked: Option<&Asked>,
    ) -> Decided {
        let bearer = self.bearer(headers);
        let outcome = match admit(route, bearer.as_ref(), headers) {
            Ok((Route::Socket, account)) => choose_handshake(account, headers),
            Ok((route, account)) => Outcome::Response(self.choose(route, account, asked)),
            Err(refusal) => Outcome::Response(refusal),
        };
        Decided {
            account: bearer.map(|(account, _)| account),
            outcome,
            body: None,
        }
    }

    /// Returns the account that the bearer token names, and whether the token is accepted.
    fn bearer(&self, headers: &HeaderMap) -> Option<(Account, Access)> {
        let token = headers
            .get(AUTHORIZATION)?
            .to_str()
            .ok()?
            .strip_prefix("Bearer ")?;
        let account = self
            .accounts
            .lock()
            .expect("no holder of the accounts panics")
            .get(token)
            .cloned();
        account
            .map(|account| (account, Access::Granted))
            .or_else(|| self.logins.bearer(token))
    }

    fn choose(&self, route: Route, account: &Account, asked: Option<&Asked>) -> Arc<Prepared> {
        let scripted = match route {
            Route::Responses | Route::Compact | Route::ChatCompletions => {
                account.next_turn().or_else(|| self.script.next())
            }
            Route::Usage => account.next_poll(),
            Route::Models | Route::CodexModels | Route::Token | Route::Socket => None,
        };
        if let Some(scripted) = scripted {
            return scripted;
        }
        // Only if nothing was scripted: a script answers any body.
        if route.is_turn() && asked.is_none() {
            return error(
                400,
                "invalid_request_error",
                "We could not parse the JSON body of your request.",
            );
        }
        Arc::clone(&self.well)
    }
}

/// Rejects an invalid handshake; otherwise the account's script decides.
fn choose_handshake(account: &Account, headers: &HeaderMap) -> Outcome {
    match handshake::complaint(headers) {
        Some(complaint) => Outcome::Response(error(400, "invalid_request_error", complaint)),
        None => account.next_handshake(),
    }
}

/// Returns the route and account of a request that may be answered, or the refusal.
fn admit<'a>(
    route: Option<Route>,
    bearer: Option<&'a (Account, Access)>,
    headers: &HeaderMap,
) -> Result<(Route, &'a Account), Arc<Prepared>> {
    let Some(route) = route else {
        return Err(error(
            404,
            "invalid_request_error",
            "no such path on the scripted upstream",
        ));
    };
    let account = match bearer {
        Some((account, Access::Granted)) => account,
        Some((_, Access::Refused)) => return Err(token_expired()),
        None => {
            return Err(error(
                401,
                "invalid_request_error",
                "Incorrect API key or access token provided.",
            ));
        }
    };
    let named = headers.get("chatgpt-account-id");
    if named.is_some_and(|id| id.as_bytes() != account.id().as_bytes()) {
        return Err(error(
            401,
            "invalid_request_error",
            "The account id is not that of the token.",
        ));
    }
    Ok((route, account))
}

fn error(status: u16, error_type: &str, message: &str) -> Arc<Prepared> {
    Arc::new(Prepared::new(Reply::error(status, error_type, message)))
}

fn token_expired() -> Arc<Prepared> {
    let message = "Provided authentication token is expired. Please try signing in again.";
    let reply = Reply::error(401, "invalid_request_error", message)
        .error_field("code", json!("token_expired"));
    Arc::new(Prepared::new(reply.without_rate_limits()))
}
