//! One service: listener, TLS, users, headers, endpoints, policies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use http::uri::Uri;
use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::Findings;
use super::credentials::{Files, Resolved, several, single};
use super::policies::Policies;
use crate::config::raw::{OneOrMany, RawConfig, RawEndpoints, RawOcm, RawTls, RawUser};
use crate::config::shape::join;
use crate::config::{
    HeaderFields, PolicyId, PolicyKind, PoolConfig, ServiceConfig, TlsConfig, TlsVersion,
    UpstreamEndpoints, UserConfig,
};
use crate::files::read_bounded;
use crate::values::headers::is_reserved;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

const PORT: u16 = 8080;
const CHATGPT: &str = "https://chatgpt.com/backend-api";
const API: &str = "https://api.openai.com";
const TOKEN: &str = "https://auth.openai.com/oauth/token";

/// Where a service stands in the file.
pub(super) struct Context<'a> {
    pub(super) path: String,
    pub(super) tag: String,
    pub(super) raw_config: &'a RawConfig,
}

/// None only where there is a problem.
pub(super) fn resolve(
    context: Context<'_>,
    raw: &RawOcm,
    policies: &mut Policies,
    files: &mut Files,
    findings: &mut Findings<'_>,
) -> Option<ServiceConfig> {
    for field in raw.later_fields() {
        findings.problem(
            join(&context.path, field),
            "this listen field is not there yet",
        );
    }
    let listen = listen(&context, raw, findings);
    let multiple = !raw.credentials.as_slice().is_empty();
    let Resolved {
        credentials,
        pools,
        first,
    } = if multiple {
        several(&context, raw, policies, files, findings)
    } else {
        single(&context, raw, policies, files, findings)
    };
    let users = users(&context, raw.users.as_slice(), multiple, &pools, findings);
    if let Some(listen) = listen
        && users.is_empty()
        && !listen.ip().is_loopback()
    {
        findings.warning(
            join(&context.path, "listen"),
            format!("{} is not loopback and there are no users: whoever reaches it uses your credentials", listen.ip()),
        );
    }
    let rewriters = rewriters(&context, raw, policies, findings);
    let pricer = match &raw.pricer {
        Some(tag) => policies.named(
            tag,
            PolicyKind::Pricer,
            &join(&context.path, "pricer"),
            findings,
        ),
        None => Some(policies.shipped("openai-pricing", json!({}))),
    };
    let endpoints = endpoints(&join(&context.path, "endpoints"), &raw.endpoints, findings);
    let tls = tls(&join(&context.path, "tls"), &raw.tls, findings);
    Some(ServiceConfig {
        tag: context.tag,
        listen: listen?,
        tls,
        users,
        credentials,
        pools,
        default_pool: first,
        endpoints: endpoints?,
        pricer: pricer?,
        rewriters,
    })
}

fn listen(context: &Context<'_>, raw: &RawOcm, findings: &mut Findings<'_>) -> Option<SocketAddr> {
    let address = address(&context.path, raw.listen.as_deref(), findings)?;
    Some(SocketAddr::new(address, raw.listen_port.unwrap_or(PORT)))
}

/// The address in the field `listen` of what stands at `path`.
pub(super) fn address(
    path: &str,
    listen: Option<&str>,
    findings: &mut Findings<'_>,
) -> Option<IpAddr> {
    match listen.filter(|text| !text.is_empty()) {
        None => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some(text) => match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let with_port = text.parse::<SocketAddr>().is_ok();
                let hint = if with_port {
                    "; the port goes into listen_port"
                } else {
                    ""
                };
                let message = format!(
                    "expected an IP address such as \"127.0.0.1\" or \"::\", found {text:?}{hint}"
                );
                findings.problem(join(path, "listen"), message);
                None
            }
        },
    }
}

fn users(
    context: &Context<'_>,
    raw: &[RawUser],
    multiple: bool,
    pools: &[PoolConfig],
    findings: &mut Findings<'_>,
) -> Vec<UserConfig> {
    let mut names = HashSet::new();
    let mut tokens = HashSet::new();
    let mut users = Vec::new();
    for (index, user) in raw.iter().enumerate() {
        let path = format!("{}.users[{index}]", context.path);
        if user.name.is_empty() {
            findings.problem(join(&path, "name"), "missing");
        } else if !names.insert(user.name.as_str()) {
            findings.problem(
                join(&path, "name"),
                format!("expected a name of its own, found {:?} again", user.name),
            );
        }
        let token_path = join(&path, "token");
        if user.token.is_empty() {
            findings.problem(token_path, "missing");
        } else if !user.token.bytes().all(|byte| byte.is_ascii_graphic()) {
            findings.problem(
                token_path,
                "expected visible ASCII characters without spaces, found others",
            );
        } else if !tokens.insert(user.token.as_str()) {
            findings.problem(
                token_path,
                "expected a token of its own, found that of another user",
            );
        }
        let pool = user_pool(&path, user, multiple, pools, findings);
        let only_external = pools.get(pool).is_some_and(|pool| pool.only_external);
        if only_external && !user.allow_external_usage {
            let tag = pools.get(pool).map_or("", |pool| pool.tag.as_str());
            let message =
                format!("expected true, found false: {tag:?} has nothing but other gateways");
            findings.problem(join(&path, "allow_external_usage"), message);
        }
        users.push(UserConfig {
            name: user.name.clone(),
            token: SecretString::new(user.token.clone()),
            pool,
            allow_external_usage: user.allow_external_usage,
        });
    }
    users
}

