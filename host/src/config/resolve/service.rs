//! One OCM service. Its credentials, pools, users, headers and TLS are resolved by a file each.

mod credentials;
mod headers;
mod listen;
mod pools;
mod tls;
mod users;

use serde_json::json;

use self::tls::AcmeScope;
use self::users::PoolChoice;
use super::field;
use super::outbounds::environment_route;
use super::scope::ResolveScope;
use crate::config::model::{
    ListenAddress, PolicyId, ServiceConfig, TlsConfig, UpstreamEndpoints, UpstreamRoute,
};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::{PolicyKind, RawEndpoints, RawOcm};
use crate::config::shipped::ShippedPolicy;

const CHATGPT_URL: &str = "https://chatgpt.com/backend-api";
const API_URL: &str = "https://api.openai.com";
const TOKEN_URL: &str = "https://auth.openai.com/oauth/token";

/// Resolves the service at `path`. Returns `None` only if there is a problem.
pub(super) fn service(
    path: &ConfigPath,
    tag: String,
    raw: &RawOcm,
    scope: &mut ResolveScope<'_>,
) -> Option<ServiceConfig> {
    let trusted_proxies = listen::trusted_proxies(path, raw, scope.report);
    let listen = listen::listen(path, raw, &trusted_proxies, scope.report);
    scope.default_route = if raw.use_environment_proxy {
        environment_route(&path.key("use_environment_proxy"), scope.report)
    } else {
        UpstreamRoute::Direct
    };
    let (choice, pools) = if raw.credentials.as_slice().is_empty() {
        (PoolChoice::Single, pools::single(path, raw, scope))
    } else {
        (PoolChoice::ByTag, pools::listed(path, raw, scope))
    };
    let entries = raw.users.as_slice();
    let users = users::users(path, entries, choice, &pools.pools, scope.report);
    credentials::check_reverse_tokens(path, raw, &users, scope.report);
    credentials::check_mutual_use(path, raw, scope.report);
    let acme = AcmeScope {
        providers: scope.certificate_providers,
        data_dir: scope.data_dir.as_deref(),
    };
    let tls = tls::tls(&path.key("tls"), &raw.tls, acme, scope.report);
    if let Some(ListenAddress::Ip(address)) = listen.as_ref().map(|listen| &listen.address)
        && users.is_empty()
        && !tls.as_ref().is_some_and(admits_known_clients_only)
        && !address.ip().is_loopback()
    {
        let message = format!(
            "{} is not a loopback address and there are no users: everyone who can connect uses your credentials",
            address.ip()
        );
        scope.report.warning(path.key("listen"), message);
    }
    let rewriters = rewriters(path, raw, scope);
    let pricer = match &raw.pricer {
        Some(tag) => scope.policy(tag, PolicyKind::Pricer, &path.key("pricer")),
        None => Some(
            scope
                .policies
                .shipped(ShippedPolicy::OpenaiPricing, json!({})),
        ),
    };
    let endpoints = endpoints(&path.key("endpoints"), &raw.endpoints, scope.report);
    Some(ServiceConfig {
        tag,
        listen: listen?,
        trusted_proxies,
        tls,
        users,
        credentials: pools.credentials,
        pools: pools.pools,
        default_pool: pools.default_pool,
        endpoints: endpoints?,
        pricer: pricer?,
        rewriters,
    })
}

/// Whether clients without a certificate that was checked are rejected.
fn admits_known_clients_only(tls: &TlsConfig) -> bool {
    tls.client_authentication.as_ref().is_some_and(|clients| {
        let is_checked = clients.mode.verifies() && !clients.authorities.is_empty()
            || !clients.public_keys.is_empty();
        clients.mode.is_mandatory() && is_checked
    })
}

fn rewriters(path: &ConfigPath, raw: &RawOcm, scope: &mut ResolveScope<'_>) -> Vec<PolicyId> {
    let list = path.key("rewriters");
    let mut rewriters = Vec::new();
    for (index, tag) in raw.rewriters.as_slice().iter().enumerate() {
        rewriters.extend(scope.policy(tag, PolicyKind::Rewriter, &list.index(index)));
    }
    let set = headers::headers(&path.key("headers"), &raw.headers, scope.report);
    if !set.is_empty() {
        let config = json!({ "set": set });
        rewriters.push(
            scope
                .policies
                .shipped(ShippedPolicy::StandardHeaders, config),
        );
    }
    rewriters
}

fn endpoints(
    path: &ConfigPath,
    raw: &RawEndpoints,
    report: &mut ProblemReport,
) -> Option<UpstreamEndpoints> {
    let mut url = |name: &str, set: Option<&str>, default: &str| {
        field::url(set.unwrap_or(default), path.key(name), report)
    };
    let chatgpt = url("chatgpt", raw.chatgpt.as_deref(), CHATGPT_URL);
    let api = url("api", raw.api.as_deref(), API_URL);
    let token = url("token", raw.token.as_deref(), TOKEN_URL);
    Some(UpstreamEndpoints {
        chatgpt: chatgpt?,
        api: api?,
        token: token?,
    })
}
