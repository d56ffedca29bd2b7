//! The list `credentials` of a service: credentials, and pools that contain them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::form::{OneOrMany, RawDuration, RequiredText};

/// A credential, or a pool of credentials.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum RawCredential {
    /// A credential in a file.
    Default(RawDefault),
    /// A pool with a strategy.
    Balancer(RawBalancer),
    /// A pool whose members are used in order.
    Fallback(RawFallback),
    /// A user's account at another gateway.
    External(RawExternal),
}

impl RawCredential {
    pub(in crate::config) fn tag(&self) -> &str {
        self.required_tag()
    }

    pub(in crate::config) fn required_tag(&self) -> &RequiredText {
        match self {
            Self::Default(entry) => &entry.tag,
            Self::Balancer(entry) => &entry.tag,
            Self::Fallback(entry) => &entry.tag,
            Self::External(entry) => &entry.tag,
        }
    }
}

/// Declares an enum with the only value that the field `type` of a form may have.
macro_rules! type_name {
    ($name:ident { $variant:ident }) => {
        #[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        enum $name {
            $variant,
        }
    };
}

type_name!(DefaultType { Default });
type_name!(BalancerType { Balancer });
type_name!(FallbackType { Fallback });
type_name!(ExternalType { External });

/// A credential in a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawDefault {
    /// `default`, or left out.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its form only")]
    kind: Option<DefaultType>,
    /// The credential's name, unique in its service.
    #[serde(default)]
    pub(in crate::config) tag: RequiredText,
    /// The file. Default: `$CODEX_HOME/auth.json` or `~/.codex/auth.json`.
    pub(in crate::config) credential_path: Option<String>,
    /// The usage file. Default: none.
    pub(in crate::config) usages_path: Option<String>,
    /// The outbound to upstream.
    pub(in crate::config) detour: Option<String>,
    /// Pauses the credential when no more than this many percent of its 5-hour window are left. 0:
    /// not set.
    #[schemars(range(min = 0, max = 99))]
    pub(in crate::config) reserve_5h: Option<u8>,
    /// Pauses the credential when no more than this many percent of its weekly window are left. 0:
    /// not set.
    #[schemars(range(min = 0, max = 99))]
    pub(in crate::config) reserve_weekly: Option<u8>,
    /// Pauses the credential when this many percent of its 5-hour window are used. Not with
    /// `reserve_5h`. 0: not set.
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) limit_5h: Option<u8>,
    /// Pauses the credential when this many percent of its weekly window are used. Not with
    /// `reserve_weekly`. 0: not set.
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) limit_weekly: Option<u8>,
}

/// A pool with a strategy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawBalancer {
    /// The type: always `balancer`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its form only")]
    kind: BalancerType,
    /// The pool's name, unique among the service's credentials and pools.
    #[serde(default)]
    pub(in crate::config) tag: RequiredText,
    /// `least_used`, `round_robin`, `random`, `fallback`, or the tag of a policy. Default:
    /// `least_used`.
    pub(in crate::config) strategy: Option<String>,
    /// The tags of its members.
    #[serde(default)]
    pub(in crate::config) credentials: OneOrMany<String>,
    /// How often upstream is polled for the members' usage; `0s` disables this. Default: `60s`.
    pub(in crate::config) poll_interval: Option<RawDuration>,
    /// Moves a session when its credential's weekly usage exceeds the lowest one by more than this
    /// many percentage points, divided by the weight of its plan. 0: never. Only for `least_used`.
    #[schemars(range(min = 0.0))]
    pub(in crate::config) rebalance_threshold: Option<f64>,
}

/// A pool whose members are used in order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawFallback {
    /// The type: always `fallback`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its form only")]
    kind: FallbackType,
    /// The pool's name, unique among the service's credentials and pools.
    #[serde(default)]
    pub(in crate::config) tag: RequiredText,
    /// The tags of its members, in order.
    #[serde(default)]
    pub(in crate::config) credentials: OneOrMany<String>,
    /// How often upstream is polled for the members' usage; `0s` disables this. Default: `60s`.
    pub(in crate::config) poll_interval: Option<RawDuration>,
}

/// Another gateway that speaks this protocol, with the token of one of its users.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RawExternal {
    /// The type: always `external`.
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its form only")]
    kind: ExternalType,
    /// The credential's name, unique in its service.
    #[serde(default)]
    pub(in crate::config) tag: RequiredText,
    /// Where the gateway listens, such as `https://gateway.example:8080`. Without it, the credential
    /// is usable while the other gateway is connected to this one.
    pub(in crate::config) url: Option<String>,
    /// The host to connect to. Default: the host of `url`, whose name TLS checks in any case.
    pub(in crate::config) server: Option<String>,
    /// The port to connect to. Default: the port of `url`.
    pub(in crate::config) server_port: Option<u16>,
    /// The token of one of its users. A gateway that connects to this one presents it, too.
    #[serde(default)]
    pub(in crate::config) token: RequiredText,
    /// Whether this gateway connects to the other one, for the requests of that one to flow over the
    /// connection. Default: false.
    #[serde(default)]
    pub(in crate::config) reverse: bool,
    /// The outbound to it.
    pub(in crate::config) detour: Option<String>,
    /// The usage file. Default: none.
    pub(in crate::config) usages_path: Option<String>,
    /// How often it is polled for its usage; `0s` disables this. Default: `60s`.
    pub(in crate::config) poll_interval: Option<RawDuration>,
}
