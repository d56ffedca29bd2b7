//! The configuration as an operator writes it. The JSON Schema is generated from these types, files
//! are checked against it, and editors show the doc comments. Only the form is defined here;
//! `resolve` decides whether the values make sense.

mod acme;
mod credential;
mod form;
mod limits;
mod log;
mod outbound;
mod policy;
mod service;
mod tls;
mod unsupported;

use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use acme::{RawAcme, RawCertificateProvider, RawExternalAccount};
pub(super) use credential::{RawBalancer, RawCredential, RawDefault, RawExternal, RawFallback};
pub(super) use form::{OneOrMany, RawDuration, RawRoutingMark, RequiredText};
pub(super) use limits::RawLimits;
pub(super) use log::RawLog;
pub(super) use outbound::{OutboundType, RawOutbound, RawProxyTls, RawSupportedOutbound};
pub(super) use policy::RawPolicy;
pub(super) use service::{RawEndpoints, RawOcm, RawService, RawUser};
pub(super) use tls::RawTls;

pub use log::{LogFormat, LogLevel};
pub use policy::{OnFailure, PolicyKind};

/// The configuration of Tollgate, as an operator writes it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    /// Where and how the log is written.
    pub(super) log: RawLog,
    /// The services: entries of type `ocm`.
    pub(super) services: OneOrMany<RawService>,
    /// Ways to reach upstream, for `detour`.
    pub(super) outbounds: OneOrMany<RawOutbound>,
    /// Your own policies, and shipped ones with another configuration.
    pub(super) policies: OneOrMany<RawPolicy>,
    /// The folder of the ledger. Default: `$XDG_DATA_HOME/tollgate` or `~/.local/share/tollgate`.
    pub(super) data_dir: Option<String>,
    /// The listener for operators: health, metrics and policies over HTTP.
    pub(super) admin: Option<RawAdmin>,
    /// The limits of the gateway. Sizes are in bytes, or texts such as `16MiB`.
    pub(super) limits: RawLimits,
    /// What verifies the certificates of upstream.
    pub(super) certificate: RawTrust,
    /// Where certificates come from, for `tls.certificate_provider`.
    pub(super) certificate_providers: OneOrMany<RawCertificateProvider>,
    /// The JSON Schema of this file, for editors.
    #[serde(rename = "$schema")]
    schema: Option<String>,
}

/// What verifies the certificates of upstream, and of proxies on the way to it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTrust {
    /// The certificates of authorities to begin with: `system`, `mozilla`, `chrome` or `none`.
    /// Those of `mozilla` and `chrome` are not included: the system's are used. Default: `system`.
    pub(super) store: Option<String>,
    /// Further certificates of authorities, in PEM: a list of lines, or one text.
    pub(super) certificate: OneOrMany<String>,
    /// The files of further certificates of authorities.
    pub(super) certificate_path: OneOrMany<String>,
    /// The folders whose files have further certificates of authorities.
    pub(super) certificate_directory_path: OneOrMany<String>,
}

/// The listener for operators.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    /// The IP address to listen on. Default: `127.0.0.1`.
    pub(super) listen: Option<String>,
    /// The port to listen on. With 0 the system chooses one. Default: 9090.
    pub(super) listen_port: Option<u16>,
    /// The token that operators send as `Authorization: Bearer`. Required if the address is not
    /// loopback. Without a token, policies cannot be changed over this listener.
    pub(super) token: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn debug_prints_no_token_login_or_key() {
        let raw: RawConfig = serde_json::from_value(json!({
            "services": [{
                "type": "ocm",
                "credentials": [{ "type": "external", "tag": "x", "token": "canary" }],
                "users": [{ "name": "alice", "token": "canary" }],
            }],
            "outbounds": [{
                "type": "http", "tag": "out", "username": "canary", "password": "canary",
                "headers": { "x-a": "canary" }, "tls": { "client_key": "canary" },
            }],
        }))
        .expect("a configuration");
        let text = format!("{raw:?}");
        assert!(text.contains("out") && !text.contains("canary"), "{text}");
        let tls: RawProxyTls =
            serde_json::from_value(json!({ "client_key": "canary" })).expect("a section");
        let text = format!("{tls:?}");
        assert!(!text.contains("canary"), "{text}");
    }
}
