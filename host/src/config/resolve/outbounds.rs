//! The outbounds of the configuration, by their tags, and the routes that credentials take through
//! them. An outbound of another type than those supported is no problem before something uses it.

mod environment;
mod proxy;
mod proxy_tls;
mod sockets;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::field;
use crate::config::model::{OutboundCarrier, OutboundConfig, OutboundProtocol, UpstreamRoute};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{OutboundType, RawOutbound, RawSupportedOutbound};
use crate::values::limits::OUTBOUND_CHAIN;

pub(super) use environment::environment_route;

/// An outbound after it was resolved.
#[derive(Clone)]
enum DeclaredOutbound {
    Usable(Arc<OutboundConfig>),
    /// It has a problem that was reported.
    Broken,
    /// Nothing can use it, for this reason.
    Unsupported(String),
}

/// The outbounds of the configuration.
pub(super) struct DeclaredOutbounds<'a> {
    by_tag: HashMap<&'a str, DeclaredOutbound>,
}

impl<'a> DeclaredOutbounds<'a> {
    /// Resolves `entries`. `endpoints` are the types of sing-box's endpoints, by their tags.
    pub(super) fn configured(
        entries: &'a [RawOutbound],
        endpoints: &'a BTreeMap<String, String>,
        report: &mut ProblemReport,
    ) -> Self {
        let list = ConfigPath::root().key("outbounds");
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let tag = entry.tag();
            if !tag.is_empty() && places.insert(tag, index).is_some() {
                let message = format!("duplicate tag {tag:?}");
                report.problem(list.index(index).key("tag"), message);
            }
        }
        let mut resolver = OutboundResolver {
            list,
            entries,
            places,
            endpoints,
            resolved: vec![None; entries.len()],
            report,
        };
        let outbounds = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.tag(), resolver.outbound(index, &mut Vec::new())))
            .filter(|(tag, _)| !tag.is_empty());
        let unsupported = endpoints.iter().map(|(tag, kind)| {
            let reason = unsupported_endpoint(kind);
            (tag.as_str(), DeclaredOutbound::Unsupported(reason))
        });
        // An outbound with the tag of an endpoint replaces it.
        let by_tag = unsupported.chain(outbounds).collect();
        Self { by_tag }
    }

    /// Returns the route through the outbound that `detour` names, or `default` without one.
    pub(super) fn route(
        &self,
        detour: Option<&str>,
        default: &UpstreamRoute,
        field: ConfigPath,
        report: &mut ProblemReport,
    ) -> UpstreamRoute {
        let Some(tag) = field::non_empty(detour) else {
            return default.clone();
        };
        match self.by_tag.get(tag) {
            Some(DeclaredOutbound::Usable(outbound)) => {
                return UpstreamRoute::Outbound(Arc::clone(outbound));
            }
            Some(DeclaredOutbound::Broken) => {}
            Some(DeclaredOutbound::Unsupported(reason)) => report.problem(field, reason),
            None => {
                let message = format!("expected the tag of an outbound, found {tag:?}");
                report.problem(field, message);
            }
        }
        UpstreamRoute::Direct
    }
}

struct OutboundResolver<'a, 'f> {
    list: ConfigPath,
    entries: &'a [RawOutbound],
    /// The index of each tag.
    places: HashMap<&'a str, usize>,
    /// The types of sing-box's endpoints, by their tags.
    endpoints: &'a BTreeMap<String, String>,
    resolved: Vec<Option<DeclaredOutbound>>,
    report: &'f mut ProblemReport,
}

impl OutboundResolver<'_, '_> {
    /// Resolves the entry at `index`. `chain` has the outbounds that connect through it.
    fn outbound(&mut self, index: usize, chain: &mut Vec<usize>) -> DeclaredOutbound {
        if let Some(resolved) = &self.resolved[index] {
            return resolved.clone();
        }
        let resolved = match &self.entries[index] {
            RawOutbound::Supported(raw) => {
                chain.push(index);
                let resolved = self.supported(index, raw, chain);
                chain.pop();
                resolved
            }
            RawOutbound::Other(other) => DeclaredOutbound::Unsupported(format!(
                "outbounds of type {:?} are not supported: expected \"direct\", \"socks\" or \"http\"",
                other.kind.0
            )),
        };
        self.resolved[index] = Some(resolved.clone());
        resolved
    }

