//! Rewriters: wanted header fields go in, edits come out, and are checked before they touch anything.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use wasmtime::Store;

use super::balancer::cut;
use super::bindings::balancer::tollgate::policy::types::{Edit, Header, Manifest, Refusal};
use super::bindings::rewriter::{RewriterPolicy, RewriterPolicyPre};
use super::engine::Engine;
use super::fault::Fault;
use super::instance::{Guest, world};
use super::load::{LoadError, Loading, Source, load, try_out};
use super::repeat::{Asked, EditSaid, OwnFacts, Said};
use super::seat::{Bad, Seat};
use super::threads::Full;
use super::{Facts, generation};
use crate::config::{OnFailure, PolicyConfig, PolicyKind, PolicySource};
use crate::values::headers::{is_reserved, is_secret_shaped};

/// Edits of one call, and the size of what they set in bytes.
const EDITS: usize = 128;
const EDIT_BYTES: usize = 32 * 1024;

world!(
    RewriterPolicy,
    RewriterPolicyPre<super::instance::Guest>,
    PolicyKind::Rewriter
);

/// A rewriter's answer to a request in place of upstream's.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The status, from 400 to 599.
    pub status: StatusCode,
    /// What the client is told.
    pub message: String,
}

/// A rewriter: one generation of a slot.
pub struct Rewriter {
    seat: Seat<RewriterPolicy>,
    on_failure: OnFailure,
    /// It is the operator's own word, and not a component's: it may set what is shaped like a secret.
    is_shipped: bool,
}

impl std::fmt::Debug for Rewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewriter")
            .field("tag", &self.seat.slot().tag())
            .finish_non_exhaustive()
    }
}

generation!(Rewriter {
    on_failure: OnFailure::Refuse,
    is_shipped: false
});

/// What a rewriter says to a request.
type RequestSaid = Result<Result<Vec<Checked>, Refused>, Fault>;

impl Rewriter {
    /// # Errors
    /// The component or its configuration cannot be used, or it failed when it was tried.
    pub fn load(
        engine: &Engine,
        policy: &PolicyConfig,
        source: &Source,
        loading: &Loading<'_>,
    ) -> Result<Self, LoadError> {
        let seat = load::<RewriterPolicy>(engine, policy, source, loading)?;
        let is_shipped = matches!(policy.source, PolicySource::Shipped(_));
        let rewriter = Self {
            seat,
            on_failure: policy.on_failure,
            is_shipped,
        };
        try_out(&rewriter.seat, policy, |seat| {
            ask_request(seat, is_shipped, &Facts::trial(), &[]).map(drop)
        })?;
        Ok(rewriter)
    }

