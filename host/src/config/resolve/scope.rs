//! What the services of a configuration share while they are resolved: the outbounds they may name,
//! the policies they use, the files they claim, and what was found wrong so far.

use std::path::PathBuf;

use super::claimed_files::ClaimedFiles;
use super::outbounds::DeclaredOutbounds;
use super::policies::DeclaredPolicies;
use crate::config::model::{PolicyId, UpstreamRoute};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{PolicyKind, RawCertificateProvider};

pub(super) struct ResolveScope<'a> {
    pub(super) outbounds: DeclaredOutbounds<'a>,
    /// The route of credentials without a `detour`, in the service that is being resolved.
    pub(super) default_route: UpstreamRoute,
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

    /// Returns the route of a credential whose `detour` is in `field`.
    pub(super) fn route(&mut self, detour: Option<&str>, field: ConfigPath) -> UpstreamRoute {
        self.outbounds
            .route(detour, &self.default_route, field, self.report)
    }
}
