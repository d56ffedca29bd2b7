//! A gateway whose credentials have detours.

use serde_json::{Value, json};
use tollgate_tests::{Client, Proxy, Rig, SeenTunnel};

/// A host that only the rig's proxies resolve.
pub(super) const REMOTE: &str = "upstream.invalid";

/// Returns a configuration whose only credential, `a`, has the detour `out`.
pub(super) fn config(rig: &Rig, outbounds: Value) -> Value {
    let mut credential = rig.oauth("a");
    credential["detour"] = json!("out");
    let mut config = rig.config(json!({ "credentials": [credential] }));
    config["outbounds"] = outbounds;
    config
}

/// Replaces the host of upstream by [`REMOTE`]. Upstream must not speak TLS.
pub(super) fn with_remote_name(config: Value) -> Value {
    let text = config.to_string();
    let text = text.replace("http://127.0.0.1:", &format!("http://{REMOTE}:"));
    serde_json::from_str(&text).expect("it is JSON still")
}

/// Starts a gateway whose only credential, `a`, has the detour `out`.
pub(super) async fn start(rig: &mut Rig, outbounds: Value) -> Client {
    let config = config(rig, outbounds);
    rig.start(config).await
}

/// Checks that `proxy` was asked for connections, all of them as `expected`.
#[track_caller]
pub(super) fn check_tunnels(proxy: &Proxy, expected: &SeenTunnel) {
    let tunnels = proxy.tunnels();
    assert!(!tunnels.is_empty(), "nothing went through the proxy");
    for tunnel in tunnels {
        let seen = SeenTunnel {
            head: String::new(),
            ..tunnel
        };
        assert_eq!(seen, *expected);
    }
}

/// Returns what a proxy sees of a connection to upstream.
pub(super) fn tunnel(rig: &Rig, protocol: &'static str, host: &str, login: &str) -> SeenTunnel {
    SeenTunnel {
        protocol,
        target: format!("{host}:{}", rig.upstream.address().port()),
        login: login.to_owned(),
        head: String::new(),
    }
}

/// Adds the fields of `more` to an outbound.
pub(super) fn with(mut outbound: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut outbound, more) else {
        panic!("outbounds are objects");
    };
    fields.extend(more);
    outbound
}