    fn supported(
        &mut self,
        index: usize,
        raw: &RawSupportedOutbound,
        chain: &mut Vec<usize>,
    ) -> DeclaredOutbound {
        let path = self.list.index(index);
        for name in raw.ignored_fields() {
            self.report
                .warning(path.key(name), "ignored: it has no effect here");
        }
        for name in raw.misplaced_fields() {
            let message = format!("not allowed for an outbound of type {}", kind_of(raw));
            self.report.problem(path.key(name), message);
        }
        let carrier = match field::non_empty(raw.detour.as_deref()) {
            Some(tag) => self.through(&path, raw, tag, chain),
            None => sockets::options(&path, raw, self.report)
                .map(OutboundCarrier::Sockets)
                .ok_or(DeclaredOutbound::Broken),
        };
        let protocol = match raw.kind {
            OutboundType::Direct => Some(OutboundProtocol::Direct),
            OutboundType::Socks => {
                proxy::socks(&path, raw, self.report).map(OutboundProtocol::Socks)
            }
            OutboundType::Http => {
                let proxy = proxy::http(&path, raw, self.report);
                proxy.map(|proxy| OutboundProtocol::Http(Box::new(proxy)))
            }
        };
        match (protocol, carrier) {
            (None, _) => DeclaredOutbound::Broken,
            (Some(_), Err(unusable)) => unusable,
            (Some(protocol), Ok(carrier)) => DeclaredOutbound::Usable(Arc::new(OutboundConfig {
                tag: raw.tag.clone(),
                protocol,
                carrier,
            })),
        }
    }

    /// Resolves the `detour` of the outbound at `path`.
    fn through(
        &mut self,
        path: &ConfigPath,
        raw: &RawSupportedOutbound,
        tag: &str,
        chain: &mut Vec<usize>,
    ) -> Result<OutboundCarrier, DeclaredOutbound> {
        for name in raw.socket_fields() {
            self.report
                .warning(path.key(name), "ignored: the outbound has a detour");
        }
        let field = path.key("detour");
        let Some(place) = self.places.get(tag).copied() else {
            if let Some(kind) = self.endpoints.get(tag) {
                return Err(behind(raw, tag, &unsupported_endpoint(kind)));
            }
            let message = format!("expected the tag of an outbound, found {tag:?}");
            self.report.problem(field, message);
            return Err(DeclaredOutbound::Broken);
        };
        if let Some(begin) = chain.iter().position(|index| *index == place) {
            let message = format!("the outbounds are a cycle: {}", self.cycle(&chain[begin..]));
            self.report.problem(field, message);
            return Err(DeclaredOutbound::Broken);
        }
        if chain.len() >= OUTBOUND_CHAIN {
            let message = format!("expected at most {OUTBOUND_CHAIN} outbounds in a chain");
            self.report.problem(field, message);
            return Err(DeclaredOutbound::Broken);
        }
        match self.outbound(place, chain) {
            DeclaredOutbound::Usable(outbound) => Ok(OutboundCarrier::Outbound(Box::new(
                Arc::unwrap_or_clone(outbound),
            ))),
            DeclaredOutbound::Broken => Err(DeclaredOutbound::Broken),
            DeclaredOutbound::Unsupported(reason) => Err(behind(raw, tag, &reason)),
        }
    }

    /// Returns the tags of `chain` and the first one again: `"a" -> "b" -> "a"`.
    fn cycle(&self, chain: &[usize]) -> String {
        let tags: Vec<String> = chain
            .iter()
            .chain(chain.first())
            .map(|index| format!("{:?}", self.entries[*index].tag()))
            .collect();
        tags.join(" -> ")
    }
}

/// Returns why nothing can use an endpoint of sing-box.
fn unsupported_endpoint(kind: &str) -> String {
    format!(
        "endpoints of type {kind:?} are not supported: expected the tag of an outbound of type \"direct\", \"socks\" or \"http\""
    )
}

/// Returns that an outbound cannot be used because its detour `tag` cannot, for `reason`.
fn behind(raw: &RawSupportedOutbound, tag: &str, reason: &str) -> DeclaredOutbound {
    DeclaredOutbound::Unsupported(format!(
        "outbound {:?} has the detour {tag:?}: {reason}",
        raw.tag
    ))
}

fn kind_of(raw: &RawSupportedOutbound) -> &'static str {
    match raw.kind {
        OutboundType::Direct => "\"direct\"",
        OutboundType::Socks => "\"socks\"",
        OutboundType::Http => "\"http\"",
    }
}
