//! The gateway of a rig: in this process, or as the real binary; and what an operator reads of it.

pub(crate) mod command;
pub(crate) mod ledger;
pub(crate) mod metrics;
pub(crate) mod program;
pub(crate) mod status;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scripted_upstream::{Login, Options, SeenRequest, TlsOptions, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::config::{self, ListenAddress};
use tollgate::server::{Gateway, RefreshProcess, StartError};
use tollgate::upstream::TrustRoots;

use crate::clients::authority::UPSTREAM_TLS;
use crate::clients::client::Client;
use crate::gateway::program::{Program, binary};
use crate::surroundings::protocol::Protocol;

/// A scripted upstream, a folder, and a gateway that starts once its configuration is known.
pub struct Rig {
    /// The scripted upstream, which runs before the gateway does.
    pub upstream: Upstream,
    folder: TempDir,
    gateway: Option<Gateway>,
}

impl Rig {
    /// Creates an upstream and a folder, and no gateway yet. The upstream speaks the protocol of
    /// the running scenario (see [`over_both`](crate::over_both)), or HTTP/1.1 in clear.
    pub async fn new() -> Self {
        Self::with_upstream(Protocol::current().tls()).await
    }

    /// As [`Rig::new`], with an upstream that speaks HTTP/2 over TLS, with the settings that
    /// `change` makes.
    pub async fn over_http2(change: impl FnOnce(&mut TlsOptions)) -> Self {
        let mut tls = Protocol::Http2.tls();
        if let Some(tls) = &mut tls {
            change(tls);
        }
        Self::with_upstream(tls).await
    }

    async fn with_upstream(tls: Option<TlsOptions>) -> Self {
        let options = Options {
            tls,
            ..Options::default()
        };
        Self {
            upstream: Upstream::start_with(options)
                .await
                .expect("a free port on 127.0.0.1"),
            folder: tempfile::tempdir().expect("a temporary folder"),
            gateway: None,
        }
    }

    /// Returns the rig's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path of `name` in the rig's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the rig's folder. Returns its path as text.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("the folder can be written");
        path.to_str()
            .expect("temporary folders have plain names")
            .to_owned()
    }

    /// Creates a ChatGPT account that upstream knows, and its auth.json. Returns a default
    /// credential for a configuration.
    pub fn oauth(&self, tag: &str) -> Value {
        self.upstream
            .account(&format!("access-{tag}"), &format!("account-{tag}"));
        let file = crate::oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
        json!({ "tag": tag, "credential_path": self.write(&format!("{tag}.json"), file.to_string()) })
    }

    /// Returns the account of [`Rig::oauth`], to script it.
    pub fn account(&self, tag: &str) -> scripted_upstream::Account {
        self.upstream
            .account(&format!("access-{tag}"), &format!("account-{tag}"))
    }

    /// Creates a login of the account `account-TAG` and its auth.json, which only its owner may
    /// read. Returns a default credential for a configuration, and the login to script.
    pub fn login(&self, tag: &str) -> (Value, Login) {
        let login = self.upstream.login(&format!("account-{tag}"));
        let path = self.credential_file(tag);
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let mut file = opened.expect("the folder can be written");
        file.write_all(login.auth_json().to_string().as_bytes())
            .expect("the file can be written");
        (json!({ "tag": tag, "credential_path": path }), login)
    }

    /// As [`Rig::login`], with an access token that expires in `seconds`.
    pub fn expiring_login(&self, tag: &str, seconds: i64) -> (Value, Login) {
        let (credential, login) = self.login(tag);
        self.write(
            &format!("{tag}.json"),
            login.renew_with(seconds).to_string(),
        );
        (credential, login)
    }

    /// Returns the path of the auth.json of the default credential `tag`.
    pub fn credential_file(&self, tag: &str) -> PathBuf {
        self.path(&format!("{tag}.json"))
    }

    /// Creates an API key that upstream knows, and its auth.json. Returns a default credential for
    /// a configuration.
    pub fn api_key(&self, tag: &str) -> Value {
        self.upstream.api_key(&format!("sk-{tag}"), tag);
        let file = crate::key_file(&format!("sk-{tag}"));
        json!({ "tag": tag, "credential_path": self.write(&format!("{tag}.json"), file.to_string()) })
    }

    /// Returns a configuration with one service, whose further fields are `service`.
    pub fn config(&self, service: Value) -> Value {
        let mut whole = json!({
            "type": "ocm",
            "listen": "127.0.0.1",
            "listen_port": 0,
            "endpoints": {
                "chatgpt": self.upstream.chatgpt_url(),
                "api": self.upstream.api_url(),
                "token": self.upstream.token_url(),
            },
        });
        merge(&mut whole, service);
        json!({ "services": [whole], "data_dir": self.path("data") })
    }

