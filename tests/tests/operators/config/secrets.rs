//! Secrets that no problem quotes, and all problems in one run.

use serde_json::{Value, json};

use super::{check_text, is_quoted};

/// A configuration with a value of nearly every kind. [`SECRET_PLACES`] lists where its secrets
/// are.
fn whole() -> Value {
    json!({
        "log": { "level": "info", "output": "stderr", "format": "json", "timestamp": true },
        "services": [{
            "type": "ocm", "tag": "x", "listen": "127.0.0.1", "listen_port": 1,
            "credentials": [{ "tag": "a", "credential_path": "a.json", "reserve_5h": 20, "detour": "out" },
                { "tag": "pool", "type": "balancer", "strategy": "random", "credentials": ["a"],
                  "poll_interval": "60s", "rebalance_threshold": 0 },
                { "tag": "x", "type": "external", "url": "http://127.0.0.1", "token": "t", "poll_interval": "60s" }],
            "users": [{ "name": "alice", "token": "t", "credential": "a", "allow_external_usage": true }],
            "headers": { "x-a": "b", "x-b": ["c"] },
            "endpoints": { "chatgpt": "http://127.0.0.1", "api": "http://127.0.0.1", "token": "http://127.0.0.1" },
            "tls": { "enabled": false, "key": "k", "alpn": ["h2"], "min_version": "1.2" },
            "pricer": "p", "rewriters": [],
        }],
        "outbounds": [{ "type": "direct", "tag": "out" },
            { "type": "http", "tag": "h", "server": "127.0.0.1", "server_port": 1, "username": "u", "password": "p",
              "headers": { "x-a": "b" }, "tls": { "enabled": false, "client_key": "k" } }],
        "policies": [{ "tag": "p", "kind": "pricer", "path": "builtin:openai-pricing", "timeout": "5ms",
            "memory": 16777216, "config": { "shipped_prices": true } }],
        "data_dir": "data",
        "limits": { "drain_timeout": "30s", "ledger_full": "refuse", "sessions": 1,
            "failover": { "unauthorized": true } },
    })
}

const SECRET_PLACES: [&str; 11] = [
    "/services/0/users/0/token",
    "/services/0/credentials/2/token",
    // A URL may contain a user and a password.
    "/services/0/credentials/2/url",
    "/services/0/headers/x-a",
    "/services/0/headers/x-b/0",
    "/services/0/tls/key",
    "/outbounds/1/server",
    "/outbounds/1/username",
    "/outbounds/1/password",
    "/outbounds/1/headers/x-a",
    "/outbounds/1/tls/client_key",
];

/// Returns what is reported for [`whole`] with `wrong` at `place`. It runs in this process, because
/// there are hundreds of calls.
fn report_with(place: &str, wrong: &Value) -> String {
    let mut case = whole();
    *case.pointer_mut(place).expect("the place exists") = wrong.clone();
    match tollgate::config::parse(&case.to_string()) {
        Ok(loaded) => format!("{:?}", loaded.warnings),
        Err(error) => format!("{error}\n{error:?}"),
    }
}

#[test]
fn a_secret_in_a_value_of_the_wrong_type_is_never_quoted() {
    assert!(
        tollgate::config::parse(&whole().to_string()).is_ok(),
        "the case is valid until a value is replaced"
    );
    let mut quoted = Vec::new();
    for place in places(&whole(), "") {
        for wrong in [
            json!(["canary"]),
            json!([["canary"]]),
            json!([{ "x": "canary" }]),
            json!({ "x": ["canary"] }),
        ] {
            let output = report_with(&place, &wrong);
            // An unknown name in a list of names is quoted.
            let is_name = place.ends_with("/credentials") || place.ends_with("/rewriters");
            if is_quoted(&output) && !is_name {
                quoted.push(format!("{place} = {wrong}: {output}"));
            }
        }
    }
    assert!(
        quoted.is_empty(),
        "{} places\n{}",
        quoted.len(),
        quoted.join("\n")
    );
}

#[test]
fn a_secret_at_its_own_place_is_never_quoted() {
    let secrets = [
        json!("canary with blanks"),
        json!("canary\n"),
        json!("canary\u{e9}"),
        json!(8_675_309),
        json!({
            "type": "canary", "value": 8_675_309,
        }),
    ];
    let mut quoted = Vec::new();
    for place in SECRET_PLACES {
        for secret in &secrets {
            let output = report_with(place, secret);
            if is_quoted(&output) {
                quoted.push(format!("{place} = {secret}: {output}"));
            }
        }
    }
    assert!(
        quoted.is_empty(),
        "{} places\n{}",
        quoted.len(),
        quoted.join("\n")
    );
}

/// Returns the JSON pointers of everything in `value`.
fn places(value: &Value, here: &str) -> Vec<String> {
    let mut found = Vec::new();
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(place, item)| (place.to_string(), item))
            .collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        let path = format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"));
        found.push(path.clone());
        found.extend(places(value, &path));
    }
    found
}

#[test]
fn problems_of_form_meaning_and_files_are_reported_in_one_run() {
    let case = json!({
        "services": [{
            "type": "ocm",
            "listen_port": "80",
            "listen": "localhost",
            "users": [{ "name": "alice", "token": "canary-1" }, { "name": "alice", "token": "canary-2" }],
        }],
        "policies": [{ "tag": "p", "kind": "pricer", "path": "nowhere.wasm" }],
    });
    let output = check_text(case.to_string());
    assert_eq!(output.code, Some(1));
    for place in [
        "services[0].listen_port: ",
        "services[0].listen: ",
        "services[0].users[1].name: ",
        "policies[0]",
    ] {
        assert!(
            output.stderr.contains(place),
            "{place} is not in\n{}",
            output.stderr
        );
    }
}

#[test]
fn debug_of_the_resolved_configuration_prints_no_secret() {
    let config = json!({
        "services": [{
            "type": "ocm", "credentials": [
                { "tag": "a", "credential_path": "a.json", "detour": "h" },
                { "tag": "b", "credential_path": "b.json", "detour": "s" },
                { "tag": "x", "type": "external", "url": "http://127.0.0.1", "token": "canary-external" },
            ],
            "users": [{ "name": "alice", "token": "canary-alice", "credential": "a" }],
        }],
        "outbounds": [
            { "type": "http", "tag": "h", "server": "127.0.0.1", "server_port": 1, "username": "canary-name",
              "password": "canary-password", "headers": { "x-a": "canary-field" },
              "tls": { "enabled": true, "client_certificate": "c", "client_key": "canary-key" } },
            { "type": "socks", "tag": "s", "server": "127.0.0.1", "server_port": 1, "username": "canary-name",
              "password": "canary-password" },
        ],
    });
    let loaded = tollgate::config::parse(&config.to_string()).expect("it is valid");
    let text = format!("{loaded:?}");
    assert!(text.contains("alice") && text.contains("x-a"), "{text}");
    assert!(!is_quoted(&text), "{text}");
}
