//! The users of a service.

use std::collections::{BTreeSet, HashSet};

use crate::config::model::{PoolConfig, UserConfig};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawUser;
use crate::config::resolve::field;
use crate::values::secret::SecretString;

/// How the users of a service get their pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolChoice {
    /// The service has a single credential.
    Single,
    /// The service lists credentials, and each user names one entry.
    ByTag,
}

/// Resolves the users of the service at `path`.
pub(super) fn users(
    path: &ConfigPath,
    entries: &[RawUser],
    choice: PoolChoice,
    pools: &[PoolConfig],
    report: &mut ProblemReport,
) -> Vec<UserConfig> {
    let list = path.key("users");
    let mut names = HashSet::new();
    let mut tokens = HashSet::new();
    let mut users = Vec::new();
    for (index, user) in entries.iter().enumerate() {
        let path = list.index(index);
        if user.name.is_empty() {
            let message = "missing: the user's requests are recorded without a name";
            report.warning(path.key("name"), message);
        } else if !names.insert(user.name.as_str()) {
            let message = format!(
                "duplicate name {:?}: both users' requests are recorded under it",
                user.name
            );
            report.warning(path.key("name"), message);
        }
        let token_field = path.key("token");
        if let Some(problem) = user.token.problem() {
            report.problem(token_field, problem);
        } else if !tokens.insert(&*user.token) {
            report.problem(token_field, "duplicate token: another user has the same");
        } else if !field::is_sendable_token(&user.token) {
            let message = "no client can send it: expected text without control characters or \
                spaces at its ends, found others";
            report.warning(token_field, message);
        } else {
            field::warn_if_short(&user.token, token_field, report);
        }
        let pool = pool_of(&path, user, choice, pools, report);
        if let Some(pool) = pools.get(pool)
            && pool.only_external
            && !user.allow_external_usage
        {
            let message = format!(
                "false: the user's requests are rejected, because {:?} consists of external \
                credentials only",
                pool.tag
            );
            report.warning(path.key("allow_external_usage"), message);
        }
        users.push(UserConfig {
            name: user.name.clone(),
            token: SecretString::new(user.token.to_string()),
            pool,
            allow_external_usage: user.allow_external_usage,
            external_credential: external_credential(&path, user, choice, pools, report),
        });
    }
    users
}

/// Returns the external credential that is left out of the user's status.
fn external_credential(
    path: &ConfigPath,
    user: &RawUser,
    choice: PoolChoice,
    pools: &[PoolConfig],
    report: &mut ProblemReport,
) -> Option<String> {
    let tag = field::non_empty(user.external_credential.as_deref())?;
    if choice == PoolChoice::Single {
        let message = "ignored: it has an effect only with \"credentials\"";
        report.warning(path.key("external_credential"), message);
        return None;
    }
    let is_external = pools
        .iter()
        .any(|pool| pool.tag == tag && pool.single && pool.only_external);
    if !is_external {
        let message = format!("expected the tag of an external credential, found {tag:?}");
        report.problem(path.key("external_credential"), message);
    }
    Some(tag.to_owned())
}

/// Returns the user's pool, as an index. After a problem it is the first one.
fn pool_of(
    path: &ConfigPath,
    user: &RawUser,
    choice: PoolChoice,
    pools: &[PoolConfig],
    report: &mut ProblemReport,
) -> usize {
    let message = match (choice, field::non_empty(user.credential.as_deref())) {
        (PoolChoice::Single, None) => return 0,
        (PoolChoice::Single, Some(_)) => {
            let message = "ignored: it has an effect only with \"credentials\"";
            report.warning(path.key("credential"), message);
            return 0;
        }
        // There is nothing to choose from.
        (PoolChoice::ByTag, None) if pools.len() == 1 => return 0,
        (PoolChoice::ByTag, None) => {
            "missing: with \"credentials\", each user needs one of their tags".to_owned()
        }
        (PoolChoice::ByTag, Some(tag)) => match pools.iter().position(|pool| pool.tag == tag) {
            Some(pool) => return pool,
            None => format!("expected one of {}, found {tag:?}", tags(pools)),
        },
    };
    report.problem(path.key("credential"), message);
    0
}

fn tags(pools: &[PoolConfig]) -> String {
    let tags: BTreeSet<&str> = pools
        .iter()
        .map(|pool| pool.tag.as_str())
        .filter(|tag| !tag.is_empty())
        .collect();
    let quoted: Vec<String> = tags.iter().map(|tag| format!("{tag:?}")).collect();
    quoted.join(", ")
}
