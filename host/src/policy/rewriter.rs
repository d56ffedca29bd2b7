//! Rewriters: wanted header fields go in, edits come out, and are checked before they touch anything.

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::balancer::cut;
use super::bindings::balancer::tollgate::policy::types::{Edit, Header, Refusal};
use super::bindings::rewriter::{RewriterPolicy, RewriterPolicyPre};
use super::engine::Engine;
use super::fault::{Fault, FaultKind};
use super::instance::{Seat, world};
use super::load::{LoadError, load};
use super::{Facts, Stamp};
use crate::config::{OnFailure, PolicyConfig, PolicyKind};
use crate::values::headers::is_reserved;

/// Edits of one call, and the size of what they set in bytes.
const EDITS: usize = 128;
const EDIT_BYTES: usize = 32 * 1024;

world!(RewriterPolicy, RewriterPolicyPre<super::instance::Guest>, PolicyKind::Rewriter);

/// A rewriter's answer to a request in place of upstream's.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The status, from 400 to 599.
    pub status: StatusCode,
    /// What the client is told.
    pub message: String,
}

/// A loaded rewriter.
pub struct Rewriter {
    seat: Seat<RewriterPolicy>,
    stamp: Stamp,
    on_failure: OnFailure,
}

impl std::fmt::Debug for Rewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewriter").field("tag", &self.seat.tag).finish_non_exhaustive()
    }
}

impl Rewriter {
    /// # Errors
    /// The component or its configuration cannot be used.
    pub fn load(engine: &Engine, policy: &PolicyConfig) -> Result<Self, LoadError> {
        let loaded = load::<RewriterPolicy>(engine, policy)?;
        Ok(Self { seat: loaded.seat, stamp: loaded.stamp, on_failure: policy.on_failure })
    }

    /// Which component it is.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// What happens to a request when it fails.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// Edits the header fields of a request. On an error they are as they were.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be made.
    pub fn request(&self, facts: &Facts<'_>, headers: &mut HeaderMap) -> Result<Result<(), Refused>, Fault> {
        let request = self.seat.request(facts);
        let wanted = wanted(headers, &self.seat.manifest.request_headers);
        let said = self.seat.call("rewrite-request", facts, |store, world| {
            world.tollgate_policy_rewriter().call_rewrite_request(store, &request, &wanted)
        })?;
        match said {
            Ok(edits) => self.apply("rewrite-request", edits, headers).map(Ok),
            Err(refusal) => self.refusal(refusal).map(Err),
        }
    }

    /// Edits the header fields of a response, where the policy wants to see them. On an error they are as they were.
    ///
    /// # Errors
    /// The policy failed, or its edits cannot be made.
    pub fn response(&self, facts: &Facts<'_>, status: StatusCode, headers: &mut HeaderMap) -> Result<(), Fault> {
        if self.seat.manifest.response_headers.is_empty() {
            return Ok(());
        }
        let request = self.seat.request(facts);
        let wanted = wanted(headers, &self.seat.manifest.response_headers);
        let said = self.seat.call("rewrite-response", facts, |store, world| {
            let status = u32::from(status.as_u16());
            world.tollgate_policy_rewriter().call_rewrite_response(store, &request, status, &wanted)
        })?;
        let edits = said.map_err(|reason| self.seat.fault("rewrite-response", FaultKind::Failed, cut(reason)))?;
        self.apply("rewrite-response", edits, headers)
    }

    fn refusal(&self, refusal: Refusal) -> Result<Refused, Fault> {
        let status = u16::try_from(refusal.status).ok().filter(|status| (400..600).contains(status));
        match status.and_then(|status| StatusCode::from_u16(status).ok()) {
            Some(status) => Ok(Refused { status, message: cut(refusal.message) }),
            None => {
                let detail = format!("bad output: a refusal with status {}", refusal.status);
                Err(self.seat.fault("rewrite-request", FaultKind::BadOutput, detail))
            }
        }
    }

    /// Makes all edits or none.
    fn apply(&self, call: &'static str, edits: Vec<Edit>, headers: &mut HeaderMap) -> Result<(), Fault> {
        let bad = |what: String| self.seat.fault(call, FaultKind::BadOutput, format!("bad output: {what}"));
        if edits.len() > EDITS {
            return Err(bad(format!("{} edits, more than {EDITS}", edits.len())));
        }
        let checked: Vec<Checked> = edits.into_iter().map(check).collect::<Result<_, _>>().map_err(bad)?;
        let size: usize = checked.iter().map(Checked::size).sum();
        if size > EDIT_BYTES {
            return Err(bad(format!("edits of {size} bytes, more than {EDIT_BYTES}")));
        }
        for edit in checked {
            match edit {
                Checked::Set(name, value) => drop(headers.insert(name, value)),
                Checked::Append(name, value) => drop(headers.append(name, value)),
                Checked::Remove(name) => drop(headers.remove(name)),
            }
        }
        Ok(())
    }
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

fn check(edit: Edit) -> Result<Checked, String> {
    let field = |header: Header| {
        let name = check_name(&header.name)?;
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| format!("header {name}: a value with a character that no field may hold"))?;
        Ok::<_, String>((name, value))
    };
    Ok(match edit {
        Edit::Set(header) => field(header).map(|(name, value)| Checked::Set(name, value))?,
        Edit::Append(header) => field(header).map(|(name, value)| Checked::Append(name, value))?,
        Edit::Remove(name) => Checked::Remove(check_name(&name)?),
    })
}

fn check_name(name: &str) -> Result<HeaderName, String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("header name {:?}", cut(name.to_owned())))?;
    if is_reserved(parsed.as_str()) { Err(format!("header {parsed} is reserved")) } else { Ok(parsed) }
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
            let wanted = all || names.iter().any(|wanted| wanted == name.as_str());
            wanted && !is_reserved(name.as_str()) && !value.is_sensitive()
        })
        .filter_map(|(name, value)| {
            Some(Header { name: name.as_str().to_owned(), value: value.to_str().ok()?.to_owned() })
        })
        .collect()
}
