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
async fn https_urls_go_through_the_proxy_of_their_variable() {
    let rig = Rig::new().await;
    let text = with_remote_name(config(&rig)).to_string();
    let text = text.replace(&format!("http://{REMOTE}:"), &format!("https://{REMOTE}:"));
    let config = serde_json::from_str(&text).expect("it is JSON still");
    for (variable, ignored) in [("HTTPS_PROXY", "HTTP_PROXY"), ("https_proxy", "ALL_PROXY")] {
        let (proxy, other) = (Proxy::start().await, Proxy::start().await);
        let url = |proxy: &Proxy| format!("http://{}", proxy.address());
        let variables = [(variable, &*url(&proxy)), (ignored, &*url(&other))];
        // Upstream does not speak TLS: the tunnel is what counts.
        let (is_ok, text) = check(&rig, &config, &variables);
        assert!(!is_ok && text.contains("TLS with"), "{text}");
        let expected = super::scene::tunnel(&rig, "http", REMOTE, "");
        super::scene::check_tunnels(&proxy, &expected);
        assert_eq!(other.tunnels(), [], "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_in_upper_case_comes_before_the_one_in_lower_case() {
    let rig = Rig::new().await;
    let config = with_remote_name(config(&rig));
    let (upper, lower) = (Proxy::start().await, Proxy::start().await);
    let url = |proxy: &Proxy| format!("http://{}", proxy.address());
    let variables = [("http_proxy", &*url(&lower)), ("HTTP_PROXY", &*url(&upper))];
    let (is_ok, text) = check(&rig, &config, &variables);
    assert!(is_ok, "{text}");
    assert!(!upper.tunnels().is_empty());
    assert_eq!(lower.tunnels(), []);
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
