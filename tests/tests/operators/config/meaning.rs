//! What fields of sing-box mean, as far as a check does not print it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::config::{
    CertificateKeyType, Config, CredentialSource, ExternalAccount, ListenAddress, parse,
};

/// Returns the configuration of a service with these fields and a credential in a file.
#[track_caller]
fn config(mut service: Value) -> Config {
    service["type"] = json!("ocm");
    let file = json!({ "services": [service], "data_dir": "data" });
    parse(&file.to_string()).expect("no problem").config
}

#[track_caller]
fn check_listen(listen: &str, bind_interface: &str, address: &str, interface: Option<&str>) {
    let config = config(json!({ "listen": listen, "bind_interface": bind_interface }));
    let listen = &config.services[0].listen;
    let expected: SocketAddr = address.parse().expect("an address");
    assert_eq!(listen.address, ListenAddress::Ip(expected));
    assert_eq!(listen.options.interface.as_deref(), interface);
}

#[test]
fn the_zone_of_an_address_is_an_interface() {
    check_listen("fe80::1%lo", "", "[fe80::1]:8080", Some("lo"));
    check_listen("fe80::1%7", "", "[fe80::1%7]:8080", None);
    check_listen("fe80::1%lo", "eth0", "[fe80::1]:8080", Some("eth0"));
    check_listen("::1", "", "[::1]:8080", None);
}

#[test]
fn user_password_and_query_of_another_gateway_are_left_out() {
    for (url, expected) in [
        (
            "https://ops:canary@gateway.example:8443/codex/?key=canary#x",
            "https://gateway.example:8443/codex",
        ),
        (
            "http://gateway.example?key=canary",
            "http://gateway.example/",
        ),
        ("http://a@b:c@[::1]:1", "http://[::1]:1/"),
    ] {
        let external = json!({ "type": "external", "tag": "x", "url": url, "token": "canary" });
        let config = config(json!({ "credentials": [external] }));
        let CredentialSource::External {
            url: Some(found), ..
        } = &config.services[0].credentials[0].source
        else {
            panic!("{url}: no URL");
        };
        assert_eq!(found.to_string(), expected, "{url}");
    }
}

#[test]
fn a_poll_interval_below_0_is_the_default_and_0_disables_polls() {
    for (text, expected) in [
        ("-5s", Some(Duration::from_secs(60))),
        ("0", None),
        ("0s", None),
        ("+30s", Some(Duration::from_secs(30))),
    ] {
        let pool = json!({ "type": "balancer", "tag": "pool", "credentials": ["a"], "poll_interval": text });
        let file = json!({ "tag": "a", "credential_path": "a.json" });
        let config = config(json!({ "credentials": [file, pool] }));
        let found = config.services[0].credentials[0].poll_interval;
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn zerossl_is_asked_for_a_key_if_only_an_address_is_known() {
    let acme = |account: Value| {
        let acme = json!({
            "domain": "gateway.example",
            "provider": "zerossl",
            "email": "ops@gateway.example",
            "external_account": account,
            "key_type": "ED25519",
        });
        let config = config(json!({ "tls": { "enabled": true, "acme": acme } }));
        let tls = config.services[0].tls.clone().expect("TLS");
        tls.acme.expect("a certificate of ACME")
    };
    let issued = acme(Value::Null);
    assert!(
        matches!(&issued.external_account, Some(ExternalAccount::IssuedFor { email }) if email == "ops@gateway.example"),
        "{issued:?}"
    );
    assert_eq!(issued.key_type, CertificateKeyType::Ed25519);
    let known = acme(json!({ "key_id": "kid-1", "mac_key": "c2VjcmV0LWtleQ" }));
    assert!(
        matches!(&known.external_account, Some(ExternalAccount::Known { key_id, .. }) if key_id == "kid-1"),
        "{known:?}"
    );
}