fn user_pool(
    path: &str,
    user: &RawUser,
    multiple: bool,
    pools: &[PoolConfig],
    findings: &mut Findings<'_>,
) -> usize {
    let path = join(path, "credential");
    match user.credential.as_deref().filter(|tag| !tag.is_empty()) {
        None if multiple => {
            findings.problem(path, "missing: with credentials, each user names one");
            0
        }
        None => 0,
        Some(_) if !multiple => {
            findings.problem(path, "only together with credentials");
            0
        }
        Some(tag) => match pools.iter().position(|pool| pool.tag == tag) {
            Some(pool) => pool,
            None => {
                let tags: BTreeSet<&str> = pools
                    .iter()
                    .map(|pool| pool.tag.as_str())
                    .filter(|tag| !tag.is_empty())
                    .collect();
                let known: Vec<String> = tags.iter().map(|tag| format!("{tag:?}")).collect();
                findings.problem(
                    path,
                    format!("expected one of {}, found {tag:?}", known.join(", ")),
                );
                0
            }
        },
    }
}

fn rewriters(
    context: &Context<'_>,
    raw: &RawOcm,
    policies: &mut Policies,
    findings: &mut Findings<'_>,
) -> Vec<PolicyId> {
    let mut rewriters = Vec::new();
    for (index, tag) in raw.rewriters.as_slice().iter().enumerate() {
        let path = format!("{}.rewriters[{index}]", context.path);
        rewriters.extend(policies.named(tag, PolicyKind::Rewriter, &path, findings));
    }
    let fields = header_fields(&join(&context.path, "headers"), &raw.headers, findings);
    if !fields.is_empty() {
        let set: BTreeMap<&str, Vec<&str>> = fields
            .iter()
            .map(|(name, values)| {
                (
                    name.as_str(),
                    values
                        .iter()
                        .filter_map(|value| value.to_str().ok())
                        .collect(),
                )
            })
            .collect();
        rewriters.push(policies.shipped("standard-headers", json!({ "set": set })));
    }
    rewriters
}

fn header_fields(
    path: &str,
    raw: &BTreeMap<String, OneOrMany<String>>,
    findings: &mut Findings<'_>,
) -> HeaderFields {
    let mut fields: HeaderFields = Vec::new();
    for (name, values) in raw {
        let path = join(path, name);
        let Ok(name) = name.parse::<HeaderName>() else {
            findings.problem(
                path,
                "expected the name of a header field, found another character in it",
            );
            continue;
        };
        if is_reserved(name.as_str()) {
            findings.warning(
                path,
                "left out: the gateway sets or removes this field itself",
            );
            continue;
        }
        let parsed: Option<Vec<HeaderValue>> = values
            .as_slice()
            .iter()
            .map(|value| {
                HeaderValue::from_str(value)
                    .ok()
                    .filter(|value| value.to_str().is_ok())
            })
            .collect();
        match parsed {
            Some(values) => fields.push((name, values)),
            None => findings.problem(path, "expected visible ASCII characters, found others"),
        }
    }
    fields
}

/// A `detour` must name an outbound that can be used.
pub(super) fn check_detour(
    context: &Context<'_>,
    detour: Option<&str>,
    path: &str,
    findings: &mut Findings<'_>,
) {
    let Some(tag) = detour.filter(|tag| !tag.is_empty()) else {
        return;
    };
    let outbounds = context.raw_config.outbounds.as_slice();
    match outbounds.iter().find(|outbound| outbound.tag == tag) {
        None => findings.problem(
            path,
            format!("expected the tag of an outbound, found {tag:?}"),
        ),
        Some(outbound) if outbound.kind == "direct" => {}
        Some(outbound) => {
            findings.problem(
                path,
                format!("an outbound of type {:?} is not there yet", outbound.kind),
            );
        }
    }
}

