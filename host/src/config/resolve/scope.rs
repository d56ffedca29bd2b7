//! What the services of a configuration share while they are resolved: the outbounds they may name,
//! the policies they use, the files they claim, and what was found wrong so far.

use std::path::PathBuf;

use super::claimed_files::ClaimedFiles;
use super::policies::DeclaredPolicies;
use crate::config::model::PolicyId;
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{PolicyKind, RawCertificateProvider, RawOutbound};

pub(super) struct ResolveScope<'a> {
    pub(super) outbounds: &'a [RawOutbound],
    pub(super) certificate_providers: &'a [RawCertificateProvider],
    /// The folder of the ledger, if it is known.
    pub(super) data_dir: Option<PathBuf>,
    pub(super) policies: DeclaredPolicies,
    pub(super) files: ClaimedFiles,
    pub(super) report: &'a mut ProblemReport,
}

impl ResolveScope<'_> {
    /// Returns the configured policy that `field` names, if it is of `kind`.
    pub(super) fn policy(
        &mut self,
        tag: &str,
        kind: PolicyKind,
        field: &ConfigPath,
    ) -> Option<PolicyId> {
        self.policies.named(tag, kind, field, self.report)
    }

    /// Reports a `detour` that does not name a supported outbound.
    pub(super) fn check_detour(&mut self, detour: Option<&str>, field: ConfigPath) {
        let Some(tag) = detour.filter(|tag| !tag.is_empty()) else {
            return;
        };
        let outbound = self.outbounds.iter().find(|outbound| outbound.tag == tag);
        let message = match outbound {
            Some(outbound) if outbound.kind == "direct" => return,
            Some(outbound) => format!(
                "outbounds of type {:?} are not supported yet",
                outbound.kind
            ),
            None => format!("expected the tag of an outbound, found {tag:?}"),
        };
        self.report.problem(field, message);
    }
}
