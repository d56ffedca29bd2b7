//! The proxies of the environment, which a process reads once.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tollgate_tests::{Proxy, Rig, SeenTunnel, binary};

use super::scene::{REMOTE, with_remote_name};

/// Runs `tollgate check --connect` on a service that uses the environment, with these variables.
/// Returns whether it succeeded, and what it printed.
fn check(rig: &Rig, config: &Value, variables: &[(&str, &str)]) -> (bool, String) {
    let file = rig.write("config.json", config.to_string());
    let output = Command::new(binary())
        .args(["check", "--connect", "-c", &file])
        .env_clear()
        .env("HOME", rig.folder())
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("it prints UTF-8");
    (output.status.success(), text)
}

fn config(rig: &Rig) -> Value {
    let credentials = json!([rig.oauth("a")]);
    rig.config(json!({ "credentials": credentials, "use_environment_proxy": true }))
}

fn proxy_url(scheme: &str, proxy: &Proxy) -> String {
    format!("{scheme}://name:password@{}", proxy.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_uses_the_proxy_of_the_environment_if_it_says_so() {
    let rig = Rig::new().await;
    let config = with_remote_name(config(&rig));
    for (variable, scheme, login, protocol) in [
        ("http_proxy", "http", "Basic bmFtZTpwYXNzd29yZA==", "http"),
        ("HTTP_PROXY", "socks5", "name:password", "socks5"),
        ("ALL_PROXY", "socks5h", "name:password", "socks5"),
        ("all_proxy", "socks4a", "", "socks4a"),
    ] {
        let proxy = Proxy::with_login(login).await;
        let url = proxy_url(scheme, &proxy);
        let (is_ok, text) = check(&rig, &config, &[(variable, &url)]);
        assert!(is_ok, "{variable}: {text}");
        assert!(!text.contains("password"), "{text}");
        assert!(
            text.contains(&format!("connected through outbound \"{variable}\"")),
            "{text}"
        );
        let expected = SeenTunnel {
            protocol,
            target: format!("{REMOTE}:{}", rig.upstream.address().port()),
            login: if scheme == "socks4a" {
                "name".to_owned()
            } else {
                login.to_owned()
            },
            head: String::new(),
        };
        super::scene::check_tunnels(&proxy, &expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variable_of_another_scheme_a_listed_host_and_a_detour_bypass_it() {
    let rig = Rig::new().await;
    let config = config(&rig);
    let proxy = Proxy::start().await;
    let url = format!("http://{}", proxy.address());
    let mut with_detour = config.clone();
    with_detour["services"][0]["credentials"][0]["detour"] = json!("out");
    with_detour["outbounds"] = json!([{ "type": "direct", "tag": "out" }]);
    let mut without = config.clone();
    without["services"][0]["use_environment_proxy"] = json!(false);
    for (config, variables) in [
        (&config, &[("HTTPS_PROXY", url.as_str())][..]),
        (
            &config,
            &[("HTTP_PROXY", &url), ("NO_PROXY", "x.example, 127.0.0.0/8")],
        ),
        (&config, &[("HTTP_PROXY", &url), ("no_proxy", "*")]),
        (&with_detour, &[("HTTP_PROXY", &url)]),
        (&without, &[("HTTP_PROXY", &url)]),
    ] {
        let (is_ok, text) = check(&rig, config, variables);
        assert!(is_ok, "{variables:?}: {text}");
        assert_eq!(proxy.tunnels(), [], "{variables:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_names_no_proxy_is_a_problem_that_does_not_quote_it() {
    let rig = Rig::new().await;
    let config = config(&rig);
    for value in [
        "ftp://name:canary@proxy",
        "http://na me:canary@proxy",
        "canary canary",
    ] {
        let (is_ok, text) = check(&rig, &config, &[("HTTPS_PROXY", value)]);
        assert!(!is_ok, "{value}: {text}");
        let expected =
            "services[0].use_environment_proxy: the variable HTTPS_PROXY: expected a URL";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}