    /// Returns the configuration of a team: users `alice` and `bob`, whose tokens are `token-alice`
    /// and `token-bob`, on a pool of new accounts with these tags.
    pub fn team(&self, tags: &[&str], pool: Value) -> Value {
        let mut credentials: Vec<Value> = tags.iter().map(|tag| self.oauth(tag)).collect();
        let mut whole = json!({ "tag": "pool", "type": "balancer", "credentials": tags });
        merge(&mut whole, pool);
        credentials.push(whole);
        let users = ["alice", "bob"].map(|name| crate::user(name, "pool"));
        self.config(json!({ "credentials": credentials, "users": users }))
    }

    /// Starts the gateway in this process. Returns a client of its first service.
    pub async fn start(&mut self, config: Value) -> Client {
        self.try_start(config)
            .await
            .unwrap_or_else(|error| panic!("the gateway does not start: {error}"))
    }

    /// Starts the gateway in this process.
    ///
    /// # Errors
    /// Returns an error if it does not start.
    pub async fn try_start(&mut self, config: Value) -> Result<Client, StartError> {
        let loaded = config::parse(&config.to_string()).map_err(StartError::Config)?;
        let trust = TrustRoots::from_pem(UPSTREAM_TLS.root.as_bytes());
        let gateway =
            Gateway::start_trusting(loaded.config, RefreshProcess::Current, Some(trust)).await?;
        let client = Client::new(ip_address(&gateway.listening()[0].address));
        self.gateway = Some(gateway);
        Ok(client)
    }

    /// Returns the addresses of the services of the gateway in this process, in order.
    ///
    /// # Panics
    /// Panics if no gateway runs in this process.
    pub fn listening(&self) -> Vec<SocketAddr> {
        let gateway = self.gateway.as_ref().expect("a gateway in this process");
        gateway
            .listening()
            .iter()
            .map(|listening| ip_address(&listening.address))
            .collect()
    }

    /// Reconfigures the gateway in this process. Returns the gateway's message.
    ///
    /// # Errors
    /// Returns why the gateway rejected the configuration.
    ///
    /// # Panics
    /// Panics if no gateway runs in this process.
    pub async fn configure(&self, config: &Value) -> Result<String, String> {
        let gateway = self
            .gateway
            .as_ref()
            .expect("the gateway runs in this process");
        match config::parse(&config.to_string()) {
            Ok(loaded) => match gateway.configure(loaded.config).await {
                Ok(applied) => Ok(applied.to_string()),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => {
                gateway.reject_configuration(&error.to_string());
                Err(error.to_string())
            }
        }
    }

    /// Returns a client of the admin listener of the gateway in this process.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn admin(&self) -> Client {
        let gateway = self
            .gateway
            .as_ref()
            .expect("the gateway runs in this process");
        Client::new(gateway.admin().expect("an admin listener"))
    }

    /// Stops the gateway in this process and waits for its end.
    pub async fn stop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.shut_down().await;
        }
    }

    /// Returns the clients' requests that upstream saw, without the gateway's own, which name it as
    /// the user agent.
    pub fn forwarded(&self) -> Vec<SeenRequest> {
        let of_gateway = |seen: &SeenRequest| {
            seen.header("user-agent")
                .is_some_and(|agent| agent.starts_with("tollgate/"))
        };
        self.upstream
            .requests()
            .into_iter()
            .filter(|seen| !of_gateway(seen))
            .collect()
    }

    /// Returns the access tokens that turns presented to upstream, in order.
    ///
    /// # Panics
    /// Panics if a turn presented none.
    pub fn presented_tokens(&self) -> Vec<String> {
        let token = |seen: &SeenRequest| {
            let field = seen.header("authorization").expect("a token");
            let token = field.strip_prefix("Bearer ").expect("a bearer token");
            token.to_owned()
        };
        self.upstream.turns().iter().map(token).collect()
    }

    /// Returns the path of the ledger.
    pub fn ledger(&self) -> PathBuf {
        self.path("data").join("ledger.db")
    }

    /// Starts the real binary and waits until it is ready.
    pub async fn spawn(&self, config: &Value) -> Program {
        let mut command = Command::new(binary());
        command.stdin(Stdio::null());
        self.spawn_as(command, config).await
    }

    /// As [`Rig::spawn`], by `command`, to which the arguments of the binary are added.
    pub async fn spawn_as(&self, command: Command, config: &Value) -> Program {
        let file = self.write("config.json", config.to_string());
        let trusted = self.write("trusted.pem", &UPSTREAM_TLS.root);
        let (ready, log) = (self.path("ready.json"), self.path("gateway.log"));
        Program::start_as(command, &file, ready, log, Some(&trusted)).await
    }
}

fn ip_address(address: &ListenAddress) -> SocketAddr {
    address.ip().expect("an IP address")
}

/// Adds the fields of `more` to those of `whole` and replaces those of the same name.
fn merge(whole: &mut Value, more: Value) {
    let (Value::Object(whole), Value::Object(more)) = (whole, more) else {
        panic!("objects are merged");
    };
    whole.extend(more);
}