fn endpoints(
    path: &str,
    raw: &RawEndpoints,
    findings: &mut Findings<'_>,
) -> Option<UpstreamEndpoints> {
    let chatgpt = endpoint(
        &join(path, "chatgpt"),
        raw.chatgpt.as_deref().unwrap_or(CHATGPT),
        findings,
    );
    let api = endpoint(
        &join(path, "api"),
        raw.api.as_deref().unwrap_or(API),
        findings,
    );
    let token = endpoint(
        &join(path, "token"),
        raw.token.as_deref().unwrap_or(TOKEN),
        findings,
    );
    Some(UpstreamEndpoints {
        chatgpt: chatgpt?,
        api: api?,
        token: token?,
    })
}

pub(super) fn endpoint(path: &str, text: &str, findings: &mut Findings<'_>) -> Option<Uri> {
    let uri: Option<Uri> = text.trim_end_matches('/').parse().ok();
    let uri = uri.filter(|uri| {
        let scheme = uri.scheme_str();
        let plain_authority = uri.authority().is_some_and(|authority| {
            !authority.host().is_empty() && !authority.as_str().contains('@')
        });
        matches!(scheme, Some("http" | "https")) && plain_authority && uri.query().is_none()
    });
    if uri.is_none() {
        let message = "expected a URL such as \"https://example.com/path\", by http or https, without user, password and query";
        findings.problem(path, message);
    }
    uri
}

fn tls(path: &str, raw: &RawTls, findings: &mut Findings<'_>) -> Option<TlsConfig> {
    if !raw.enabled {
        return None;
    }
    for field in raw.later_fields() {
        findings.problem(join(path, field), "this TLS field is not there yet");
    }
    let certificate = pem(
        path,
        "certificate",
        &raw.certificate,
        raw.certificate_path.as_deref(),
        findings,
    );
    let key = pem(path, "key", &raw.key, raw.key_path.as_deref(), findings);
    let min_version = version(
        &join(path, "min_version"),
        raw.min_version.as_deref(),
        TlsVersion::V1_2,
        findings,
    );
    let max_version = version(
        &join(path, "max_version"),
        raw.max_version.as_deref(),
        TlsVersion::V1_3,
        findings,
    );
    if min_version > max_version {
        findings.problem(
            join(path, "min_version"),
            "expected at most max_version (1.2), found 1.3",
        );
        return None;
    }
    let (certificate_from, certificate) = certificate?;
    let (key_from, key) = key?;
    Some(TlsConfig {
        certificate,
        key: SecretString::new(String::from_utf8(key).unwrap_or_default()),
        certificate_from,
        key_from,
        alpn: alpn(&join(path, "alpn"), raw.alpn.as_slice(), findings),
        min_version,
        max_version,
    })
}

/// A PEM text and the JSON path that it came from.
fn pem(
    path: &str,
    name: &str,
    inline: &OneOrMany<String>,
    file: Option<&str>,
    findings: &mut Findings<'_>,
) -> Option<(String, Vec<u8>)> {
    let here = join(path, name);
    let file_path = join(path, &format!("{name}_path"));
    if !inline.as_slice().is_empty() {
        if file.is_some() {
            findings.problem(file_path, format!("not together with {name}"));
        }
        return Some((here, inline.as_slice().join("\n").into_bytes()));
    }
    let Some(file) = file else {
        findings.problem(file_path, "missing: TLS is enabled");
        return None;
    };
    match read_bounded(Path::new(file), CONFIG_FILE_BYTES) {
        Ok(bytes) => Some((file_path, bytes)),
        Err(error) => {
            findings.problem(file_path, format!("cannot read {file}: {error}"));
            None
        }
    }
}

fn version(
    path: &str,
    text: Option<&str>,
    default: TlsVersion,
    findings: &mut Findings<'_>,
) -> TlsVersion {
    match text {
        None => default,
        Some("1.2") => TlsVersion::V1_2,
        Some("1.3") => TlsVersion::V1_3,
        // Older ones are broken and no client of this gateway needs them; a lower bound below ours changes nothing.
        Some("1.0" | "1.1") if default == TlsVersion::V1_2 => TlsVersion::V1_2,
        Some(other) => {
            findings.problem(
                path,
                format!("expected \"1.2\" or \"1.3\", found {other:?}"),
            );
            default
        }
    }
}

fn alpn(path: &str, names: &[String], findings: &mut Findings<'_>) -> Vec<Vec<u8>> {
    if names.is_empty() {
        return vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    for (index, name) in names.iter().enumerate() {
        if !matches!(name.as_str(), "h2" | "http/1.1") {
            let message = format!("expected \"h2\" or \"http/1.1\", found {name:?}");
            findings.problem(format!("{path}[{index}]"), message);
        }
    }
    names.iter().map(|name| name.clone().into_bytes()).collect()
}
