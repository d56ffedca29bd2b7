//! The gateway of a rig: in this process, or the real binary.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use scripted_upstream::{Login, SeenRequest, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::config;
use tollgate::server::{Gateway, StartError};

use crate::client::Client;

/// How long the real binary may take to be ready: a debug build compiles its policies first.
const READY_MAX: Duration = Duration::from_secs(60);

/// A scripted upstream, a folder, and a gateway that is started when its configuration is known.
pub struct Rig {
    /// The upstream.
    pub upstream: Upstream,
    folder: TempDir,
    gateway: Option<Gateway>,
}

impl Rig {
    /// An upstream and a folder, and no gateway yet.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            upstream: Upstream::start().await,
            folder,
            gateway: None,
        }
    }

    /// The rig's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of `name` in the rig's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the rig's folder. Answers its path as text.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).expect("the folder can be written");
        path.to_str()
            .expect("temporary folders have plain names")
            .to_owned()
    }

    /// A ChatGPT account that upstream knows, and its auth.json: a default credential for a configuration.
    pub fn oauth(&self, tag: &str) -> Value {
        self.upstream
            .account(&format!("access-{tag}"), &format!("account-{tag}"));
        let file = crate::oauth_file(&format!("access-{tag}"), &format!("account-{tag}"));
        json!({ "tag": tag, "credential_path": self.write(&format!("{tag}.json"), file.to_string()) })
    }

    /// The account of [`Rig::oauth`], to script.
    pub fn account(&self, tag: &str) -> scripted_upstream::Account {
        self.upstream
            .account(&format!("access-{tag}"), &format!("account-{tag}"))
    }

    /// A login of the account `account-TAG` and its auth.json, which only its owner reads: a default credential for a
    /// configuration, and the login to script.
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

    /// The auth.json of the default credential `tag`.
    pub fn credential_file(&self, tag: &str) -> PathBuf {
        self.path(&format!("{tag}.json"))
    }

    /// An API key that upstream knows, and its auth.json.
    pub fn api_key(&self, tag: &str) -> Value {
        self.upstream.api_key(&format!("sk-{tag}"), tag);
        let file = crate::key_file(&format!("sk-{tag}"));
        json!({ "tag": tag, "credential_path": self.write(&format!("{tag}.json"), file.to_string()) })
    }

    /// A configuration with one service, whose further fields are `service`.
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

    /// The configuration of a team: users `alice` and `bob`, whose tokens are `token-alice` and `token-bob`, on a pool
    /// of new accounts with these tags.
    pub fn team(&self, tags: &[&str], pool: Value) -> Value {
        let mut credentials: Vec<Value> = tags.iter().map(|tag| self.oauth(tag)).collect();
        let mut whole = json!({ "tag": "pool", "type": "balancer", "credentials": tags });
        merge(&mut whole, pool);
        credentials.push(whole);
        let user = |name: &str| json!({ "name": name, "token": format!("token-{name}"), "credential": "pool" });
        self.config(json!({ "credentials": credentials, "users": [user("alice"), user("bob")] }))
    }

    /// Starts the gateway in this process. Answers a client of its first service.
    pub async fn start(&mut self, config: Value) -> Client {
        self.try_start(config)
            .await
            .unwrap_or_else(|error| panic!("the gateway does not start: {error}"))
    }

    /// Starts the gateway in this process.
    ///
    /// # Errors
    /// It does not start.
    pub async fn try_start(&mut self, config: Value) -> Result<Client, StartError> {
        let loaded = config::parse(config.to_string()).map_err(StartError::Config)?;
        let gateway = Gateway::start(loaded.config).await?;
        let client = Client::new(gateway.listening()[0].address);
        self.gateway = Some(gateway);
        Ok(client)
    }

    /// The addresses of the services of the gateway in this process, in order.
    ///
    /// # Panics
    /// There is none.
    pub fn listening(&self) -> Vec<SocketAddr> {
        let gateway = self.gateway.as_ref().expect("a gateway in this process");
        gateway
            .listening()
            .iter()
            .map(|listening| listening.address)
            .collect()
    }

    /// Applies `config` to the gateway in this process. Returns the text of what was applied, or why it was rejected.
    ///
    /// # Errors
    /// It was rejected.
    ///
    /// # Panics
    /// No gateway runs in this process.
    pub async fn configure(&self, config: &Value) -> Result<String, String> {
        let gateway = self
            .gateway
            .as_ref()
            .expect("the gateway runs in this process");
        match config::parse(config.to_string()) {
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

    /// A client of the admin listener of the gateway in this process.
    ///
    /// # Panics
    /// It has none.
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

    /// What upstream saw of clients: without what the gateway asks for itself, which says so.
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

    /// The ledger's file.
    pub fn ledger(&self) -> PathBuf {
        self.path("data").join("ledger.db")
    }

    /// Starts the real binary and waits until it is ready.
    pub async fn spawn(&self, config: &Value) -> Program {
        let file = self.write("config.json", config.to_string());
        Program::start(&file, self.path("ready.json"), self.path("gateway.log")).await
    }
}

/// Adds the fields of `more` to those of `whole`, in place of those of the same name.
fn merge(whole: &mut Value, more: Value) {
    let (Value::Object(whole), Value::Object(more)) = (whole, more) else {
        panic!("objects are merged");
    };
    whole.extend(more);
}

/// The real binary, running.
pub struct Program {
    child: Child,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    log: PathBuf,
}

impl Program {
    /// Starts `tollgate run` and waits for its ready file. What it prints goes to `log`.
    pub async fn start(config: &str, ready: PathBuf, log: PathBuf) -> Self {
        let _ = fs::remove_file(&ready);
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let child = Command::new(binary())
            .args(["run", "-c", config, "--ready-file"])
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .expect("the binary runs");
        let mut program = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: None,
            log,
        };
        (program.address, program.admin) = program.wait_until_ready(&ready).await;
        program
    }

    async fn wait_until_ready(&mut self, ready: &Path) -> (SocketAddr, Option<SocketAddr>) {
        let begun = Instant::now();
        loop {
            if let Ok(text) = fs::read(ready) {
                let ready: Value =
                    serde_json::from_slice(&text).expect("the ready file is written whole");
                let address = ready["services"][0]["address"]
                    .as_str()
                    .expect("a service has an address");
                let admin = ready["admin"]
                    .as_str()
                    .map(|admin| admin.parse().expect("an address"));
                return (address.parse().expect("an address"), admin);
            }
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                panic!("the gateway ended at once, {status}:\n{}", self.log());
            }
            assert!(
                begun.elapsed() < READY_MAX,
                "the gateway is not ready:\n{}",
                self.log()
            );
            // The ready file is the signal; there is nothing else to wait for.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A client of its first service.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// A client of its admin listener.
    ///
    /// # Panics
    /// It has none.
    pub fn admin(&self) -> Client {
        Client::new(self.admin.expect("an admin listener"))
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no memory to be unsafe with, and the child is not reaped yet.
        unsafe { libc::kill(pid, signal) };
    }

    /// Kills it at once and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits for its end, at most for `limit`.
    pub async fn wait(mut self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return status;
            }
            assert!(
                begun.elapsed() < limit,
                "the gateway does not end:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gateway's binary: `TOLLGATE_BIN`, or the one beside this test's.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TOLLGATE_BIN") {
        return PathBuf::from(path);
    }
    let this = std::env::current_exe().expect("a test knows where it is");
    let folders = this.ancestors().skip(1).take(3);
    let found = folders
        .map(|folder| folder.join("tollgate"))
        .find(|path| path.is_file());
    found.expect("the gateway is built: cargo build -p tollgate")
}