    /// The same, where it cannot be called: what becomes of a request then.
    pub fn failing(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// What happens to a request when it fails.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// Edits the header fields of a request. On an error they are as they were. One that is slow does so on a thread of
    /// its own.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be made.
    pub async fn request(
        self: &Arc<Self>,
        facts: &Facts<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Result<(), Refused>, Fault> {
        let wanted = self.wanted(headers, |manifest| &manifest.request_headers);
        let said = if self.seat.is_slow() {
            let (this, facts) = (Arc::clone(self), OwnFacts::of(facts));
            let asking = move || this.request_here(&facts.facts(), &wanted);
            self.seat
                .slot()
                .threads()
                .run(asking)
                .await
                .unwrap_or_else(|Full| Err(self.busy("rewrite-request")))
        } else {
            self.request_here(facts, &wanted)
        };
        Ok(said?.map(|edits| apply(edits, self.is_shipped, headers)))
    }

    /// The same, on this thread, however slow it is.
    ///
    /// # Errors
    /// As [`Rewriter::request`].
    pub fn edit_request_here(
        &self,
        facts: &Facts<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Result<(), Refused>, Fault> {
        let wanted = self.wanted(headers, |manifest| &manifest.request_headers);
        Ok(self
            .request_here(facts, &wanted)?
            .map(|edits| apply(edits, self.is_shipped, headers)))
    }

    fn request_here(&self, facts: &Facts<'_>, wanted: &[Header]) -> RequestSaid {
        let begun = Instant::now();
        let answered = ask_request(&self.seat, self.is_shipped, facts, wanted);
        if let Ok(Err(_)) = &answered {
            self.seat.slot().stats().refused();
        }
        self.seat.slot().note(|| {
            let asked = Asked::RewriteRequest {
                headers: pairs(wanted),
            };
            self.seat.kept(facts, begun, asked, request_said(&answered))
        });
        answered
    }

    /// Edits the header fields of a response, where the policy wants to see them. On an error they are as they were.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be made.
    pub async fn response(
        self: &Arc<Self>,
        facts: &Facts<'_>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Result<(), Fault> {
        let wants_none = self
            .seat
            .loaded()
            .is_some_and(|loaded| loaded.manifest.response_headers.is_empty());
        // One that is not there yet has failed the request already, or may be skipped.
        if wants_none || self.seat.loaded().is_none() {
            return Ok(());
        }
        let wanted = self.wanted(headers, |manifest| &manifest.response_headers);
        let status = u32::from(status.as_u16());
        let edits = if self.seat.is_slow() {
            let (this, facts) = (Arc::clone(self), OwnFacts::of(facts));
            let asking = move || this.response_here(&facts.facts(), status, &wanted);
            self.seat
                .slot()
                .threads()
                .run(asking)
                .await
                .unwrap_or_else(|Full| Err(self.busy("rewrite-response")))
        } else {
            self.response_here(facts, status, &wanted)
        };
        apply(edits?, self.is_shipped, headers);
        Ok(())
    }

    fn response_here(
        &self,
        facts: &Facts<'_>,
        status: u32,
        wanted: &[Header],
    ) -> Result<Vec<Checked>, Fault> {
        let begun = Instant::now();
        let edits = ask_response(&self.seat, self.is_shipped, facts, status, wanted);
        self.seat.slot().note(|| {
            let asked = Asked::RewriteResponse {
                status,
                headers: pairs(wanted),
            };
            self.seat.kept(facts, begun, asked, response_said(&edits))
        });
        edits
    }

    /// What it says to a call that another one had.
    pub(super) fn repeat_request(&self, facts: &Facts<'_>, headers: &[(String, String)]) -> Said {
        request_said(&ask_request(
            &self.seat,
            self.is_shipped,
            facts,
            &fields(headers),
        ))
    }

    /// The same, for a response.
    pub(super) fn repeat_response(
        &self,
        facts: &Facts<'_>,
        status: u32,
        headers: &[(String, String)],
    ) -> Said {
        response_said(&ask_response(
            &self.seat,
            self.is_shipped,
            facts,
            status,
            &fields(headers),
        ))
    }

    fn wanted(
        &self,
        headers: &HeaderMap,
        names: impl Fn(&Manifest) -> &Vec<String>,
    ) -> Vec<Header> {
        self.seat.loaded().map_or(Vec::new(), |loaded| {
            wanted(headers, names(&loaded.manifest))
        })
    }
}

fn ask_request(
    seat: &Seat<RewriterPolicy>,
    is_shipped: bool,
    facts: &Facts<'_>,
    wanted: &[Header],
) -> RequestSaid {
    let request = seat.request(facts);
    let ask = |store: &mut Store<Guest>, world: &RewriterPolicy| {
        world
            .tollgate_policy_rewriter()
            .call_rewrite_request(store, &request, wanted)
    };
    seat.call("rewrite-request", facts, ask, |said| match said {
        Ok(edits) => check_all(edits, is_shipped).map(Ok),
        Err(refusal) => check_refusal(refusal).map(Err),
    })
}

fn ask_response(
    seat: &Seat<RewriterPolicy>,
    is_shipped: bool,
    facts: &Facts<'_>,
    status: u32,
    wanted: &[Header],
) -> Result<Vec<Checked>, Fault> {
    let request = seat.request(facts);
    let ask = |store: &mut Store<Guest>, world: &RewriterPolicy| {
        world
            .tollgate_policy_rewriter()
            .call_rewrite_response(store, &request, status, wanted)
    };
    seat.call("rewrite-response", facts, ask, |said| {
        check_all(said.map_err(|reason| Bad::words(cut(reason)))?, is_shipped)
    })
}

fn check_refusal(refusal: Refusal) -> Result<Refused, Bad> {
    let status = u16::try_from(refusal.status)
        .ok()
        .filter(|status| (400..600).contains(status));
    match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => Ok(Refused {
            status,
            message: cut(refusal.message),
        }),
        None => Err(Bad::output(format!(
            "a refusal with status {}",
            refusal.status
        ))),
    }
}

/// All edits can be made, or none are.
fn check_all(edits: Vec<Edit>, is_shipped: bool) -> Result<Vec<Checked>, Bad> {
    if edits.len() > EDITS {
        return Err(Bad::output(format!(
            "{} edits, more than {EDITS}",
            edits.len()
        )));
    }
    let checked = edits
        .into_iter()
        .map(|edit| check(edit, is_shipped))
        .collect::<Result<Vec<Checked>, String>>();
    let checked = checked.map_err(Bad::output)?;
    let size: usize = checked.iter().map(Checked::size).sum();
    if size > EDIT_BYTES {
        return Err(Bad::output(format!(
            "edits of {size} bytes, more than {EDIT_BYTES}"
        )));
    }
    Ok(checked)
}

/// Makes the edits. What a shipped rewriter sets is the operator's word, which may be a secret: no policy sees it from then
/// on.
fn apply(edits: Vec<Checked>, is_shipped: bool, headers: &mut HeaderMap) {
    let mark = |mut value: HeaderValue| {
        value.set_sensitive(is_shipped);
        value
    };
    for edit in edits {
        match edit {
            Checked::Set(name, value) => drop(headers.insert(name, mark(value))),
            Checked::Append(name, value) => drop(headers.append(name, mark(value))),
            Checked::Remove(name) => drop(headers.remove(name)),
        }
    }
}

fn request_said(answered: &RequestSaid) -> Said {
    match answered {
        Ok(Ok(edits)) => edits_said(edits),
        Ok(Err(refused)) => Said::Refused {
            status: u32::from(refused.status.as_u16()),
            message: refused.message.clone(),
        },
        Err(fault) => Said::failed(fault),
    }
}

fn response_said(edits: &Result<Vec<Checked>, Fault>) -> Said {
    edits
        .as_ref()
        .map_or_else(Said::failed, |edits| edits_said(edits))
}

fn edits_said(edits: &[Checked]) -> Said {
    let edit = |edit: &Checked| match edit {
        Checked::Set(name, value) => EditSaid::of("set", name.as_str(), Some(value.as_bytes())),
        Checked::Append(name, value) => {
            EditSaid::of("append", name.as_str(), Some(value.as_bytes()))
        }
        Checked::Remove(name) => EditSaid::of("remove", name.as_str(), None),
    };
    Said::Edits {
        edits: edits.iter().map(edit).collect(),
    }
}

fn pairs(fields: &[Header]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|field| (field.name.clone(), field.value.clone()))
        .collect()
}

fn fields(pairs: &[(String, String)]) -> Vec<Header> {
    pairs
        .iter()
        .map(|(name, value)| Header {
            name: name.clone(),
            value: value.clone(),
        })
        .collect()
}

/// An edit that can be made.
enum Checked {
    Set(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl Checked {
    fn size(&self) -> usize {
        match self {
            Self::Set(name, value) | Self::Append(name, value) => name.as_str().len() + value.len(),
            Self::Remove(_) => 0,
        }
    }
}

fn check(edit: Edit, is_shipped: bool) -> Result<Checked, String> {
    let field = |header: Header| {
        let name = check_name(&header.name, is_shipped)?;
        let value = HeaderValue::from_str(&header.value).map_err(|_| {
            format!("header {name}: a value with a character that no field may hold")
        })?;
        Ok::<_, String>((name, value))
    };
    Ok(match edit {
        Edit::Set(header) => field(header).map(|(name, value)| Checked::Set(name, value))?,
        Edit::Append(header) => field(header).map(|(name, value)| Checked::Append(name, value))?,
        Edit::Remove(name) => Checked::Remove(check_name(&name, is_shipped)?),
    })
}

fn check_name(name: &str, is_shipped: bool) -> Result<HeaderName, String> {
    let parsed: HeaderName = name
        .parse()
        .map_err(|_| format!("header name {:?}", cut(name.to_owned())))?;
    if is_reserved(parsed.as_str()) {
        return Err(format!("header {parsed} is reserved"));
    }
    if !is_shipped && is_secret_shaped(parsed.as_str()) {
        return Err(format!(
            "header {parsed} is named as one that carries a secret"
        ));
    }
    Ok(parsed)
}

/// The fields that a policy asked for, without those that no policy sees.
fn wanted(headers: &HeaderMap, names: &[String]) -> Vec<Header> {
    let all = names.iter().any(|name| name == "*");
    if names.is_empty() {
        return Vec::new();
    }
    headers
        .iter()
        .filter(|(name, value)| {
            let is_wanted = || all || names.iter().any(|wanted| wanted == name.as_str());
            let is_hidden = || {
                value.is_sensitive()
                    || is_reserved(name.as_str())
                    || is_secret_shaped(name.as_str())
            };
            is_wanted() && !is_hidden()
        })
        .filter_map(|(name, value)| {
            Some(Header {
                name: name.as_str().to_owned(),
                value: value.to_str().ok()?.to_owned(),
            })
        })
        .collect()
}
