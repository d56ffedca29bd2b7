//! A pool: its members, and the balancer that chooses among them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::parts::ServiceParts;
use crate::config::PoolConfig;
use crate::credentials::Credential;
use crate::policy::{BalancerGeneration, PoolMembers};
use crate::upstream::UpstreamClient;

/// A credential of a pool, and the connections that are made with it.
#[derive(Debug)]
pub(crate) struct PoolMember {
    credential: Arc<Credential>,
    upstream: UpstreamClient,
}

impl PoolMember {
    pub(crate) fn credential(&self) -> &Arc<Credential> {
        &self.credential
    }

    pub(crate) fn upstream(&self) -> &UpstreamClient {
        &self.upstream
    }
}

/// The credentials that a user's requests can be sent with. It has at least one member.
#[derive(Debug)]
pub(crate) struct CredentialPool {
    tag: Arc<str>,
    members: Vec<Arc<PoolMember>>,
    balancer: Arc<BalancerGeneration>,
    is_single: bool,
    state: Arc<PoolState>,
}

/// What outlives a configuration as long as the pool's members stay the same.
#[derive(Debug)]
struct PoolState {
    members: Vec<Arc<str>>,
    announced: Mutex<AnnouncedMembers>,
    homeless: AtomicU64,
}

/// The members as they were last announced to balancers.
#[derive(Debug)]
struct AnnouncedMembers {
    /// The sum of the versions of their plans at that time.
    plan_versions: u64,
    members: PoolMembers,
}

impl CredentialPool {
    pub(super) fn new(
        config: &PoolConfig,
        balancer: &Arc<BalancerGeneration>,
        parts: &ServiceParts,
        before: Option<&Self>,
    ) -> Self {
        let member = |index: &usize| {
            Arc::new(PoolMember {
                credential: Arc::clone(&parts.credentials[*index]),
                upstream: parts.upstreams[*index].clone(),
            })
        };
        let members: Vec<Arc<PoolMember>> = config.members.iter().map(member).collect();
        let names: Vec<Arc<str>> = members
            .iter()
            .map(|member| Arc::clone(member.credential.shared_tag()))
            .collect();
        let state = match before {
            Some(before) if before.state.members == names => Arc::clone(&before.state),
            _ => Arc::new(PoolState {
                announced: Mutex::new(AnnouncedMembers {
                    plan_versions: plan_versions(&members),
                    members: PoolMembers::new(tags_and_plans(&members)),
                }),
                members: names,
                homeless: AtomicU64::new(0),
            }),
        };
        Self {
            tag: config.tag.as_str().into(),
            members,
            balancer: Arc::clone(balancer),
            is_single: config.single,
            state,
        }
    }

    pub(crate) fn tag(&self) -> &Arc<str> {
        &self.tag
    }

    pub(crate) fn members(&self) -> &[Arc<PoolMember>] {
        &self.members
    }

    pub(crate) fn credentials(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.members.iter().map(|member| &member.credential)
    }

    pub(crate) fn contains(&self, credential: &Arc<Credential>) -> bool {
        self.credentials()
            .any(|member| Arc::ptr_eq(member, credential))
    }

    pub(crate) fn balancer(&self) -> &Arc<BalancerGeneration> {
        &self.balancer
    }

    /// Returns whether it is a credential that is used alone: there is nothing to choose.
    pub(crate) fn is_single(&self) -> bool {
        self.is_single
    }

    /// Returns the members as they are announced to a balancer, with their current plans.
    pub(crate) fn balancer_members(&self) -> PoolMembers {
        let plan_versions = plan_versions(&self.members);
        let mut announced = self
            .state
            .announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if announced.plan_versions != plan_versions {
            let members = announced.members.changed(tags_and_plans(&self.members));
            *announced = AnnouncedMembers {
                plan_versions,
                members,
            };
        }
        announced.members.clone()
    }

    /// Returns the number of the next request whose session has no home. Requests without a home
    /// are counted.
    pub(crate) fn sequence(&self, home: Option<usize>) -> u64 {
        let homeless = &self.state.homeless;
        match home {
            Some(_) => homeless.load(Ordering::Relaxed),
            None => homeless.fetch_add(1, Ordering::Relaxed),
        }
    }
}

fn plan_versions(members: &[Arc<PoolMember>]) -> u64 {
    members
        .iter()
        .map(|member| member.credential.plan_version())
        .sum()
}

fn tags_and_plans(members: &[Arc<PoolMember>]) -> Vec<(String, String)> {
    members
        .iter()
        .map(|member| (member.credential.tag().to_owned(), member.credential.plan()))
        .collect()
}
